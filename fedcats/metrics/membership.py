"""Membership inference: how well a model tells its training photos from others.

All attacks read one number of each model and photo, the log odds of its label, and give a score
that is the higher, the more they take the photo for one of the training photos. Here are the
scores, their ROC curves, and intervals that know which scores are of the same photo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcats.metrics.scores import SMALLEST, checked, wilson

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
RATES = (0.01, 0.001)  # false positives at which the true ones are given
LEAST_FALSE = 10  # a rate is resolved where so many of the non-members lie beyond it
_RESAMPLES = 1000
_WORK = 10**8  # resampled pairs of an interval, from 200 resamples on
_OFFLINE = 0.3  # RMIA's a, set beforehand


def log_odds(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Numbers:
    """``phi = z_y - logsumexp(the other logits)``: the log odds of each photo's label.

    From the probabilities of *all* classes nothing of it is lost in float32, as it would be from
    that of the label alone: where that is 1.0, the others still have all their digits. Only beyond
    87.3 either way it stops growing, since what is smaller than float32's least number counts as
    that. It falls with the loss, ``log(1 + exp(-phi))``.

    Parameters
    ----------
    labels
        (n,), integers in [0, k).
    probabilities
        (n, k), softmax outputs; rounded to float32.

    Returns
    -------
    ndarray
        (n,), float64, in nats.
    """
    y, p = checked(labels, probabilities)
    rows, others = np.arange(len(y)), p.astype(np.float64)
    own = others[rows, y].copy()
    others[rows, y] = 0.0
    phi: Numbers = np.log(np.maximum(own, SMALLEST) / np.maximum(others.sum(axis=1), SMALLEST))
    return phi


# --- scores -----------------------------------------------------------------------------------


def by_loss(phi: Numbers, shadows: Numbers) -> Numbers:
    """The loss itself, the lower the surer (Yeom et al. 2018); shadow models are not needed."""
    return phi


def by_lira(phi: Numbers, shadows: Numbers) -> Numbers:
    """LiRA (Carlini et al. 2022, arXiv:2112.03570, Algorithm 1, offline), as FedMIA has it.

    FedMIA (Zhu et al. 2024, arXiv:2402.06289) takes the other clients' updates for the models that
    did not train on the photo. From so few of them the variance is what is known worst, so that of
    a photo is drawn to what is usual (Smyth 2004, doi:10.2202/1544-6115.1027), and the score is
    Student's t of the model under attack against them: with equal degrees of freedom for all
    photos it orders them as the one-sided p value does.

    Parameters
    ----------
    phi
        (n,), log odds by the model under attack.
    shadows
        (k, n), by models that did not train on the photo; k from 2.

    Returns
    -------
    ndarray
        (n,), float64.
    """
    k = len(shadows)
    variance, _ = shrunken(shadows.var(axis=0, ddof=1), k - 1)
    t: Numbers = (phi - shadows.mean(axis=0)) / np.sqrt(variance * (1 + 1 / k))
    return t


def by_rmia(phi: Numbers, shadows: Numbers) -> Numbers:
    """RMIA (Zarifzadeh et al. 2024, arXiv:2312.03262, Algorithm 2, offline) with gamma = 1.

    The share of all photos z whose ratio ``p(z | model) / p(z)`` is at most that of the photo;
    ``p(x) = ((1 + a) * mean over the shadow models + 1 - a) / 2`` with a = 0.3. Parameters and
    result as of `by_lira`; k from 1.
    """
    likelihood = _sigmoid(phi)
    usual = ((1 + _OFFLINE) * _sigmoid(shadows).mean(axis=0) + 1 - _OFFLINE) / 2
    ratio = likelihood / usual
    share: Numbers = np.searchsorted(np.sort(ratio), ratio, side="right") / len(ratio)
    return share


ATTACKS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "loss": by_loss,
    "lira": by_lira,
    "rmia": by_rmia,
}
LEAST_SHADOWS = 2  # for a variance; without as many there is only the loss


def shrunken(variances: Numbers, df: float) -> tuple[Numbers, float]:
    """Each variance drawn towards the usual one, as far as they scatter no more than by chance.

    Empirical Bayes with a scaled inverse chi-squared prior, its two parameters by the moments of
    the log variances (Smyth 2004, section 6.2).

    Parameters
    ----------
    variances
        (n,), each with ``df`` degrees of freedom.

    Returns
    -------
    (ndarray, float)
        (n,) variances above 0, and their degrees of freedom (infinite where all are the same).
    """
    from scipy.optimize import brentq
    from scipy.special import polygamma, psi

    least = 1e-5 * float(np.median(variances)) or float(np.mean(variances)) or SMALLEST
    logs = np.log(np.maximum(variances, least)) - psi(df / 2) + np.log(df / 2)
    centre = float(logs.mean())
    excess = float(logs.var(ddof=1)) - float(polygamma(1, df / 2)) if len(logs) > 1 else 0.0
    if excess <= 1e-8:
        return np.full_like(variances, np.exp(centre)), np.inf
    half = brentq(lambda x: float(polygamma(1, np.exp(x))) - excess, -40.0, 40.0)
    prior_df = 2 * float(np.exp(half))
    prior = np.exp(centre + psi(prior_df / 2) - np.log(prior_df / 2))
    return (prior_df * prior + df * variances) / (prior_df + df), prior_df + df


def leave_out(eligible: Mask, count: int, lots: Numbers) -> tuple[npt.NDArray[np.intp], Mask]:
    """For each photo as many shadow models, drawn from those that did not train on it.

    Without the same number everywhere members and non-members would differ in it.

    Parameters
    ----------
    eligible
        (models, n).
    lots
        (models, n), from 0 to 1: of each photo's models those with the lowest are taken.

    Returns
    -------
    (ndarray, ndarray)
        (count, n), which models; (n,), whether there are as many.
    """
    order = np.argsort(np.where(eligible, lots, 2.0), axis=0, kind="stable")
    return order[:count], eligible.sum(axis=0) >= count


def _sigmoid(phi: Numbers) -> Numbers:
    from scipy.special import expit

    return np.asarray(expit(phi), dtype=np.float64)


# --- curves and intervals -----------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """An attack's scores, one for each pair of model and photo; each array has that length.

    Attributes
    ----------
    score
        The higher, the more the photo is taken for a member.
    member
        Whether the model was trained on the photo.
    photo
        Its number: pairs with the same photo are resampled together.
    """

    score: Numbers
    member: Mask
    photo: npt.NDArray[np.intp]


def resamples(sizes: list[int], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """How often each photo is drawn, with replacement within groups of these sizes.

    Returns
    -------
    ndarray
        (1 + 1000, photos), the first row as they are.
    """
    rows = [np.ones(sum(sizes), dtype=np.uint8)]
    for _ in range(_RESAMPLES):
        draws = [np.bincount(generator.integers(0, n, n), minlength=n) for n in sizes if n]
        rows.append(np.concatenate(draws).astype(np.uint8))
    return np.stack(rows)


class Measured:
    """An attack's area under the ROC curve and its rates, as they are and resampled.

    Parameters
    ----------
    trial
        With at least one member and one non-member.
    weights
        As of `resamples`.

    Attributes
    ----------
    auc
        (rows,), NaN where a resample has no member or no non-member.
    tpr
        By rate of false positives, (rows,): the most true ones with at most so many false ones;
        None where the non-members are too few to say (fewer than `LEAST_FALSE` beyond it).
    """

    def __init__(self, trial: Trial, weights: npt.NDArray[np.uint8]) -> None:
        order = np.argsort(-trial.score, kind="stable")
        scores, member = trial.score[order], trial.member[order]
        self._ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of equal scores
        self._member, self._photo = member, trial.photo[order]
        self.members = int(member.sum())
        self.nonmembers = len(member) - self.members
        rows = weights[: max(200, min(len(weights), _WORK // len(member)))]
        resolved = [rate for rate in RATES if rate * self.nonmembers >= LEAST_FALSE]
        found = np.array([self._summary(row, resolved) for row in rows])
        self.auc = found[:, 0]
        self.tpr: dict[float, Numbers | None] = dict.fromkeys(RATES)
        self.tpr |= {rate: found[:, i] for i, rate in enumerate(resolved, 1)}

    def _summary(self, photos: npt.NDArray[np.uint8], rates: list[float]) -> list[float]:
        fpr, tpr = self._rates(photos)
        return [float(np.trapezoid(tpr, fpr)), *(at(rate, fpr, tpr) for rate in rates)]

    def _rates(self, photos: npt.NDArray[np.uint8]) -> tuple[Numbers, Numbers]:
        weight = photos[self._photo].astype(np.float64)
        curves = []
        for which in (~self._member, self._member):
            counted = np.cumsum(weight * which)[self._ends]
            with np.errstate(invalid="ignore"):
                curves.append(np.append(0.0, counted / counted[-1]))
        return curves[0], curves[1]

    def roc(self, points: int = 41) -> list[list[float]]:
        """[false, true positive rate] at rates that are evenly spaced as logarithms."""
        fpr, tpr = self._rates(np.ones(int(self._photo.max()) + 1, dtype=np.uint8))
        grid = np.geomspace(1 / self.nonmembers, 1.0, points)
        return [[float(x), at(x, fpr, tpr)] for x in grid]


def at(rate: float, fpr: Numbers, tpr: Numbers) -> float:
    """The most true positives with at most this rate of false ones."""
    if np.isnan(fpr[-1]):
        return np.nan
    return float(tpr[np.searchsorted(fpr, rate + 1e-12, side="right") - 1])


Interval = tuple[float, float, float]
"""A value with the ends of its interval: (value, low, high)."""


def auc_interval(found: Measured) -> Interval:
    """The area under the curve; 0.5 is guessing.

    Where all resamples are alike, as with nothing but right answers, Wilson's interval for as many
    things as there are members or non-members, which are fewer (the area's variance is at most
    that of such a share: Birnbaum and Klose 1957).
    """
    value, low, high = _quantiles(found.auc)
    if low == high:
        few = min(found.members, found.nonmembers)
        low, high = wilson(round(value * few), few, CONFIDENCE)
    return value, min(low, value), max(high, value)


def tpr_interval(found: Measured, rate: float) -> Interval | None:
    """True positives at a rate of false ones; not narrower than Wilson's interval of a share."""
    tpr = found.tpr[rate]
    if tpr is None:
        return None
    value, low, high = _quantiles(tpr)
    least, most = wilson(round(value * found.members), found.members, CONFIDENCE)
    return value, min(low, least, value), max(high, most, value)


def auc_difference(first: Measured, second: Measured) -> Interval:
    """The first area minus the second, from the same resampled photos."""
    rows = min(len(first.auc), len(second.auc))
    value, low, high = _quantiles(first.auc[:rows] - second.auc[:rows])
    if low == high:
        (_, a, b), (_, c, d) = auc_interval(first), auc_interval(second)
        low, high = a - d, b - c
    return value, min(low, value), max(high, value)


def _quantiles(values: Numbers) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(values[0]), float(low), float(high)
