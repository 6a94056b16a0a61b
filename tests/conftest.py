"""Fixtures: a home of its own for all tests, tiny photos, and runs through the real pipeline."""

import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import hypothesis
import numpy as np
import psutil
import pytest
import typeguard
from forked import Host
from PIL import Image

from fedcats.results import Results  # imports nothing else

if TYPE_CHECKING:
    from fedcats.storage import Store

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before fedcats, Flower and Ray are imported anywhere, and inherited by the processes they start.
for _old in Path(tempfile.gettempdir()).glob("fedcats-test-[0-9]*-*"):  # of what was killed
    if not psutil.pid_exists(int(_old.name.split("-")[2])):
        shutil.rmtree(_old, ignore_errors=True)
_HOME = tempfile.TemporaryDirectory(prefix=f"fedcats-test-{os.getpid()}-")
os.environ["FEDCATS_HOME"] = _HOME.name
os.environ["FLWR_HOME"] = str(Path(_HOME.name) / "flwr")

# A small classifier, few small steps: what is tested is not how well it classifies.
TINY = [
    "model.name=squeezenet1_1",
    "model.weights=none",
    "partition.num_shards=2",
    "train.epochs=2",
    "save_models=all",
    "reference=[full]",
    "figures=[]",
]
TINY_DRAWINGS = ["data.train_per_class=8", "data.test_per_class=6"]


# Of the random trials in test_any_config.py: how many, and which.
RANDOM = int(os.environ.get("FEDCATS_RANDOM", "200"))
RANDOM_SEED = os.environ.get("FEDCATS_SEED", "0")

# Hypothesis' trials likewise: what `make test` says of a change is what the change did.
# A busy machine is no fault of theirs.
hypothesis.settings.register_profile(
    "fedcats", derandomize=RANDOM_SEED == "0", deadline=None, print_blob=True
)
hypothesis.settings.load_profile("fedcats")

T = TypeVar("T")


# What a fixture starts, its tests start.
STARTS = {"federation": "flower", "broken": "ray"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of such fixtures."""
    for item in items:
        for name in STARTS.keys() & {*getattr(item, "fixturenames", ())}:
            item.add_marker(STARTS[name])


def pytest_report_header() -> str:
    """What it takes to repeat a run of the tests."""
    return f"random trials: FEDCATS_RANDOM={RANDOM} FEDCATS_SEED={RANDOM_SEED}"


def wait_until(true: Callable[[], T], seconds: float = 120.0) -> T:
    """What ``true`` gives, once that is true; AssertionError if it is not in time."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, str, int]]:
    """Name, address and port of each socket to which somebody could speak first."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN or not one.raddr:
                    found.add((process.name(), one.laddr.ip, one.laddr.port))
    return found


def reachable(sockets: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Those of `listening` to which other machines can speak."""
    return [one for one in sockets if not ip_address(one[1].removeprefix("::ffff:")).is_loopback]


@functools.cache
def _host() -> Host:
    return Host()


def python() -> str:
    """A program for ``-m fedcats.cli ..`` that starts at once, see `forked`."""
    return _host().program


class _Lazy:
    """What `baseline_process` takes from ``sys``: the program that it starts."""

    @property
    def executable(self) -> str:
        return python()


@contextlib.contextmanager
def quick_baseline() -> Iterator[None]:
    """In it a run's baseline need not import PyTorch first."""
    from fedcats.experiment import baseline_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline_process, "sys", _Lazy())
        yield


def run_tiny(folder: Path, *overrides: str) -> tuple[Results, Path]:
    """A tiny experiment; its results, which are as they should be, and its folder."""
    from fedcats.config.compose import compose_config
    from fedcats.experiment.run import run

    photos = any(override.startswith("data=") for override in overrides)
    raw = compose_config([*TINY, *([] if photos else TINY_DRAWINGS), *overrides])
    with quick_baseline():
        results = run(raw, folder)
    check_results(folder)
    return results, folder


def check_results(folder: Path) -> Results:
    """``results.json`` of a run, which has the keys and types that it should, and no others."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    return typeguard.check_type(found, Results, collection_check_strategy=every)


@pytest.fixture(scope="session", autouse=True)
def home() -> Iterator[Path]:
    """FEDCATS_HOME of the tests."""
    yield Path(_HOME.name)
    if _host.cache_info().currsize:
        _host().close()
    _HOME.cleanup()


@pytest.fixture()
def run(tmp_path: Path) -> Callable[..., tuple[Results, Path]]:
    """``run(*overrides, folder=..)``: a tiny experiment; its results and its folder."""

    def go(*overrides: str, folder: str = "run") -> tuple[Results, Path]:
        return run_tiny(tmp_path / folder, *overrides)

    return go


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class> and test/<class> with small JPEGs of three classes, brightness by class."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(7)
    for split, count in (("train", 9), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cow")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 120, (40 + i, 50, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    return root


@pytest.fixture()
def one_thread() -> None:
    """Of torch, so that a forked child can compute."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture()
def store(tmp_path: Path) -> "Store":
    """A store of the test's own."""
    from fedcats.storage import Store

    return Store(tmp_path / "store")


def photo(path: Path, seed: int) -> None:
    """A small file of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """train/<class> and test/<class> of the test's own, with five and three files."""
    seed = 0
    for split, count in (("train", 5), ("test", 3)):
        for kind in ("cat", "dog"):
            for number in range(count):
                photo(tmp_path / "photos" / split / kind / f"{number}.png", seed)
                seed += 1
    return tmp_path / "photos"
