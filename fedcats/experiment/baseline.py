"""The centralized baseline: the same update over all images, in a process beside the federation."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from fedcats.errors import RunError, UserError
from fedcats.experiment import baseline_process
from fedcats.storage import Store
from fedcats.training.update import Task, Update, read


class Baseline:
    """Trains ``task`` in a process of its own; leave the context to stop it.

    A long serial chain: beside the shards instead of after them, both cores stay busy.
    """

    def __init__(self, task: Task, store: Store, events: Path) -> None:
        self._task = task
        self._store = store
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
        """Wait for the update; RunError when the training failed."""
        out, err = self._process.communicate()
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
