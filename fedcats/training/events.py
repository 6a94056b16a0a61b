"""What trains says how far it is, by lines in a file that whoever shows it follows."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[dict[str, Any]], None]
"""Receives ``{"task", "round", "epoch", "epochs", "loss", "state"}`` at the end of each epoch."""


def append_events(path: Path) -> Report:
    """A report that appends JSON lines to a file, with the time, as several processes may do.

    What cannot be written is not shown; the training goes on.
    """

    def report(event: dict[str, Any]) -> None:
        line = (json.dumps({**event, "time": time.time()}) + "\n").encode()
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            file.write(line)  # one write: lines of several processes do not mix

    return report
