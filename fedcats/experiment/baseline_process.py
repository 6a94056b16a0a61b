"""The process that trains the baseline, started before the run's own imports.

Its imports take as long as the run's: side by side the first step begins seconds earlier. Nothing
heavy is imported here.
"""

import atexit
import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from fedcats.config.schema import Config
from fedcats.environment import import_path
from fedcats.home import home

_waiting: dict[tuple[Path, Path], subprocess.Popen[str]] = {}


def start(config: Config, folder: Path) -> None:
    """Start the baseline's process where a run with that ``folder`` will most likely need it."""
    if _keeps_baseline(config) and not _trained(config).exists():  # else it is in the store
        where = home() / "store", events_file(folder.absolute())
        process = _waiting[where] = _start_process(*where)
        atexit.register(process.kill)


def remember_trained(config: Config) -> None:
    """Of a run whose training is done: another one with it need not start anything early."""
    if _keeps_baseline(config):
        path = _trained(config)
        with contextlib.suppress(OSError):  # another user's, or there is no room
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _keeps_baseline(config: Config) -> bool:
    return config.mode in ("compare", "centralized", "explain") and config.store.enabled


def _trained(config: Config) -> Path:
    parts = ["data", "partition", "centralized", "model", "train", "runner", "draws", "rounds"]
    parts += ["hold_out", *["validate"] * config.validate]
    text = repr([getattr(config, part) for part in parts])
    return home() / "trained" / hashlib.sha256(text.encode()).hexdigest()


def events_file(folder: Path) -> Path:
    """Where everything that trains in a run appends its progress."""
    return folder / "progress.jsonl"


def update_process(store: Path, events: Path) -> subprocess.Popen[str]:
    """``python -m fedcats.training.update``, which waits for its task on standard input."""
    return _waiting.pop((store, events), None) or _start_process(store, events)


def _start_process(store: Path, events: Path) -> subprocess.Popen[str]:
    # -P: nothing of the working folder is imported.
    command = [sys.executable, "-P", "-m", "fedcats.training.update"]
    command += [str(store), str(events), str(os.getpid())]
    return subprocess.Popen(
        command,
        env={
            **os.environ,
            "PYTHONPATH": import_path(),
            "PYTHONIOENCODING": "utf-8:backslashreplace",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
