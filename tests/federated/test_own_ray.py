"""The Ray of a default run: who can reach it, and what it leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from conftest import TINY, TINY_DRAWINGS, listening, reachable, wait_until


def begin(folder: Path, temporary: Path, *overrides: str) -> psutil.Popen:
    """A default run (but for its size), with Ray's files in a folder of the test's own."""
    command = [sys.executable, "-m", "fedcats.cli", *TINY, *TINY_DRAWINGS, *overrides]
    return psutil.Popen(
        [*command, f"hydra.run.dir={folder}"],
        env={**os.environ, "RAY_TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nobody_else_can_reach_a_default_run_and_its_files_go(
    tmp_path: Path,
) -> None:
    folder, temporary = tmp_path / "run", Path(f"/tmp/fc{os.getpid()}")  # short, for Ray's sockets
    temporary.mkdir()
    process = begin(folder, temporary, "train.epochs=3000", "seed=31")
    events = folder / "progress.jsonl"
    seen: set[tuple[str, str, int]] = set()

    def trains() -> bool:
        seen.update(listening([process, *process.children(recursive=True)]))
        # Ray's agents are the last to listen.
        agents = {name for name, _, _ in seen if name.startswith("ray::") and "Agent" in name}
        return len(agents) == 2 and '"task": "client' in events.read_text()

    wait_until(trains, 300.0)
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in seen}
    assert reachable(seen) == []
    started = process.children(recursive=True)
    assert [path.name for path in (temporary / "ray").glob("session_2*")] != []
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(started, timeout=120)

    again = begin(folder, temporary, "train.epochs=1", "seed=31")
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert list((temporary / "ray").iterdir()) == []
    assert not events.exists()
    (temporary / "ray").rmdir()
    temporary.rmdir()
