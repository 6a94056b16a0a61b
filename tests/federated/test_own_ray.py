"""The Ray of a default run: who can reach it, and what it leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import TINY, TINY_DRAWINGS, listening, reachable, wait_until

from fedcats.federated import own_ray
from fedcats.locks import locked_now


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for Ray's files, with a name that is short enough for its sockets."""
    folder = Path(f"/tmp/fc{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_only_files_of_killed_runs_go(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive, other = os.getpid(), gone.pid + 1
    for process in (gone.pid, alive, other):
        (tmp_path / f"session_2026-01-01_00-00-00_000000_{process}" / "logs").mkdir(parents=True)
    marks = [tmp_path / f"fedcats-{name}.lock" for name in (gone.pid, alive, "no-number")]
    for mark in marks:
        mark.touch()
    (tmp_path / "session_latest").symlink_to(f"session_2026-01-01_00-00-00_000000_{gone.pid}")
    with locked_now(marks[0]):  # as the run itself does
        own_ray.remove_ended(tmp_path)
    assert len(list(tmp_path.iterdir())) == 7
    own_ray.remove_ended(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"session_2026-01-01_00-00-00_000000_{alive}",
        f"session_2026-01-01_00-00-00_000000_{other}",
        *(mark.name for mark in marks[1:]),
    }


def begin(folder: Path, temporary: Path, *overrides: str) -> psutil.Popen:
    """A run on Ray as by default, but for its size: one client trains at a time."""
    command = [sys.executable, "-m", "fedcats.cli", *TINY, *TINY_DRAWINGS, *overrides]
    command.append("runner.workers=1")
    return psutil.Popen(
        [*command, f"hydra.run.dir={folder}"],
        env={**os.environ, "RAY_TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )


def stranger(port: int) -> str:
    """What somebody else on this machine is told who wants to run something there."""
    code = f"""
from ray._private import ray_constants
import ray
ray_constants.ENABLE_RAY_CLUSTER = False
ray.init("127.0.0.1:{port}")
print(ray.get(ray.remote(num_cpus=0)(print).remote("in")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.ray
def test_nobody_else_can_reach_a_default_run_and_its_files_go(
    tmp_path: Path, temporary: Path
) -> None:
    process = begin(tmp_path, temporary, "train.epochs=3000", "seed=31")
    events = tmp_path / "progress.jsonl"
    seen: set[tuple[str, str, int]] = set()

    def everything_listens() -> bool:
        assert process.is_running()
        seen.update(listening([process, *process.children(recursive=True)]))
        names = {name.partition(".")[0] for name, _, _ in seen}
        every = {"gcs_server", "raylet", "ray::RuntimeEnvAgent", "ray::ClientAppActor"}
        return every <= names and '"task": "client' in events.read_text()

    try:
        wait_until(everything_listens, 300.0)
        assert reachable(seen) == []
        assert list((temporary / "ray").glob("session_2*")) != []
        (gcs,) = [port for name, _, port in seen if name == "gcs_server"]
        (client,) = (p for p in process.children(recursive=True) if "ClientApp" in p.name())
        client.suspend()  # the stranger asks for 20 s
        assert "InvalidAuthToken" in stranger(gcs)
        client.resume()
    finally:
        # Its agents need minutes to see that it is gone, and do nothing more.
        started = [p for p in process.children(recursive=True) if "Agent" not in p.name()]
        process.send_signal(signal.SIGKILL)
        process.wait()
    psutil.wait_procs(started, timeout=120)

    again = begin(tmp_path, temporary, "train.epochs=1", "seed=31")
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert list((temporary / "ray").iterdir()) == []
    assert not events.exists()
