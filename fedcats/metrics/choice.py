"""The one rule by which something is chosen on held-out photos: never on the test photos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rank(scored: Mapping[str, Any]) -> tuple[float, float]:
    """To be the largest: the accuracy, and of equal ones less ``loss`` (mean cross entropy)."""
    return scored["accuracy"], -scored["loss"]


def as_one_number(scored: Mapping[str, Any]) -> float:
    """The same order in one number, for an optimizer that takes no more.

    ``scored`` has ``n``, too: accuracies of n photos lie at least 1 / n apart, and what is taken
    off for the loss is less than half of that.
    """
    accuracy, loss = scored["accuracy"], scored["loss"]
    return float(accuracy - loss / (1 + loss) / (2 * scored["n"]))
