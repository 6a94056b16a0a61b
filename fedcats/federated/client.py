"""The client: trains the model on its own shard and gives back the update."""

import contextlib
import faulthandler
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedcats.environment import say
from fedcats.storage import Store
from fedcats.training.events import Report, append_events
from fedcats.training.parts import trains, work_out
from fedcats.training.update import Task, Update, compute, task_images

_PRECISION = 0.5  # seconds: within them the timer is not set anew


@contextlib.contextmanager
def _watch(report: Report, timeout: float | None) -> Iterator[Report]:
    """End this process when ``timeout`` seconds pass without a report: nobody else could.

    The interpreter's own timer does that, whatever the thread that hangs is doing.
    """
    if timeout is None:
        yield report
        return

    faulthandler.dump_traceback_later(timeout, exit=True, file=2)
    until = time.monotonic() + timeout

    def watched(event: dict[str, Any]) -> None:
        nonlocal until
        if event["state"] == "waiting":  # for another process that has the same task
            faulthandler.cancel_dump_traceback_later()
            until = 0.0
        elif (now := time.monotonic()) + timeout > until + _PRECISION:  # it takes a millisecond
            faulthandler.dump_traceback_later(timeout, exit=True, file=2)
            until = now + timeout
        report(event)

    try:
        yield watched
    finally:
        faulthandler.cancel_dump_traceback_later()


class FedcatsClient(NumPyClient):
    """One client, with weights and photos by reference: its task names them, its reply a key.

    In a simulation server and clients share a disk, so no array is copied through Flower and Ray.
    For a site `fedcats.federated.transport` puts what was sent into the site's own store first.
    """

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train (or find in the store) what ``config["task"]`` describes: update and parts.

        Parameters
        ----------
        parameters
            Not used: the task names its weights.
        config
            ``task`` (JSON of a `fedcats.training.update.Task`), ``store`` (path), ``events`` (path;
            without it progress is printed); where the store must not grow without limit
            ``store-bytes``, and where this process is the client's alone ``timeout``.

        Returns
        -------
        tuple
            No arrays, the number of examples, and ``partition-id``, ``key``, ``reused``,
            ``resumed``, ``damaged``, ``epochs`` (JSON).
        """
        task = Task.from_json(str(config["task"]))
        limit = config.get("store-bytes")
        store = Store(Path(str(config["store"])), None if limit is None else int(limit))
        events = config.get("events")
        report = _print if events is None else append_events(Path(str(events)))
        timeout = config.get("timeout")
        with _watch(report, None if timeout is None else float(timeout)) as watched:
            if trains(task):
                update = compute(task, store, watched)
            else:
                update = Update("", {}, len(task_images(task)), (), reused=False)
            work_out(task, store, update.key)
        return (
            [],
            update.examples,
            {
                "partition-id": int(task.client),
                "key": update.key,
                **update.origin(),
                "epochs": json.dumps([epoch.as_dict() for epoch in update.epochs]),
            },
        )


def _print(event: Mapping[str, Any]) -> None:
    """A line into the log of the site."""
    loss = "" if event["loss"] is None else f", loss {event['loss']:.4f}"
    epoch = f"epoch {event['epoch']} of {event['epochs']}"
    say(
        f"fedcats: round {event['round']}, {event['task']}: {event['state']}, {epoch}{loss}",
        flush=True,
    )
