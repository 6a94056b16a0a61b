"""The centralized baseline: the same update over all images, in a process beside the federation."""

import contextlib
import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcats.errors import RunError, UserError
from fedcats.experiment import baseline_process
from fedcats.storage import Store
from fedcats.training.update import Task, Update, read

_LOOK = 5.0  # seconds between looks at its progress


class Baseline:
    """Trains ``task`` in a process of its own; leave the context to stop it.

    A long serial chain: beside the shards instead of after them, both cores stay busy.

    Parameters
    ----------
    events
        Where it appends its progress.
    patience
        Seconds without any, once there is nothing else to do, after which it counts as hanging.
    """

    def __init__(self, task: Task, store: Store, events: Path, patience: float) -> None:
        self._task = task
        self._store = store
        self._events = events
        self._patience = patience
        self._process = baseline_process.update_process(store.root, events)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(task.to_json())  # to one that died early; `result` has its last words
        self._process.stdin = None

    def __enter__(self) -> "Baseline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def result(self) -> Update:
        """Wait for the update; RunError when the training failed or hangs."""
        out, err = self._wait()
        if self._process.returncode:
            code = self._process.returncode
            nothing = f"its process was ended by signal {-code}" if code < 0 else "no message"
            last = (err.strip().splitlines() or [nothing])[-1]
            kind = UserError if code == UserError.exit_code else RunError
            raise kind(f"{self._task.name}: {last}")
        answer = json.loads(out)
        update = read(self._store, answer["key"])
        if update is None:
            raise RunError(f"{self._task.name}: its update is not in the store")
        return replace(update, **answer)

    def _wait(self) -> tuple[str, str]:
        begun = time.time()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.communicate(timeout=min(_LOOK, self._patience))
            last = self._last_event()
            waits = last.get("state") == "waiting"  # for another process that has the same task
            if not waits and time.time() - max(begun, last.get("time", begun)) > self._patience:
                raise RunError(
                    f"{self._task.name}: no epoch has ended for {self._patience:g} s, so it counts "
                    "as hanging (strategy.timeout, times the number of shards); finished updates "
                    "are kept, and the same command goes on"
                )

    def _last_event(self) -> dict[str, Any]:
        lines = self._events.read_text(encoding="utf-8").splitlines()
        events = (json.loads(line) for line in reversed(lines))
        return next((event for event in events if event["task"] == self._task.name), {})
