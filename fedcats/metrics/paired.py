"""Two models compared on the same photos: one trained model with another one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedcats.metrics.scores import POSITIVE, Labels, checked
from fedcats.results import Comparison, Difference

HEADLINE = ("accuracy", "precision", "recall", "f1")


def compare(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
    positive: int = POSITIVE,
) -> Comparison:
    """Compare a model with a reference on the same photos: is the difference more than noise?

    The p value is that of the exact McNemar test, which asks of the photos that only one of the
    two gets right whether they favour one model more than a fair coin would. The accuracy's
    interval is :func:`paired_interval`, which leaves out 0 if and only if p is below
    ``1 - confidence``; so is, of two classes, the recall's, on the photos of ``positive``. The
    other intervals are quantiles of draws, in pairs (both models see the same draw) and within
    each true class, since the number of test photos of a class was chosen, not observed:

    - two classes: from the posterior of the eight shares (prediction of the one and of the other,
      within each true class) under Jeffreys' prior, which has no width of 0 (Agresti and Min,
      Biometrics 61, 2005);
    - more classes: bootstrap samples of one photo less than there are of a class, which gives
      the variance its size when classes are small (Rao and Wu, JASA 83, 1988), from the photos
      and, of each class, 2 (k - 1) / k^2 that only the one model and as many that only the other
      gets right: the same prior, so that what no photo shows is not ruled out.

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
    positive
        Of two classes, the one that precision, recall and F1 describe.

    Returns
    -------
    dict
        ``n``, ``both_right``, ``only_model_right``, ``only_reference_right``, ``both_wrong``,
        ``mcnemar_p``, ``confidence``, ``resamples``, and for each of ``accuracy``, ``precision``,
        ``recall``, ``f1`` a dict ``{"difference", "low", "high"}`` where difference is the model's
        score minus the reference's (negative: the model is worse). With more than two classes
        precision, recall and F1 are macro means. ``low`` and ``high`` are None where the photos
        say nothing: of two classes, where there is no photo of ``positive``, and for its
        precision if one of the models predicts it nowhere or there is no photo of the other; of
        more, for macro means, if a class has a single photo or all draws are alike.
    """
    y, p = checked(labels, probabilities)
    _, q = checked(labels, reference)
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
    differences, drawn = _draws(
        y, first, second, k, positive, np.random.default_rng(seed), resamples
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    ends = list(zip(low.tolist(), high.tolist(), strict=True))
    known = [True] * len(HEADLINE)
    ends[0] = paired(np.ones(len(y), dtype=bool))
    if k == 2:
        ends[2] = paired(y == positive)
        there, *predicted = (bool((one == positive).any()) for one in (y, first, second))
        known = [True, there and all(predicted), there, there]
    else:
        enough = bool((np.unique(y, return_counts=True)[1] > 1).all())
        known[1:] = [enough] * 3
    accuracy, precision, recall, f1 = (
        Difference(
            difference=difference,
            low=min(a, difference) if is_known and a < b else None,
            high=max(b, difference) if is_known and a < b else None,
        )
        for difference, (a, b), is_known in zip(differences.tolist(), ends, known, strict=True)
    )
    return {
        "n": len(y),
        "both_right": int(np.sum(right & reference_right)),
        "only_model_right": gained,
        "only_reference_right": lost,
        "both_wrong": int(np.sum(~right & ~reference_right)),
        "mcnemar_p": float(p_value),
        "confidence": confidence,
        "resamples": len(drawn),
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
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


def _draws(
    true: Labels,
    first: npt.NDArray[np.intp],
    second: npt.NDArray[np.intp],
    k: int,
    positive: int,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Differences of the scores in `HEADLINE`: as they are (4,), and drawn (resamples, 4)."""
    # A draw matters only through how often each triple (true, first, second) occurs in it.
    triples = np.stack([true, first, second], axis=1)
    if k == 2:  # all eight, also those that were not seen
        unseen = np.indices((2, 2, 2)).reshape(3, -1).T
    else:  # of each class, that only one of the two is right
        c = np.unique(true)
        wrong = (c + 1) % k
        unseen = np.concatenate([np.stack(one, axis=1) for one in ((c, c, wrong), (c, wrong, c))])
    cells, of = np.unique(np.concatenate([triples, unseen]), axis=0, return_inverse=True)
    counts = np.bincount(of[: len(true)], minlength=len(cells))
    likely = counts + 2 * (k - 1) / k**2 * np.bincount(of[len(true) :], minlength=len(cells))
    sizes = np.bincount(true, minlength=k)
    columns = [np.flatnonzero(cells[:, 0] == label) for label in np.flatnonzero(sizes)]

    def draw(times: int) -> npt.NDArray[np.float64]:
        drawn = np.zeros((times, len(cells)))
        for own in columns:
            size = counts[own].sum()
            if k == 2:
                drawn[:, own] = size * generator.dirichlet(likely[own], times)
            elif size > 1:  # weighed so that a class keeps its share of the photos
                shares = likely[own] / likely[own].sum()
                some = generator.multinomial(size - 1, shares, times)
                drawn[:, own] = some * (size / (size - 1))
            else:
                drawn[:, own] = counts[own]
        return drawn

    def score(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        by_model = [_headline(table, cells[:, 0], cells[:, i], k, positive) for i in (1, 2)]
        return by_model[0] - by_model[1]

    resamples = min(resamples, max(1000, 2 * 10**7 // len(cells)))  # seconds, with 1000 classes
    together = max(1, 10**7 // len(cells))  # draws at a time: 80 MB
    parts = [min(together, resamples - at) for at in range(0, resamples, together)]
    drawn = np.concatenate([score(draw(times)) for times in parts])
    return score(counts[None].astype(np.float64))[0], drawn


def _headline(
    table: npt.NDArray[np.float64], true: Labels, predicted: Labels, k: int, positive: int
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
    headline = by_class[:, :, positive] if k == 2 else by_class.mean(axis=2)
    accuracy = hits.sum(axis=1) / table.sum(axis=1)
    return np.concatenate([accuracy[:, None], headline], axis=1)
