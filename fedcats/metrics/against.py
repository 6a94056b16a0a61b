"""Several models beside one reference, all on the same photos."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedcats.metrics.paired import compare
from fedcats.metrics.scores import POSITIVE
from fedcats.metrics.thresholds import compare_at_thresholds, compare_thresholdless
from fedcats.metrics.verdict import holm
from fedcats.results import Comparison

Probabilities = NDArray[np.float32]


def compare_each(
    labels: NDArray[np.int64],
    models: Mapping[str, Probabilities],
    reference: Probabilities,
    *,
    seed: int,
    thresholds: Mapping[str, tuple[float, float]],
    positive: int = POSITIVE,
) -> dict[str, Comparison]:
    """Compare each model with the reference, photo by photo; p values also adjusted for all.

    Parameters
    ----------
    labels
        (n,), int64.
    models, reference
        Class probabilities (n, classes), float32.
    seed
        Of the draws behind the intervals that are not exact.
    thresholds
        By model, where both have them, its own and the reference's.
    positive
        Of two classes, the one that precision, recall and the thresholds are of.
    """

    def one(name: str, predicted: Probabilities) -> Comparison:
        found: dict[str, Any] = {
            **compare(labels, predicted, reference, seed=seed, positive=positive)
        }
        found["thresholdless"] = compare_thresholdless(
            labels, predicted, reference, positive=positive
        )
        if name in thresholds:
            both = thresholds[name]
            found["at_thresholds"] = compare_at_thresholds(
                labels, predicted, reference, both, positive=positive
            )
        return cast(Comparison, found)

    compared = {name: one(name, predicted) for name, predicted in models.items()}
    adjusted = holm([one["mcnemar_p"] for one in compared.values()])
    for found, p in zip(compared.values(), adjusted, strict=True):
        found["mcnemar_p_holm"] = p
    return compared
