"""Scores of one model, the comparison of two on the same photos, and predictions on disk.

Everything starts from the same two arrays, ``labels`` and ``probabilities``, and everything is
computed after rounding the probabilities to float32, which is what the prediction files hold.
So the scores recomputed from a file agree with the reported ones to the last bit.

scipy and scikit-learn are imported where they are used: a run needs them only after its training,
and they take longer to import than the data takes to be found.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedcats.core.errors import RunError, UserError

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]

# log(0) of a class probability that underflowed; float32's smallest normal number gives 87.3
SMALLEST = float(np.finfo(np.float32).tiny)

POSITIVE = 1  # of two classes, the one that precision and recall describe (the paper's: dog)


class Predictions(NamedTuple):
    """What a prediction file holds.

    Attributes
    ----------
    files
        Path of each photo, relative to the data folder; length n.
    labels
        True class of each photo, shape (n,), int64.
    probabilities
        Class probabilities, shape (n, k), float32.
    classes
        Names of the k classes, in the order of the columns.
    """

    files: list[str]
    labels: Labels
    probabilities: Probabilities
    classes: list[str]


def scores(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Score the predictions of one model (the paper's Tables I to III).

    Parameters
    ----------
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities
        Class probabilities (softmax outputs), shape (n, k), k >= 2; rounded to float32.
    classes
        Names of the k classes; "0", "1", .. if left out.

    Returns
    -------
    dict
        ``accuracy, precision, recall, f1, loss`` (floats), ``n``, ``confusion_matrix`` (rows true,
        columns predicted; for two classes [[tn, fp], [fn, tp]]), ``per_class`` (class ->
        precision, recall, f1, support) and ``macro`` (their unweighted means). With two classes
        the precision, recall and F1 at the top are those of class 1, as in the paper; with more
        they are the macro means. A ratio with an empty denominator is 0. ``loss`` is the mean
        cross entropy in nats.

    Raises
    ------
    ValueError
        If the arrays are empty, do not fit together, or are not probabilities.
    RunError
        If a probability is not finite, that is, the model has diverged.
    """
    y, p = _checked(labels, probabilities)
    k = p.shape[1]
    names = [str(i) for i in range(k)] if classes is None else list(classes)
    if len(names) != k:
        raise ValueError(f"{len(names)} class names for {k} columns of probabilities")

    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted = p.argmax(axis=1)
    columns = precision_recall_fscore_support(y, predicted, labels=range(k), zero_division=0)
    per_class = {
        name: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(names, *columns, strict=True)
    }
    macro = {
        key: float(np.mean([c[key] for c in per_class.values()]))
        for key in ("precision", "recall", "f1")
    }
    headline = per_class[names[POSITIVE]] if k == 2 else macro
    of_label = p[np.arange(len(y)), y].astype(np.float64)
    return {
        "accuracy": float(np.mean(predicted == y)),
        "precision": headline["precision"],
        "recall": headline["recall"],
        "f1": headline["f1"],
        "loss": float(-np.log(np.maximum(of_label, SMALLEST)).mean()),
        "n": len(y),
        "confusion_matrix": confusion_matrix(y, predicted, labels=range(k)).tolist(),
        "per_class": per_class,
        "macro": macro,
    }


