"""Clients that break, each kind with 1 to 9 of 10, and what a run does then."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from builders import plain_tasks, what_a_client_says
from conftest import TINY, TINY_DRAWINGS, wait_until
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcats.errors import RunError
from fedcats.federated import client as client_module
from fedcats.federated import client_app, local, simulation
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.local import LocalGrid
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.transport import ByReference
from fedcats.merging.fold import Fold
from fedcats.merging.plan import Plan
from fedcats.merging.robust import trimmed_mean
from fedcats.merging.rules import FedAvg, Median, Polyak, Uniform
from fedcats.storage import Store
from fedcats.training.update import Task, compute

Go = Callable[..., tuple[dict[str, Any], Path]]
SIZES = [3 + client for client in range(10)]
RULES = {"polyak": Polyak(0.3), "fedavg": FedAvg(), "uniform": Uniform()}


def tensors(client: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(client)
    return {"w": torch.randn(4, 3, generator=draw), "b": torch.randn(3, generator=draw)}


START = {name: torch.zeros_like(value) for name, value in tensors(0).items()}

# What is wrong with a reply: changes to the tensors, to what it says, and the words of the error.
WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "nan": (lambda t: t["w"][1].fill_(torch.nan), "w has values that are not finite"),
    "inf": (lambda t: t["b"][:1].fill_(-torch.inf), "b has values that are not finite"),
    "shape": (lambda t: t.update(w=t["w"].T.contiguous()), "w has shape (3, 4), not (4, 3)"),
    "one": (lambda t: t.update(w=torch.ones(1)), "w has shape (1,), not (4, 3)"),
    "dtype": (lambda t: t.update(b=t["b"].double()), "b has dtype torch.float64, not torch.float3"),
    "missing": (lambda t: t.pop("b"), "wrong keys: missing ['b'], unknown []"),
    "unknown": (lambda t: t.update(x=torch.ones(1)), "wrong keys: missing [], unknown ['x']"),
    "far": (lambda t: t["w"].fill_(100.0), "its update is 346"),
}
INFO: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "negative": (lambda i: i.update(examples=-5), "it says that it has -5 examples, but it has"),
    "absurd": (lambda i: i.update(examples=10**12), "it says that it has 1000000000000 examples"),
    "zero": (lambda i: i.update(examples=0), "it says that it has 0 examples"),
    "fraction": (lambda i: i.update(examples=3.5), "its examples is 3.5, which is no int"),
    "not a number": (lambda i: i.update(examples=float("nan")), "its examples is nan, which is no"),
    "truth": (lambda i: i.update(examples=True), "its examples is True, which is no int"),
    "text": (lambda i: i.update(resumed="two"), "its resumed is 'two', which is no int"),
    "back": (lambda i: i.update(resumed=-1), "its resumed is -1: allowed is 0 .. 1"),
    "no epochs": (lambda i: i.update(epochs="[]"), "it trained 0 epochs instead of 1"),
    "loss": (lambda i: i.update(epochs=i["epochs"].replace("0.5", "NaN")), "its loss is nan: all"),
    "words": (lambda i: i.update(epochs=i["epochs"].replace("0.5", '"x"')), "its loss is 'x': all"),
    "time": (lambda i: i.update(epochs=i["epochs"].replace("0.1", "-1")), "its seconds is -1: all"),
    "broken": (lambda i: i.update(epochs="[" * 10**5), "its reply cannot be read"),
    "no key": (lambda i: i.pop("key"), "its reply lacks 'key'"),
    "no examples": (lambda i: i.pop("examples"), "its reply lacks 'examples'"),
    "no resumed": (lambda i: i.pop("resumed"), "its reply lacks 'resumed'"),
    "no damaged": (lambda i: i.pop("damaged"), "its reply lacks 'damaged'"),
    "no reused": (lambda i: i.pop("reused"), "its reply lacks 'reused'"),
    "other key": (lambda i: i.update(key="nothing"), "its reply names the update 'nothing'"),
    "another's": (lambda i: i.update(key="u9" if i["key"] == "u8" else "u8"), "its reply names th"),
    "path": (lambda i: i.update(key="../../etc/x"), "its reply names the update '../../etc/x'"),
}
MESSAGE = {"raise": "the camera is broken", "no info": "its reply lacks 'info'"}
KINDS = {**{k: v[1] for k, v in (*WEIGHTS.items(), *INFO.items())}, **MESSAGE}


class Faulty(LocalGrid):
    """Clients without a model, of which some break in one way."""

    def __init__(self, store: Store, faulty: set[int], kind: str) -> None:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            client = int(Task.from_json(str(message.content["config"]["task"])).client)
            update = tensors(client)
            info = what_a_client_says(f"u{client}", SIZES[client])
            content = {"info": ConfigRecord()}
            if client in faulty:
                if kind == "raise":
                    raise RuntimeError("the camera is broken")
                WEIGHTS.get(kind, (lambda _: None, ""))[0](update)
                INFO.get(kind, (lambda _: None, ""))[0](info)
                if kind == "no info":
                    content = {}
            store.put(f"u{client}", update, {"examples": SIZES[client], "epochs": []})
            if content:
                content["info"] = ConfigRecord(info)
            return Message(RecordDict({"arrays": ArrayRecord(), **content}), reply_to=message)

        super().__init__(app, len(SIZES))


def merge(
    folder: Path, faulty: set[int], kind: str, on_failure: str = "survivors", min_clients: int = 1
) -> MergeStrategy:
    store = Store(folder / "store")

    strategy = MergeStrategy(
        {**RULES, "median": Median()},
        Plan(range(10), 1.0, 0, on_failure, min_clients, max_norm=20.0),
        plain_tasks,
        SIZES,
        store,
        ByReference(store, folder / "events", None),
    )
    grid = InOrderGrid(Faulty(store, faulty, kind))
    strategy.start(grid, ArrayRecord(START), num_rounds=1, timeout=None)  # type: ignore[arg-type]
    return strategy


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("kind", KINDS)
def test_survivors_are_merged_as_if_they_were_alone(tmp_path: Path, kind: str, count: int) -> None:
    faulty = {(3 * i + count) % 10 for i in range(count)}
    survivors = [client for client in range(10) if client not in faulty]
    strategy = merge(tmp_path, faulty, kind)
    for name, rule in RULES.items():
        alone = Fold(rule)
        for client in survivors:
            alone.add(tensors(client), SIZES[client])
        merged = strategy.merged[name]
        assert merged.clients == survivors
        assert safetensors.torch.save(merged.state) == safetensors.torch.save(alone.result())
    paths = [tmp_path / f"store/u{client}.safetensors" for client in survivors]
    middle = trimmed_mean(paths, (len(paths) - 1) // 2)
    assert all(torch.equal(strategy.merged["median"].state[name], middle[name]) for name in middle)
    assert set(strategy.failures) == faulty
    assert all(KINDS[kind] in why for why in strategy.failures.values())


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_the_run_fails_and_names_the_client(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RunError) as caught:
        merge(tmp_path, {4, 7}, kind, "fail")
    assert str(caught.value).startswith("client 4 failed in round 1: ")
    assert KINDS[kind] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_survivors_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"2 clients finished, strategy.min_clients is 3; failed:"):
        merge(tmp_path, set(range(8)), "nan", min_clients=3)
    with pytest.raises(RunError, match=r"0 clients finished"):
        merge(tmp_path, set(range(10)), "nan")


# --- through Ray --------------------------------------------------------------------------------

FAULTS = "FEDCATS_TEST_FAULTS"  # like "kill:1,3 hang:4"
broken_app = ClientApp()


@broken_app.train()
def broken_train(message: Message, context: Context) -> Message:
    """The real client, unless the environment says that it breaks."""
    client_module.compute = broken_compute
    return client_app.train(message, context)


def broken_compute(task: Task, *args: Any) -> Any:
    for fault in os.environ.get(FAULTS, "").split():
        kind, _, clients = fault.partition(":")
        if str(task.client) not in clients.split(","):
            continue
        if kind == "raise":
            raise RuntimeError("the camera is broken")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "hang":
            ctypes.PyDLL(None).sleep(10**6)  # while it holds the interpreter's lock
    return compute(task, *args)


TEN = ["partition.num_shards=10", "data.train_per_class=10", "data.test_per_class=6"]
QUICK = ["mode=federated", "train.epochs=1", "runner.workers=2"]


def names_below() -> list[str]:
    names = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(process.name())
    return names


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, run: Go) -> Callable[..., tuple[dict[str, Any], Path]]:
    """``broken(faults, *overrides)``: a run of ten clients on Ray, and no process left behind."""

    def go(faults: str, *overrides: str, folder: str = "run") -> tuple[dict[str, Any], Path]:
        for where in (local, simulation):
            monkeypatch.setattr(where, "client_app", broken_app)
        monkeypatch.setenv(FAULTS, faults)
        try:
            return run(*TEN, *QUICK, *overrides, folder=folder)
        finally:
            assert not [name for name in names_below() if "ray" in name.lower()]

    return go


def test_nine_of_ten_killed_hanging_or_raising_on_ray(
    broken: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    results, folder = broken(
        "kill:0,1,2,4,5,6 hang:3 raise:7,8", "strategy.on_failure=survivors", "strategy.timeout=8"
    )
    assert results["models"]["polyak"]["clients"] == [9]
    ended = "its process ended: killed, out of memory, or hanging for strategy.timeout"
    assert results["failures"] == {
        **{f"round 1, client {client}": ended for client in range(7)},
        **{f"round 1, client {client}": "the camera is broken" for client in (7, 8)},
    }
    alone = (folder / "models/submodel-9.safetensors").read_bytes()
    for rule in ("polyak", "fedavg"):
        merged = safetensors.torch.load_file(folder / f"models/{rule}.safetensors")
        own = safetensors.torch.load(alone)
        assert safetensors.torch.save(merged) == safetensors.torch.save(own)


def test_the_run_fails_without_waiting_for_a_client_that_hangs(
    broken: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="client 0 failed in round 1: the camera is broken"):
        broken("raise:0 stop:1", "seed=22")
    assert time.monotonic() - started < 500  # of the 3,600 that a client has


def test_clients_that_not_even_end_themselves_are_given_up_on(
    broken: Callable[..., tuple[dict[str, Any], Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    few = ["partition.num_shards=3", "strategy.on_failure=survivors", "strategy.timeout=7"]
    broken("raise:1,2", *few, "seed=23", "runner=local", folder="before")
    # Client 0 is in the store and comes last: on a busy machine Ray's start and the first epoch
    # may take longer than this timeout. The others block both workers.
    results, _ = broken("stop:1,2", *few, "seed=23", "strategy.order=[1,2,0]")
    assert list(results["failures"]) == ["round 1, client 1", "round 1, client 2"]
    assert results["failures"]["round 1, client 1"] == "no reply for 42 s"
    assert results["failures"]["round 1, client 2"].startswith("its process ended: killed")
    assert results["models"]["polyak"]["clients"] == [0]
    assert "raylet" not in capfd.readouterr().out


def begin_a_long_run(folder: Path, *overrides: str) -> psutil.Popen:
    command = [sys.executable, "-m", "fedcats.cli", *TINY, *TINY_DRAWINGS, "mode=federated"]
    command.append("runner.workers=1")  # each costs the start of a process with PyTorch
    return psutil.Popen(
        [*command, *overrides, "train.epochs=5000", f"hydra.run.dir={folder}"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Ignored in commands that a script runs in the background, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end_the_ray_of(process: psutil.Process) -> None:
    for child in process.children():
        if child.name() in ("raylet", "gcs_server"):
            child.kill()


def is_agent(process: psutil.Process) -> bool:
    """Ray's own helpers, which need a minute to see that it was killed; their titles come late."""
    command = process.as_dict(["cmdline"])["cmdline"] or []  # none of one that has just ended
    return any(re.search(r"Agent$|agent(/main)?\.py$", part) for part in command[:3])


