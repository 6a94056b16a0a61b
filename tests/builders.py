"""What many tests build."""

from dataclasses import replace
from typing import Any

from fedcats.training.recipe import Recipe


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
