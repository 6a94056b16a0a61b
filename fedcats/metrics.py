"""Scores of one model, the comparison of two on the same photos, and predictions on disk.

Everything starts from the same two arrays, ``labels`` and ``probabilities``, and everything is
computed after rounding the probabilities to float32, which is what the prediction files hold.
So the scores recomputed from a file agree with the reported ones to the last bit.

scipy and scikit-learn are imported where they are used: a run needs them only after its training,
and they take longer to import than the data takes to be found.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedcats.errors import RunError, UserError
from fedcats.text import from_cell, write_csv

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]

# log(0) of a class probability that underflowed; float32's smallest normal number gives 87.3
SMALLEST = float(np.finfo(np.float32).tiny)

HEADLINE = ("accuracy", "precision", "recall", "f1")
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
    two gets right whether they favour one model more than a fair coin would. The accuracy's
    interval is :func:`paired_interval`, which leaves out 0 if and only if p is below
    ``1 - confidence``; so is, of two classes, the recall's, on the photos of class 1. The other
    intervals are quantiles of draws, in pairs (both models see the same draw) and within each
    true class, since the number of test photos of a class was chosen, not observed:

    - two classes: from the posterior of the eight shares (prediction of the one and of the other,
      within each true class) under Jeffreys' prior, which has no width of 0 (Agresti and Min,
      Biometrics 61, 2005);
    - more classes: bootstrap samples of one photo less than there are of a class, which gives
      the variance its size when classes are small (Rao and Wu, JASA 83, 1988).

    An interval is widened where needed so that the difference lies in it.

    Parameters
    ----------
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities, reference
        Class probabilities of the model and of the reference, both of shape (n, k).
    seed
        Seed of the draws' own generator.
    confidence
        Level of the intervals, between 0 and 1.
    resamples
        Number of draws; fewer, but at least 1,000, where there are very many classes.

    Returns
    -------
    dict
        ``n``, ``both_right``, ``only_model_right``, ``only_reference_right``, ``both_wrong``,
        ``mcnemar_p``, ``confidence``, ``resamples``, and for each of ``accuracy``, ``precision``,
        ``recall``, ``f1`` a dict ``{"difference", "low", "high"}`` where difference is the model's
        score minus the reference's (negative: the model is worse). With more than two classes
        precision, recall and F1 are macro means. ``low`` and ``high`` are None where the photos
        say nothing: of two classes, where there is no photo of class 1, and for its precision if
        one of the models predicts it nowhere or there is no photo of class 0; of more, for macro
        means, if a class has a single photo or all draws are alike.
    """
    y, p = _checked(labels, probabilities)
    _, q = _checked(labels, reference)
    if p.shape != q.shape:
        raise ValueError(f"probabilities {p.shape} and reference {q.shape} differ in shape")
    k = p.shape[1]
    first, second = p.argmax(axis=1), q.argmax(axis=1)
    right, reference_right = first == y, second == y
    only_model, only_reference = right & ~reference_right, ~right & reference_right

    def paired(among: npt.NDArray[np.bool_]) -> tuple[float, float]:
        counts = int(only_model[among].sum()), int(only_reference[among].sum()), int(among.sum())
        return paired_interval(*counts, confidence)

    from scipy.stats import binomtest

    gained, lost = int(only_model.sum()), int(only_reference.sum())
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    differences, drawn = _draws(y, first, second, k, np.random.default_rng(seed), resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    ends = list(zip(low.tolist(), high.tolist(), strict=True))
    known = [True] * len(HEADLINE)
    ends[0] = paired(np.ones(len(y), dtype=bool))
    if k == 2:
        ends[2] = paired(y == POSITIVE)
        there, *predicted = (bool((one == POSITIVE).any()) for one in (y, first, second))
        known = [True, there and all(predicted), there, there]
    else:
        enough = bool((np.unique(y, return_counts=True)[1] > 1).all())
        known[1:] = [enough] * 3
    known = [is_known and a < b for is_known, (a, b) in zip(known, ends, strict=True)]
    return {
        "n": len(y),
        "both_right": int(np.sum(right & reference_right)),
        "only_model_right": gained,
        "only_reference_right": lost,
        "both_wrong": int(np.sum(~right & ~reference_right)),
        "mcnemar_p": float(p_value),
        "confidence": confidence,
        "resamples": len(drawn),
        **{
            name: {
                "difference": difference,
                "low": min(a, difference) if is_known else None,
                "high": max(b, difference) if is_known else None,
            }
            for name, difference, (a, b), is_known in zip(
                HEADLINE, differences.tolist(), ends, known, strict=True
            )
        },
    }


def paired_interval(
    only_first: int, only_second: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two proportions, both observed on the same ``n`` things.

    That of Fay and Lumbard (Statistics in Medicine 40, 2021, 1147-1159): it leaves out 0 if and
    only if the exact McNemar test rejects at the same level, it has no width of 0, and its
    coverage is at least the nominal one. The difference is ``share * (2 * side - 1)``, where
    ``share`` of the things tell the two apart and ``side`` of those favour the first; the ends
    meld the two Clopper-Pearson confidence distributions.

    Parameters
    ----------
    only_first, only_second
        How many of the ``n`` are successes of only one of the two.

    Returns
    -------
    tuple of float
        Lower and upper end of first minus second; (-1, 1), that is no knowledge, if ``n`` is 0.
    """
    if n == 0:
        return -1.0, 1.0
    tail = (1 - confidence) / 2
    return (
        _lower_end(only_first, only_first + only_second, n, tail),
        -_lower_end(only_second, only_first + only_second, n, tail),
    )


def _lower_end(x: int, m: int, n: int, tail: float) -> float:
    """Where the melded distribution, of ``x`` of ``m`` of ``n``, reaches ``tail``."""
    from scipy.optimize import brentq
    from scipy.special import betainc, betaincinv

    if x == 0:  # all of the side lies at 0, so only the share is left
        return -1.0 if m == n else -float(betaincinv(m + 1, n - m, 1 - tail))
    above = betainc(x, m - x + 1, 0.5) < tail  # as the exact test has it
    # The share's lower confidence distribution if the difference is above 0, else its upper one.
    a, b = (m, n - m + 1) if above else (m + 1, n - m)
    levels = (np.arange(4096) + 0.5) / 4096
    share = betaincinv(a, b, levels) if b else np.ones_like(levels)

    def excess(difference: float) -> float:
        side = np.clip(0.5 + difference / (2 * share), 0, 1)
        return float(betainc(x, m - x + 1, side).mean()) - tail

    start, stop = (0.0, 1.0) if above else (-1.0, 0.0)
    return float(brentq(excess, start, stop, xtol=1e-10))


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
    header = ["file", "label", "prediction", *(f"p_{name}" for name in classes)]
    # As Python's numbers: NumPy's, one at a time, take several times as long.
    guesses = p.argmax(axis=1).tolist()
    rows = (
        [file, classes[label], classes[guess], *(f"{v:.9g}" for v in row)]
        for file, label, guess, row in zip(files, y.tolist(), guesses, p.tolist(), strict=True)
    )
    write_csv(path, itertools.chain([header], rows))


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` wrote.

    Raises
    ------
    UserError
        If the file is missing or is no such table.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            header, *rows = [list(map(from_cell, row)) for row in csv.reader(stream)]
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


def _draws(
    true: Labels,
    first: npt.NDArray[np.intp],
    second: npt.NDArray[np.intp],
    k: int,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Differences of the scores in `HEADLINE`: as they are (4,), and drawn (resamples, 4)."""
    # A draw matters only through how often each triple (true, first, second) occurs in it.
    triples = np.stack([true, first, second], axis=1)
    if k == 2:  # all eight, also those that were not seen
        triples = np.concatenate([triples, np.indices((2, 2, 2)).reshape(3, -1).T])
    cells, counts = np.unique(triples, axis=0, return_counts=True)
    counts -= k == 2
    sizes = np.bincount(true, minlength=k)
    columns = [np.flatnonzero(cells[:, 0] == label) for label in np.flatnonzero(sizes)]

    def draw(times: int) -> npt.NDArray[np.float64]:
        drawn = np.zeros((times, len(cells)))
        for own in columns:
            size = counts[own].sum()
            if k == 2:
                drawn[:, own] = size * generator.dirichlet(counts[own] + 0.5, times)
            elif size > 1:  # weighed so that a class keeps its share of the photos
                some = generator.multinomial(size - 1, counts[own] / size, times)
                drawn[:, own] = some * (size / (size - 1))
            else:
                drawn[:, own] = counts[own]
        return drawn

    def score(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        by_model = [_headline(table, cells[:, 0], cells[:, i], k) for i in (1, 2)]
        return by_model[0] - by_model[1]

    resamples = min(resamples, max(1000, 2 * 10**7 // len(cells)))  # seconds, with 1000 classes
    together = max(1, 10**7 // len(cells))  # draws at a time: 80 MB
    parts = [min(together, resamples - at) for at in range(0, resamples, together)]
    drawn = np.concatenate([score(draw(times)) for times in parts])
    return score(counts[None].astype(np.float64))[0], drawn


def _headline(
    table: npt.NDArray[np.float64], true: Labels, predicted: Labels, k: int
) -> npt.NDArray[np.float64]:
    """The scores in `HEADLINE` of many samples at once.

    ``table`` (samples, cells) says how often each sample holds each cell; ``true`` and
    ``predicted`` (cells,) say what the cell means. Returns shape (samples, 4).
    """
    from scipy.sparse import csr_array

    def per_class(of: Labels, weights: npt.ArrayLike = 1.0) -> npt.NDArray[np.float64]:
        ones = np.broadcast_to(np.asarray(weights, dtype=np.float64), of.shape)
        member = csr_array((ones, (np.arange(len(of)), of)), shape=(len(of), k))
        found: npt.NDArray[np.float64] = table @ member
        return found

    hits = per_class(true, true == predicted)  # (samples, k)
    n_true, n_predicted = per_class(true), per_class(predicted)
    tiny = np.finfo(np.float64).tiny  # an empty denominator leaves no hits either: 0, as in scores
    by_class = np.stack(
        [
            hits / np.maximum(n_predicted, tiny),
            hits / np.maximum(n_true, tiny),
            2 * hits / np.maximum(n_true + n_predicted, tiny),
        ],
        axis=1,
    )  # (samples, 3, k)
    headline = by_class[:, :, POSITIVE] if k == 2 else by_class.mean(axis=2)
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