def compare(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Compare a model with a reference on the same photos: is the difference more than noise?

    The p value is that of the exact McNemar test, which asks of the photos that only one of the
    two gets right whether they favour one model more than a fair coin would. The intervals are
    percentile bootstrap intervals; photos are drawn in pairs (both models see the same draw) and
    within each true class, since the number of test photos of a class was chosen, not observed.

    Parameters
    ----------
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities, reference
        Class probabilities of the model and of the reference, both of shape (n, k).
    seed
        Seed of the bootstrap's own generator.
    confidence
        Level of the intervals, between 0 and 1.
    resamples
        Number of bootstrap draws.

    Returns
    -------
    dict
        ``n``, ``both_right``, ``only_model_right``, ``only_reference_right``, ``both_wrong``,
        ``mcnemar_p``, ``confidence``, ``resamples``, and for each of ``accuracy``, ``precision``,
        ``recall``, ``f1`` a dict ``{"difference", "low", "high"}`` where difference is the model's
        score minus the reference's (negative: the model is worse). With more than two classes
        precision, recall and F1 are macro means.
    """
    y, p = _checked(labels, probabilities)
    _, q = _checked(labels, reference)
    if p.shape != q.shape:
        raise ValueError(f"probabilities {p.shape} and reference {q.shape} differ in shape")
    k = p.shape[1]
    first, second = p.argmax(axis=1), q.argmax(axis=1)

    right, reference_right = first == y, second == y
    only_model = int(np.sum(right & ~reference_right))
    only_reference = int(np.sum(~right & reference_right))
    discordant = only_model + only_reference
    from scipy.stats import binomtest

    p_value = binomtest(only_model, discordant).pvalue if discordant else 1.0

    # A resample matters only through how often each triple (true, first, second) occurs in it,
    # and those counts are multinomial within each class: no photo needs to be drawn.
    cells, counts = np.unique(np.stack([y, first, second], axis=1), axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(cells)), dtype=np.int64)
    for label in np.unique(y):
        own = cells[:, 0] == label
        share = counts[own] / counts[own].sum()
        drawn[:, own] = generator.multinomial(counts[own].sum(), share, size=resamples)
    table = np.concatenate([counts[None], drawn])  # row 0: the photos as they are
    differences = _headline(table, cells[:, 0], cells[:, 1], k) - _headline(
        table, cells[:, 0], cells[:, 2], k
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences[1:], [tail, 1 - tail], axis=0)
    return {
        "n": len(y),
        "both_right": int(np.sum(right & reference_right)),
        "only_model_right": only_model,
        "only_reference_right": only_reference,
        "both_wrong": int(np.sum(~right & ~reference_right)),
        "mcnemar_p": float(p_value),
        "confidence": confidence,
        "resamples": resamples,
        **{
            name: {
                "difference": float(differences[0, i]),
                "low": float(low[i]),
                "high": float(high[i]),
            }
            for i, name in enumerate(("accuracy", "precision", "recall", "f1"))
        },
    }


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


def write_predictions(
    path: Path,
    files: Sequence[str],
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[str],
) -> None:
    """Write one row per photo: file, label and prediction by name, and every probability.

    The columns are ``file,label,prediction,p_<class>..``. Probabilities are written with nine
    significant digits, which single out a float32, so that reading them back loses nothing.

    Parameters
    ----------
    path
        The CSV file; its folder is made if it is missing.
    files
        Path of each photo; length n.
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities
        Class probabilities, shape (n, k).
    classes
        Names of the k classes.
    """
    y, p = _checked(labels, probabilities)
    if len(files) != len(y) or len(classes) != p.shape[1]:
        raise ValueError(f"{len(files)} files, {len(classes)} classes: probabilities are {p.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # surrogateescape: a file name need not be valid UTF-8
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "label", "prediction", *(f"p_{name}" for name in classes)])
        # As Python's numbers: NumPy's, one at a time, take several times as long.
        guesses = p.argmax(axis=1).tolist()
        writer.writerows(
            [file, classes[label], classes[guess], *(f"{v:.9g}" for v in row)]
            for file, label, guess, row in zip(files, y.tolist(), guesses, p.tolist(), strict=True)
        )


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` wrote.

    Raises
    ------
    UserError
        If the file is missing or is no such table.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            header, *rows = list(csv.reader(stream))
        if header[:3] != ["file", "label", "prediction"] or len(header) < 5:
            raise ValueError(f"its columns are {','.join(header)}")
        classes = [name.removeprefix("p_") for name in header[3:]]
        index = {name: i for i, name in enumerate(classes)}
        y, p = _checked(
            [index[row[1]] for row in rows],
            np.array([row[3:] for row in rows], dtype=np.float64),
        )
    except OSError as error:
        raise UserError(f"predictions {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        raise UserError(
            f"predictions {path}: not a table file,label,prediction,p_<class>.. ({error})"
        ) from error
    return Predictions([row[0] for row in rows], y, p, classes)


def _headline(
    table: npt.NDArray[np.int64], true: Labels, predicted: npt.NDArray[np.intp], k: int
) -> npt.NDArray[np.float64]:
    """Accuracy, precision, recall, F1 of many samples at once.

    ``table`` (samples, cells) says how often each sample holds each cell; ``true`` and
    ``predicted`` (cells,) say what the cell means. Returns shape (samples, 4).
    """
    classes = np.arange(k)
    is_true, is_predicted = true[:, None] == classes, predicted[:, None] == classes
    hits = table @ (is_true & is_predicted).astype(np.int64)  # (samples, k)
    n_true, n_predicted = table @ is_true.astype(np.int64), table @ is_predicted.astype(np.int64)
    per_class = np.stack(
        [  # an empty denominator leaves no hits either: 0, as in scores()
            hits / np.maximum(n_predicted, 1),
            hits / np.maximum(n_true, 1),
            2 * hits / np.maximum(n_true + n_predicted, 1),
        ],
        axis=1,
    )  # (samples, 3, k)
    headline = per_class[:, :, POSITIVE] if k == 2 else per_class.mean(axis=2)
    accuracy = hits.sum(axis=1) / table.sum(axis=1)
    return np.concatenate([accuracy[:, None], headline], axis=1)


def _checked(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Labels, Probabilities]:
    y, p = np.asarray(labels), np.asarray(probabilities).astype(np.float32)
    if y.ndim != 1 or p.ndim != 2 or len(y) != len(p) or len(y) == 0 or p.shape[1] < 2:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape}: expected (n,), (n, k)")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be integers from 0 to {p.shape[1] - 1}")
    if not np.isfinite(p).all():
        raise RunError("the model's outputs are not finite: training has diverged")
    if p.min() < 0 or p.max() > 1 + 1e-5:
        raise ValueError("probabilities must lie between 0 and 1 (softmax, not logits)")
    return y.astype(np.int64), p
