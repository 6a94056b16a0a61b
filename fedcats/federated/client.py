"""The client: trains the model on its own shard and gives back the update."""

import json
from dataclasses import asdict
from pathlib import Path

from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedcats.core.store import Store
from fedcats.core.update import Task, append_events, compute


class FedcatsClient(NumPyClient):
    """One virtual client.

    Driver and clients share a disk in a simulation, so weights go both ways by reference: the
    task names those to start from, the reply the key of the update in the store. No array is
    copied through Flower and Ray.
    """

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train (or find in the store) the update that ``config["task"]`` describes.

        Parameters
        ----------
        parameters
            Not used: the task names its weights.
        config
            ``task`` (JSON of a `fedcats.core.update.Task`), ``store`` and ``events`` (paths).

        Returns
        -------
        tuple
            No arrays, the number of examples, and ``partition-id``, ``key``, ``reused``,
            ``resumed``, ``damaged``, ``epochs`` (JSON).
        """
        task = Task.from_json(str(config["task"]))
        store = Store(Path(str(config["store"])))
        update = compute(task, store, append_events(Path(str(config["events"]))))
        return (
            [],
            update.examples,
            {
                "partition-id": int(task.client),
                "key": update.key,
                **update.origin(),
                "epochs": json.dumps([asdict(epoch) for epoch in update.epochs]),
            },
        )
