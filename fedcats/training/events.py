"""What trains says how far it is, by lines in a file that whoever shows it follows."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcats.training.recipe import Epoch
    from fedcats.training.update import Task

Report = Callable[[dict[str, Any]], None]
"""Receives what `event` gives, at the end of each epoch."""


def event(task: "Task", epochs: "tuple[Epoch, ...]", state: str) -> dict[str, Any]:
    """How far a task is, after these epochs."""
    return {
        "task": task.name,
        "round": task.round,
        "epoch": len(epochs),
        "epochs": task.recipe.epochs,
        "loss": epochs[-1].loss if epochs else None,
        "validation": epochs[-1].validation if epochs else None,
        "state": state,
    }


def append_events(path: Path) -> Report:
    """A report that appends JSON lines to a file, with the time, as several processes may do.

    What cannot be written is not shown; the training goes on.
    """

    def report(event: dict[str, Any]) -> None:
        line = (json.dumps({**event, "time": time.time()}) + "\n").encode()
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            file.write(line)  # one write: lines of several processes do not mix

    return report
