"""What many tests build."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from fedcats.metrics.replication import Effects, Replication
from fedcats.training.recipe import Epoch, Recipe
from fedcats.training.update import Task


def plain_recipe(**changes: Any) -> Recipe:
    """One epoch of plain SGD with batches of four."""
    plain = Recipe(
        epochs=1,
        batch_size=4,
        lr=0.001,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        step_size=0,
        gamma=1.0,
        drop_last=False,
    )
    return replace(plain, **changes)


def what_a_client_says(key: str, examples: int) -> dict[str, Any]:
    """The ``info`` of an honest reply after `plain_recipe`."""
    epoch = Epoch(loss=0.5, examples=examples, steps=1, seconds=0.1)
    return {
        "key": key,
        "examples": examples,
        "reused": False,
        "resumed": 0,
        "damaged": False,
        "epochs": json.dumps([asdict(epoch)]),
    }


def plain_tasks(clients: Sequence[int], server_round: int, start: str) -> list[tuple[Task, str]]:
    """`MergeStrategy.make_tasks` with `plain_recipe`: the update of client 3 is ``u3``."""
    same = (server_round, 0, "m", 2, "all", start, start, "", (), plain_recipe(), 1, "cpu", 0.0)
    return [(Task(f"client {client}", client, *same), f"u{client}") for client in clients]


def replication(difference: float, effects: Effects, seeds: int) -> Replication:
    """Of an accuracy, with the same difference for each seed."""
    error, df = (float(one) for one in effects.precision(seeds))
    return Replication(
        "accuracy", seeds, effects.photos, [difference] * seeds, difference, 0.95,
        standard_error=error, df=df, effects=effects,
    )  # fmt: skip
