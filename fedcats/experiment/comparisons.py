"""A run's models compared on the same photos, with each of the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedcats.metrics.against import compare_each
from fedcats.metrics.thresholds import best_threshold, compare_at_thresholds, thresholdless
from fedcats.results import Comparison, Results
from fedcats.results.names import is_merged
from fedcats.seeding import derive_seed

if TYPE_CHECKING:
    from fedcats.experiment.inputs import Inputs
    from fedcats.experiment.predictions import Probabilities

Predicted = Mapping[str, Sequence["Probabilities"]]
"""By model its predictions of the test photos and, where there are any, of the held-out ones."""


def record_comparisons(inputs: Inputs, predicted: Predicted, results: Results) -> None:
    """Note in ``results`` what its models have beside each other, and without the threshold 1/2."""
    labels = inputs.dataset.test.labels
    scored = {name: one for name, one in predicted.items() if name in results["models"]}
    thresholds = own_thresholds(inputs, scored)
    for name, model in results["models"].items():
        model["thresholdless"] = thresholdless(labels, predicted[name][0], inputs.positive)

    def against(reference: str, names: Sequence[str]) -> dict[str, Comparison]:
        return compare_each(
            labels,
            {name: predicted[name][0] for name in names},
            predicted[reference][0],
            seed=derive_seed(inputs.config.draws.own, "bootstrap"),
            thresholds={name: (thresholds[name], thresholds[reference]) for name in names}
            if thresholds
            else {},
            positive=inputs.positive,
        )

    merged = [name for name in predicted if is_merged(name)]
    if "centralized" in predicted:
        results["comparison"] = against("centralized", merged)
    if "same_steps" in predicted and merged:
        results["split"] = {
            "fewer_steps": against("centralized", ["same_steps"])["same_steps"],
            "photos_apart": against("same_steps", merged),
        }
    for name, value in thresholds.items():
        one = predicted[name][0]
        at = compare_at_thresholds(labels, one, one, (value, value), positive=inputs.positive)
        results["models"][name]["threshold"] = {"value": value, "accuracy": at["accuracy"]}


def own_thresholds(inputs: Inputs, predicted: Predicted) -> dict[str, float]:
    """Each model's best threshold on the held-out photos, if any; only of two classes."""
    held = inputs.validation.labels
    if not len(held) or len(inputs.dataset.classes) != 2:
        return {}
    return {name: best_threshold(held, one[1], inputs.positive) for name, one in predicted.items()}
