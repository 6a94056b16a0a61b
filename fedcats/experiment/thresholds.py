"""Every model of a run without the threshold of 1/2, and at one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fedcats.experiment.comparisons import own_thresholds
from fedcats.experiment.predictions import Predictor, Probabilities
from fedcats.metrics.thresholds import (
    compare_at_thresholds,
    compare_thresholdless,
    thresholdless,
)
from fedcats.results import Unbounded
from fedcats.results.explained import OwnThreshold, Thresholdless


def thresholds(
    predictor: Predictor, predicted: Mapping[str, Sequence[Probabilities]]
) -> dict[str, Thresholdless]:
    """What needs no threshold, by model; ``predicted``: on the test images, on the held-out ones.

    The intervals of differences are paired by image.
    """
    inputs = predictor.inputs
    labels = inputs.dataset.test.labels
    base = predicted.get("centralized")
    own = own_thresholds(inputs, predicted)

    def at_own(name: str) -> OwnThreshold | None:
        if name not in own or base is None:
            return None
        both = own[name], own["centralized"]
        found = compare_at_thresholds(
            labels, predicted[name][0], base[0], both, positive=inputs.positive
        )
        kept = {key: found[key] for key in ("accuracy", "difference", "low", "high")}
        return cast(OwnThreshold, {"threshold": own[name], **kept})

    def against(name: str) -> dict[str, Unbounded]:
        if base is None or name == "centralized":
            return {}
        return cast(
            dict[str, Unbounded],
            compare_thresholdless(labels, predicted[name][0], base[0], positive=inputs.positive),
        )

    return {
        name: {
            "measures": thresholdless(labels, one[0], inputs.positive),
            "against": against(name),
            "at_own": at_own(name),
        }
        for name, one in predicted.items()
    }
