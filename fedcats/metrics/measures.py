"""Measures of one model, each with what every photo contributes to it.

A measure is a function of weights on the photos, all 1. Its derivative for the weight of photo i,
times n, is the photo's *influence*: the measure is its value plus the mean influence (0 on these
photos), to first order on other photos. So whatever is known of means, over photos and seeds,
holds for every measure (Hampel 1974; of the area under the ROC curve the same as DeLong, DeLong
and Clarke-Pearson, Biometrics 44, 1988). For means, accuracy among them, nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedcats.metrics.scores import POSITIVE, SMALLEST, Labels, Probabilities

Values = npt.NDArray[np.float64]
ECE_BINS = 15  # of equal width, as Guo et al. (ICML 2017) have them


class Linear(NamedTuple):
    """A measure to first order.

    Attributes
    ----------
    value
        The measure on the photos; NaN where they do not define it.
    influence
        Of each photo, shape (n,), float64; weighted with ``weights`` they sum to 0.
    """

    value: float
    influence: Values


class Measure(Protocol):
    """A measure of labels (n,), probabilities (n, k) and weights on the photos (n,)."""

    def __call__(
        self, y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE
    ) -> Linear:
        """To first order; of two classes, ``positive`` is the one that precision speaks of."""


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike, weights: Values) -> Linear:
    """Of two weighted sums; 0 where the denominator is, as in :func:`fedcats.metrics.scores`."""
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    total = float(weights @ b)
    if total == 0:
        return Linear(0.0, np.zeros(len(weights)))
    value = float(weights @ a) / total
    return Linear(value, (a - value * b) * (weights.sum() / total))


def _mean(values: npt.ArrayLike, weights: Values) -> Linear:
    return _ratio(values, np.ones(len(weights)), weights)


def _over_classes(k: int, positive: int, of_class: Callable[[int], Linear | None]) -> Linear:
    """Of two classes that of one, of more the mean of those that the photos define."""
    count, value, influence = 0, 0.0, np.zeros(())
    for c in [positive] if k == 2 else range(k):
        one = of_class(c)
        if one is not None:
            count, value, influence = count + 1, value + one.value, influence + one.influence
    return Linear(value / count, influence / count) if count else Linear(math.nan, influence)


def _accuracy(y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE) -> Linear:
    return _mean(p.argmax(axis=1) == y, weights)


def _of_confusion(numerator: int, true: int, predicted: int) -> Measure:
    """Hits x numerator / (photos of the class x true + photos predicted as it x predicted)."""

    def measure(y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE) -> Linear:
        guess = p.argmax(axis=1)

        def of_class(c: int) -> Linear:
            there, said = y == c, guess == c
            return _ratio(numerator * (there & said), true * there + predicted * said, weights)

        return _over_classes(p.shape[1], positive, of_class)

    return measure


def _log_loss(y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE) -> Linear:
    of_label = p[np.arange(len(y)), y].astype(np.float64)
    return _mean(-np.log(np.maximum(of_label, SMALLEST)), weights)


def _brier(y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE) -> Linear:
    k = p.shape[1]
    of_label = p[np.arange(len(y)), y].astype(np.float64)
    squares = np.einsum("ij,ij->i", p, p, dtype=np.float64) - 2 * of_label + 1
    return _mean(squares / (2 if k == 2 else 1), weights)


def _ece(y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE) -> Linear:
    confidence = p.max(axis=1).astype(np.float64)
    excess = confidence - (p.argmax(axis=1) == y)
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    side = np.sign(np.bincount(bins, weights * excess, ECE_BINS))
    return _mean(side[bins] * excess, weights)


class _Ranked(NamedTuple):
    """The photos of one class against the others, by the class's probability, highest first."""

    positive: npt.NDArray[np.bool_]  # (n,)
    level: npt.NDArray[np.intp]  # (n,): which of the u distinct probabilities the photo has
    hits: Values  # (u,): weight of the positives with it
    misses: Values  # (u,)


def _by_rank(of: Callable[[_Ranked, float], Linear], least_negatives: float) -> Measure:
    def measure(y: Labels, p: Probabilities, weights: Values, positive: int = POSITIVE) -> Linear:
        def of_class(c: int) -> Linear | None:
            of_it = y == c
            levels, level = np.unique(-p[:, c], return_inverse=True)
            hits: Values = np.bincount(level, weights * of_it, len(levels)).astype(np.float64)
            misses: Values = np.bincount(level, weights * ~of_it, len(levels)).astype(np.float64)
            if hits.sum() == 0 or misses.sum() < least_negatives:
                return None
            return of(_Ranked(of_it, level, hits, misses), float(weights.sum()))

        return _over_classes(p.shape[1], positive, of_class)

    return measure


def _area(ranked: _Ranked, total: float) -> Linear:
    positive, level, hits, misses = ranked
    n_hits, n_misses = hits.sum(), misses.sum()
    below = (n_misses - np.cumsum(misses) + misses / 2) / n_misses  # of the others, by level
    above = (np.cumsum(hits) - hits / 2) / n_hits  # of the class
    value = float(hits @ below / n_hits)
    own = (below[level] - value) / n_hits
    others = (above[level] - value) / n_misses
    return Linear(value, total * np.where(positive, own, others))


def _average_precision(ranked: _Ranked, total: float) -> Linear:
    positive, level, hits, misses = ranked
    found, seen = np.cumsum(hits), np.cumsum(hits + misses)
    inverse = np.divide(1, seen, out=np.zeros_like(seen), where=seen > 0)
    precision = np.where(seen > 0, found * inverse, 1.0)  # 1: what a photo above all would meet
    value = float(hits @ precision / found[-1])

    def from_here(values: Values) -> Values:
        return np.cumsum(values[::-1])[::-1]

    pushed = from_here(hits * precision * inverse)  # what a photo takes from those at or below it
    own = precision - value + from_here(hits * inverse) - pushed
    return Linear(value, total / found[-1] * np.where(positive, own[level], -pushed[level]))


MEASURES: dict[str, Measure] = {
    "accuracy": _accuracy,
    "precision": _of_confusion(1, 0, 1),
    "recall": _of_confusion(1, 1, 0),
    "f1": _of_confusion(2, 1, 1),
    "roc_auc": _by_rank(_area, least_negatives=np.finfo(np.float64).tiny),
    "average_precision": _by_rank(_average_precision, least_negatives=0),
    "log_loss": _log_loss,
    "brier": _brier,
    "ece": _ece,
}
"""By name. Precision, recall, F1, ``roc_auc`` and ``average_precision`` are those of
``positive`` of two classes, else means over classes, each against the others; ``log_loss`` is in
nats; ``brier`` has the range 0 to 1 for two classes and 0 to 2 for more, as scikit-learn has it;
``ece`` is the expected calibration error of the predicted class, which is above 0 also for a
calibrated model."""

LOSSES = ("log_loss", "brier", "ece")  # the less, the better
UNBOUNDED = ("log_loss", "average_precision")  # there is no most that a photo can contribute
LARGEST = {"log_loss": math.inf, "brier": 2.0}  # of any difference; else 1
