"""The client: trains the model on its own shard and gives back the update."""

import json
from dataclasses import asdict
from pathlib import Path

from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedcats.core.store import Store
from fedcats.core.update import Task, append_events, compute


class FedcatsClient(NumPyClient):
    """One client, with weights and photos by reference: its task names them, its reply a key.

    In a simulation server and clients share a disk, so no array is copied through Flower and Ray.
    For a site `fedcats.federated.transport` puts what was sent into the site's own store first.
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
            ``task`` (JSON of a `fedcats.core.update.Task`), ``store`` and ``events`` (paths), and
            where the store must not grow without limit ``store-bytes``.

        Returns
        -------
        tuple
            No arrays, the number of examples, and ``partition-id``, ``key``, ``reused``,
            ``resumed``, ``damaged``, ``epochs`` (JSON).
        """
        task = Task.from_json(str(config["task"]))
        limit = config.get("store-bytes")
        store = Store(Path(str(config["store"])), None if limit is None else int(limit))
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
