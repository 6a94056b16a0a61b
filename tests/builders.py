"""What many tests build."""

import json
from dataclasses import asdict, replace
from typing import Any

from fedcats.training.recipe import Epoch, Recipe


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
