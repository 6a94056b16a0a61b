"""Terminals, locales and working folders of every kind: what was trained is reported, exit 0."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import TINY
from PIL import Image

from fedcats.errors import RunError
from fedcats.experiment import baseline_process
from fedcats.experiment.baseline import Baseline
from fedcats.federated.own_ray import temporary_folder
from fedcats.storage import Store

pytestmark = pytest.mark.slow

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=cwd, capture_output=True,
        env={**os.environ, **more}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with photos of two classes, and scripts with everyday names."""
    folder = tmp_path_factory.mktemp("place")
    for label, name in enumerate(("Käse", "dog")):
        for i in range(8):
            path = folder / "d" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (20 * i, 99 * label, 7)).save(path)
    for name in ("random", "statistics", "yaml", "torch"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('my own {name}.py')\n")
    return folder


WHERE = ["runner=local", "data=folder", "data.root=d", "hydra.run.dir=out"]
RUN = shlex.join(["-P", "-m", "fedcats.cli", *TINY, "save_models=false", *WHERE])


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("{run}", ASCII),
        ("mv d 'd\udce9'; {run} data.root='d\udce9' <&- >&- 2>&-; c=$?; mv d* d; exit $c", {}),
        ("{run} >/dev/full 2>/dev/full", {}),
        ("{run} 2>&1 | head -c 1", {"PYTHONIOENCODING": "cp1252:strict", "COLUMNS": "20"}),
    ],
)
def test_a_run_never_fails_for_want_of_a_letter_or_a_reader(
    place: Path, line: str, variables: dict[str, str]
) -> None:
    done = shell(line.format(run=f"{sys.executable} {RUN}"), place, **variables)
    assert done.returncode == 0, done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert (place / "out" / "results.json").is_file()
    text = (place / "out" / "shards.csv").read_bytes().decode("utf-8")
    assert "Käse" in text
    (place / "out" / "results.json").unlink()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("{data} check {d} > /dev/full", 1, "standard output cannot be written"),
        ("{data} check {d} | head -1", 0, ""),
        ("{data} check {d} data.root=typo 2>&-", 2, ""),
        ("{cli} --help | head -1", 0, ""),
        ("{cli} --cfg job >&-", 0, ""),
        ("{cli} train.lr=0 2>/dev/full", 2, ""),
        ("mkdir x && cd x && rmdir ../x && {cli}", 1, "the working folder does not exist"),
    ],
)
def test_exit_codes_stay_true(place: Path, line: str, code: int, said: str) -> None:
    python = f"{sys.executable} -P -m fedcats"
    text = line.format(data=f"{python}.cli.data", cli=f"{python}.cli", d="data=folder data.root=d")
    done = shell(text, place)
    assert done.returncode == code, done.stderr.decode()
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_the_rehearsals_command_puts_the_working_folder_last(place: Path) -> None:
    line = f"{sys.executable} -m fedcats.deploy prepare new --nodes 1 --address here:1"
    assert shell(line, place).returncode == 0


@pytest.mark.parametrize("last", ["Killed by my own random.py", "naïve \udcff"])
def test_a_process_that_dies_early_has_the_last_word(
    tmp_path: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_bytes(b"#!/bin/sh\necho '" + os.fsencode(last) + b"' >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setattr(baseline_process.sys, "executable", str(script))
    task = SimpleNamespace(name="centralized", to_json=lambda: "x" * 10**6)
    with (
        pytest.raises(RunError, match=f"centralized: {last[:3]}"),
        Baseline(task, Store(tmp_path / "store"), tmp_path / "events", 600.0) as baseline,
    ):
        baseline.result()


@pytest.mark.parametrize(
    ("event", "patience"),
    [(None, 0.3), ({"task": "centralized", "state": "training", "time": 0.0}, 0.3)],
    ids=["from the start", "after an epoch"],
)
def test_a_baseline_that_hangs_is_given_up_on(
    tmp_path: Path, event: dict[str, Any] | None, patience: float
) -> None:
    events = tmp_path / "events"
    events.write_text("" if event is None else json.dumps(event) + "\n")
    task = SimpleNamespace(name="centralized", to_json=lambda: "no task")
    with Baseline(task, Store(tmp_path / "store"), events, patience) as baseline:
        baseline._process.send_signal(signal.SIGSTOP)
        with pytest.raises(RunError, match=r"centralized: no epoch has ended for 0\.3 s"):
            baseline.result()
    assert baseline._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("sign", ["waiting", "training"])
def test_a_baseline_that_shows_signs_of_life_is_waited_for(tmp_path: Path, sign: str) -> None:
    """It waits for another process that trains the same, or its epochs end now and then."""
    events = tmp_path / "events"
    task = SimpleNamespace(name="centralized", to_json=lambda: "no task")
    with Baseline(task, Store(tmp_path / "store"), events, 1.0) as baseline:
        process = psutil.Process(baseline._process.pid)
        process.suspend()
        now = time.time() + (0.0 if sign == "waiting" else 10**6)
        line = json.dumps({"task": "centralized", "state": sign, "time": now})
        events.write_text(json.dumps({"task": "client 0", "time": 0.0}) + f"\n{line}\n")
        threading.Timer(3.0, process.kill).start()
        with pytest.raises(RunError, match="its process was ended by signal 9"):
            baseline.result()


@pytest.mark.parametrize("name", ["x" * 60, "a b", "Ünïcode", "missing", "file"])
def test_rays_sockets_find_a_place(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path("/tmp") / f"fedcats-{os.getpid()}" / name
    folder.parent.mkdir(exist_ok=True)
    if name == "file":
        folder.touch()
    elif name != "missing":
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    assert temporary_folder() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", f"{folder.parent}/.")
    assert temporary_folder() == f"{folder.parent}/ray"
    for path in folder.parent.iterdir():
        path.unlink() if path.is_file() else path.rmdir()
    folder.parent.rmdir()