def interrupt_the_group_of(process: psutil.Process) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does


@pytest.mark.ray
@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        (end_the_ray_of, 1, "Ray has ended in the middle of the run; finished updates are kept"),
        (lambda process: process.send_signal(signal.SIGINT), 130, "interrupted; finished work is"),
        (interrupt_the_group_of, 130, "interrupted; finished work is kept, the same command goes"),
        (lambda process: process.send_signal(signal.SIGTERM), 143, "interrupted; finished work is"),
    ],
    ids=["Ray is killed", "interrupt", "Ctrl-C", "term"],
)
def test_a_run_cut_short_while_its_clients_train_ends_and_says_so(
    tmp_path: Path, end: Callable[[psutil.Process], None], code: int, line: str
) -> None:
    process = begin_a_long_run(tmp_path, "seed=24")
    events = tmp_path / "progress.jsonl"
    wait_until(lambda: events.is_file() and '"epoch": 1' in events.read_text())
    started = [p for p in process.children(recursive=True) if not is_agent(p)]
    end(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1].startswith(f"fedcats: {line}")
    assert not psutil.wait_procs(started, timeout=30)[1]


def test_workers_that_die_of_ray_are_no_failed_clients(tmp_path: Path) -> None:
    raylet = psutil.Popen([shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet"), "600"])

    class Ending(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            if list(message_ids) == ["second"]:  # between the look at Ray and the reply
                raylet.kill()
                raylet.wait()
            asked = Message(RecordDict(), dst_node_id=1, message_type="train")
            return [Message(Error(code=0, reason="the actor died"), reply_to=asked)]

    grid = simulation.RayGrid(Ending(ClientApp(), 1), threading.Event(), lost := threading.Event())
    (reply,) = grid.pull_messages(["first"])
    assert reply.has_error()
    assert not lost.is_set()
    with pytest.raises(RunError, match="Ray has ended in the middle of the run"):
        grid.pull_messages(["second"])
    assert lost.is_set()


@pytest.mark.ray
def test_a_run_cut_short_while_ray_starts_ends_and_says_so(tmp_path: Path) -> None:
    process = begin_a_long_run(tmp_path, "seed=25")
    started = wait_until(lambda: [p for p in process.children() if p.name() == "gcs_server"])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("fedcats: interrupted")
    assert not psutil.wait_procs(started, timeout=30)[1]
