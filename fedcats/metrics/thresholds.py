"""One model, or two on the same photos, without the threshold of 1/2 that an accuracy has.

A model can gain accuracy only because its outputs lie on the better side of 1/2, and lose in how
well it ranks the photos. So beside the accuracy: measures that need no threshold, and the accuracy
at a threshold that was chosen on held-out photos, for each model its own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedcats.metrics.measures import MEASURES
from fedcats.metrics.paired import paired_interval
from fedcats.metrics.replication import differences, one_run
from fedcats.metrics.scores import POSITIVE, Labels, Probabilities, checked

THRESHOLDLESS = ("roc_auc", "average_precision", "log_loss", "brier", "ece")


def thresholdless(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, positive: int = POSITIVE
) -> dict[str, float | None]:
    """The measures in `THRESHOLDLESS`; None where the photos do not define one.

    Parameters
    ----------
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities
        Class probabilities, shape (n, k), k >= 2; rounded to float32.
    positive
        Of two classes, the one that is ranked.
    """
    y, p = checked(labels, probabilities)
    values = {name: MEASURES[name](y, p, np.ones(len(y)), positive).value for name in THRESHOLDLESS}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def compare_thresholdless(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    reference: npt.ArrayLike,
    confidence: float = 0.95,
    positive: int = POSITIVE,
) -> dict[str, dict[str, float | None]]:
    """Two trained models compared by each measure in `THRESHOLDLESS`, paired by photo.

    The intervals are those of :func:`fedcats.metrics.replication.one_run`: of the area under the
    ROC curve DeLong's, without the random draws of a bootstrap and, to first order, the same.

    Returns
    -------
    dict
        By measure ``{"difference", "low", "high"}``: the model's less the reference's, and the
        ends of the interval over other photos; None where the photos do not define them.
    """
    y, p = checked(labels, probabilities)
    _, q = checked(labels, reference)
    if p.shape != q.shape:
        raise ValueError(f"probabilities {p.shape} and reference {q.shape} differ in shape")
    return {name: _compared(y, p, q, name, confidence, positive) for name in THRESHOLDLESS}


def _compared(
    y: Labels, p: Probabilities, q: Probabilities, name: str, confidence: float, positive: int
) -> dict[str, float | None]:
    (values,), (unseen,) = differences(y, [(p, q)], name, positive)
    difference = float(values.mean())
    if not math.isfinite(difference):
        return {"difference": None, "low": None, "high": None}
    low, high = one_run(values, unseen, y, confidence) or (None, None)
    return {"difference": difference, "low": low, "high": high}


def best_threshold(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, positive: int = POSITIVE
) -> float:
    """The probability of ``positive`` above which to say it, for the best accuracy here.

    Halfway between two neighbouring probabilities of these photos, or 0.5; of equally good ones
    that nearest to 0.5. To be called with photos that are neither trained nor tested on.

    Raises
    ------
    ValueError
        If there are more than two classes.
    """
    y, p = checked(labels, probabilities)
    if p.shape[1] != 2:
        raise ValueError(f"a threshold is chosen for two classes, not {p.shape[1]}")
    levels, level = np.unique(p[:, positive].astype(np.float64), return_inverse=True)
    gain = np.bincount(level, np.where(y == positive, -1, 1), len(levels))  # said the other
    right = np.concatenate([[0.0], np.cumsum(gain)])  # more than saying it of all, by levels below
    between = (levels[1:] + levels[:-1]) / 2
    candidates = np.array([levels[0] - 1e-6, *between, levels[-1], 0.5])
    right = np.append(right, right[np.sum(levels <= 0.5)])
    best = np.flatnonzero(right == right.max())
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])


def compare_at_thresholds(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    reference: npt.ArrayLike,
    thresholds: tuple[float, float],
    confidence: float = 0.95,
    positive: int = POSITIVE,
) -> dict[str, float]:
    """Compare the accuracies of two models of two classes, each at its own threshold.

    Returns
    -------
    dict
        ``accuracy`` and ``reference_accuracy``, their ``difference`` and the ends ``low`` and
        ``high`` of its interval (:func:`fedcats.metrics.paired_interval`), with these thresholds.
    """
    y, p = checked(labels, probabilities)
    _, q = checked(labels, reference)
    right = [
        (one[:, positive].astype(np.float64) > threshold) == (y == positive)
        for one, threshold in zip((p, q), thresholds, strict=True)
    ]
    only = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    low, high = paired_interval(*only, len(y), confidence)
    return {
        "accuracy": float(right[0].mean()),
        "reference_accuracy": float(right[1].mean()),
        "difference": (only[0] - only[1]) / len(y),
        "low": low,
        "high": high,
    }
