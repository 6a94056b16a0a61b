"""Scores of one model.

Everything starts from the same two arrays, ``labels`` and ``probabilities``, and everything is
computed after rounding the probabilities to float32, which is what the prediction files hold.
So the scores recomputed from a file agree with the reported ones to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedcats.errors import RunError
from fedcats.results import ClassScores, Ratios, Scores

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]

# log(0) of a class probability that underflowed; float32's smallest normal number gives 87.3
SMALLEST = float(np.finfo(np.float32).tiny)
NOT_FINITE = "the model's outputs are not finite"

POSITIVE = 1  # of two classes, the one that precision and recall describe (the paper's: dog)


def scores(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[str] | None = None,
    positive: int = POSITIVE,
) -> Scores:
    """Score the predictions of one model (the paper's Tables I to III).

    Parameters
    ----------
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities
        Class probabilities (softmax outputs), shape (n, k), k >= 2; rounded to float32.
    classes
        Names of the k classes; "0", "1", .. if left out.
    positive
        Of two classes, the one that precision, recall and F1 at the top describe.

    Returns
    -------
    dict
        ``accuracy, precision, recall, f1, loss`` (floats), ``n``, ``confusion_matrix`` (rows true,
        columns predicted; for two classes [[tn, fp], [fn, tp]]), ``per_class`` (class ->
        precision, recall, f1, support) and ``macro`` (their unweighted means). With two classes
        the precision, recall and F1 at the top are those of ``positive``; with more they are the
        macro means. A ratio with an empty denominator is 0. ``loss`` is the mean
        cross entropy in nats.

    Raises
    ------
    ValueError
        If the arrays are empty, do not fit together, or are not probabilities.
    RunError
        If a probability is not finite, that is, the model has diverged.
    """
    y, p = checked(labels, probabilities)
    k = p.shape[1]
    names = [str(i) for i in range(k)] if classes is None else list(classes)
    if len(names) != k:
        raise ValueError(f"{len(names)} class names for {k} columns of probabilities")

    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted = p.argmax(axis=1)
    columns = precision_recall_fscore_support(y, predicted, labels=range(k), zero_division=0)
    per_class: dict[str, ClassScores] = {
        name: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(names, *columns, strict=True)
    }
    macro: Ratios = {
        "precision": float(np.mean([c["precision"] for c in per_class.values()])),
        "recall": float(np.mean([c["recall"] for c in per_class.values()])),
        "f1": float(np.mean([c["f1"] for c in per_class.values()])),
    }
    headline = per_class[names[positive]] if k == 2 else macro
    return {
        "accuracy": float(np.mean(predicted == y)),
        "precision": headline["precision"],
        "recall": headline["recall"],
        "f1": headline["f1"],
        "loss": mean_loss(y, p),
        "n": len(y),
        "confusion_matrix": confusion_matrix(y, predicted, labels=range(k)).tolist(),
        "per_class": per_class,
        "macro": macro,
    }


def mean_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Mean cross entropy in nats, of labels (n,) and probabilities (n, k), n >= 1."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_label, SMALLEST)).mean())


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, for example of an accuracy.

    Returns
    -------
    tuple of float
        Lower and upper end; (0, 1), that is no knowledge, if ``n`` is 0.
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def checked(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Labels, Probabilities]:
    """Labels as int64 (n,) and probabilities as float32 (n, k); raises as :func:`scores` says."""
    y, p = np.asarray(labels), np.asarray(probabilities).astype(np.float32)
    if y.ndim != 1 or p.ndim != 2 or len(y) != len(p) or len(y) == 0 or p.shape[1] < 2:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape}: expected (n,), (n, k)")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be integers from 0 to {p.shape[1] - 1}")
    if not np.isfinite(p).all():
        raise RunError(f"{NOT_FINITE}: training has diverged")
    if p.min() < 0 or p.max() > 1 + 1e-5:
        raise ValueError("probabilities must lie between 0 and 1 (softmax, not logits)")
    return y.astype(np.int64), p
