"""What training anew with other seeds says about the difference of two models.

Every seed's models are tested on the same photos, so seeds and photos are *crossed*. With
``d[s, p]`` what photo p contributes to the difference of seed s (`fedcats.metrics.measures`),

    d[s, p] = difference + seed[s] + photo[p] + rest[s, p]

is the two-way layout with random effects and one observation a cell. Its components come from the
mean squares, the number of photos of a class being fixed, and the mean over S seeds and P photos
has the variance ``seed / S + photo / P + rest / (S P)``, with Satterthwaite's degrees of freedom
(Searle, Casella and McCulloch, Variance Components, 1992, 4.3; Satterthwaite, Biometrics
Bulletin 2, 1946). `docs/verdict.md` has the simulation that tests it.

Photos on which all models agree say little about those on which they would not. So the photos'
component is at least what two photos more would make it, on one of which only the model is right
with every seed, on the other only the reference, both spread over the classes: for two classes
the 1/2 that Agresti and Min (Biometrics 61, 2005) put into each cell of disagreement. So no
interval is a point, and a few photos on which nothing differs show no equivalence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedcats.errors import UserError
from fedcats.metrics.measures import LARGEST, LOSSES, MEASURES, UNBOUNDED, Values
from fedcats.metrics.scores import POSITIVE, Labels, Probabilities, checked

LEAST_SEEDS = 3  # of which an interval over seeds can be made
_ROUNDING = 1e-12  # no difference: sums in another order differ by as much


class Effects(NamedTuple):
    """The parts of the variance of one run's difference, and the size of the design.

    Attributes
    ----------
    seed, photo, rest
        Variances of one seed, of one photo, and of one photo with one seed (their interaction).
    photos
        Number of test photos.
    free
        Photos less classes: the degrees of freedom of a variance over photos.
    """

    seed: float
    photo: float
    rest: float
    photos: int
    free: int

    def precision(self, seeds: npt.ArrayLike) -> tuple[Values, Values]:
        """Standard error of the mean over so many seeds, and its degrees of freedom."""
        s = np.asarray(seeds, dtype=np.float64)
        per_cell = 1 / (s * self.photos)
        by_seed = (self.photos * self.seed + self.rest) * per_cell  # mean squares, in this unit
        by_photo = (s * self.photo + self.rest) * per_cell
        rest = self.rest * per_cell
        variance = by_seed + by_photo - rest
        doubt = (by_seed**2 + (by_photo**2 * (s - 1) + rest**2) / self.free) / (s - 1)
        return np.sqrt(variance), variance**2 / doubt


@dataclass(frozen=True)
class Replication:
    """The difference of a model and the reference over seeds, in the unit of the measure.

    Attributes
    ----------
    measure
        A name of `fedcats.metrics.measures.MEASURES`.
    seeds, photos
        How many there are.
    by_seed
        The model's measure minus the reference's, for each seed.
    difference
        Their mean.
    low, high
        Its interval at ``confidence``, over new seeds and new photos; None below `LEAST_SEEDS`,
        where the photos say nothing, and where the two models are the same.
    standard_error, df
        Of the difference, and its degrees of freedom; None as ``low``.
    deviation
        What moves one run's difference, as standard deviations: ``seed`` on the same photos,
        ``photo`` on other photos with all seeds alike, ``interaction`` on other photos by seed.
    at_least_as_good
        Probability that with a new seed, on these photos, the model is at least as good as the
        reference, of a loss: loses no more (prediction by Student's t); None as ``low``.
    effects
        What the interval was made from; None as ``low``.
    """

    measure: str
    seeds: int
    photos: int
    by_seed: list[float]
    difference: float
    confidence: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    df: float | None = None
    deviation: dict[str, float] | None = None
    at_least_as_good: float | None = None
    effects: Effects | None = None

    def interval(self, confidence: float) -> tuple[float, float]:
        """Ends of the interval at another level; not where there is none."""
        from scipy.stats import t

        assert self.standard_error is not None
        half = float(t.ppf((1 + confidence) / 2, self.df)) * self.standard_error
        most = LARGEST.get(self.measure, 1.0)
        return max(self.difference - half, -most), min(self.difference + half, most)


def replicate(
    labels: npt.ArrayLike,
    runs: Mapping[int, Mapping[str, npt.ArrayLike]],
    model: str,
    reference: str = "centralized",
    *,
    measure: str = "accuracy",
    confidence: float = 0.95,
    positive: int = POSITIVE,
) -> Replication:
    """Compare a model with a reference over seeds, paired by seed and by photo.

    Parameters
    ----------
    labels
        True classes of the test photos, shape (P,), integers in [0, k); the same for all seeds.
    runs
        By seed and name of the model, class probabilities of shape (P, k).
    model, reference
        The names of the two.
    measure
        Which one, of `fedcats.metrics.measures.MEASURES`.
    confidence
        Level of the interval, between 0 and 1.
    positive
        Of two classes, the one that precision and recall describe.

    Raises
    ------
    UserError
        If a seed lacks one of the two models, or the photos or classes are not the same.
    ValueError
        If there is no seed or no such measure.
    """
    if not runs:
        raise ValueError("no seed to compare over")
    pairs = [
        tuple(_of(labels, seed, found, name) for name in (model, reference))
        for seed, found in runs.items()
    ]
    if len(found := {one.shape[1] for pair in pairs for one in pair}) > 1:
        raise UserError(
            f"models of {' and '.join(map(str, sorted(found)))} classes: not comparable"
        )
    y, _ = checked(labels, pairs[0][0])
    values, unseen = differences(y, pairs, measure, positive)
    return crossed(values, unseen, y, measure=measure, confidence=confidence)


def _of(
    labels: npt.ArrayLike, seed: int, found: Mapping[str, npt.ArrayLike], name: str
) -> Probabilities:
    if name not in found:
        raise UserError(
            f"seed {seed}: no predictions of {name} (there are {', '.join(found) or 'none'}); "
            "every seed needs every model that is compared"
        )
    try:
        return checked(labels, found[name])[1]
    except ValueError as error:
        raise UserError(f"seed {seed}, {name}: {error}") from error


def differences(
    labels: Labels,
    pairs: list[tuple[Probabilities, ...]],
    measure: str,
    positive: int = POSITIVE,
) -> tuple[Values, Values]:
    """What each photo contributes to the model's measure less the reference's, of each pair.

    Returns
    -------
    tuple of arrays
        Shape (pairs, n), whose mean over photos is the difference of the measure, NaN if that is
        not defined; and of two photos a class (pairs, 2 k) that are not there: only the model is
        right on the first, only the reference on the second. Those are 0 of measures to which a
        photo can contribute any amount.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r}: one of {', '.join(MEASURES)}")
    n, k = pairs[0][0].shape
    absent = np.repeat(np.arange(k), 2)
    answers = np.eye(k, dtype=np.float32)
    right, wrong = answers[absent], answers[(absent + 1) % k]
    first = (np.arange(2 * k) % 2 == 0)[:, None]
    y = np.concatenate([labels, absent])
    weights = np.repeat([1.0, 0.0], [n, 2 * k])
    of = MEASURES[measure]

    def contributions(p: Probabilities, unseen: Probabilities) -> Values:
        value, influence = of(y, np.concatenate([p, unseen]), weights, positive)
        return value + influence if math.isfinite(value) else np.full(len(y), np.nan)

    both = np.stack(
        [
            contributions(p, np.where(first, right, wrong))
            - contributions(q, np.where(first, wrong, right))
            for p, q in pairs
        ]
    )
    return both[:, :n], both[:, n:] * (measure not in UNBOUNDED)


def crossed(
    values: Values,
    unseen: Values,
    strata: npt.NDArray[np.integer],
    *,
    measure: str = "accuracy",
    confidence: float = 0.95,
) -> Replication:
    """Interval of the mean of ``values`` over new seeds and new photos.

    Parameters
    ----------
    values, unseen
        As :func:`differences` gives them, shape (S, P) and (S, 2 k).
    strata
        Class of each photo, shape (P,).
    """
    seeds, photos = values.shape
    by_seed = values.mean(axis=1)
    bare = Replication(measure, seeds, photos, by_seed.tolist(), float(by_seed.mean()), confidence)
    if seeds < LEAST_SEEDS or (effects := _effects(values, unseen, strata)) is None:
        return bare

    from scipy.stats import t

    error, df = (float(one) for one in effects.precision(seeds))
    better = bare.difference * (-1 if measure in LOSSES else 1)
    spread = float(by_seed.std(ddof=1)) * math.sqrt(1 + 1 / seeds)
    found = replace(
        bare,
        standard_error=error,
        df=df,
        deviation={
            "seed": math.sqrt(effects.seed),
            "photo": math.sqrt(effects.photo / photos),
            "interaction": math.sqrt(effects.rest / photos),
        },
        at_least_as_good=float(t.cdf(better / spread, seeds - 1))
        if spread > _ROUNDING
        else float(better >= -_ROUNDING),
        effects=effects,
    )
    low, high = found.interval(confidence)
    return replace(found, low=low, high=high)


def one_run(
    values: Values, unseen: Values, strata: npt.NDArray[np.integer], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the mean of ``values``, shape (P,), over new photos alone: of two trained models.

    None where the photos say nothing; ``unseen`` (2 k,) and ``strata`` as in :func:`crossed`.
    """
    from scipy.stats import t

    free = len(values) - len(np.unique(strata))
    if not free:
        return None
    centred = values - _class_means(values[None], strata)[0]
    of_photo = max(float(centred @ centred) / free, _of_unseen(unseen) / len(values))
    half = float(t.ppf((1 + confidence) / 2, free)) * math.sqrt(of_photo / len(values))
    return (float(values.mean()) - half, float(values.mean()) + half) if half > 0 else None


def _effects(values: Values, unseen: Values, strata: npt.NDArray[np.integer]) -> Effects | None:
    """Components from the mean squares, none below 0; None if they are not known or all 0."""
    seeds, photos = values.shape
    free = photos - len(np.unique(strata))
    if not free:
        return None
    means = _class_means(values, strata)
    photo = (values - means).mean(axis=0)
    rest = values - means - photo
    of_rest = float((rest**2).sum()) / ((seeds - 1) * free)
    of_photo = seeds * float(photo @ photo) / free
    of_seed = photos * float(values.mean(axis=1).var(ddof=1))
    effects = Effects(
        max(0.0, of_seed - of_rest) / photos,
        max((of_photo - of_rest) / seeds, _of_unseen(unseen.mean(axis=0)) / photos),
        of_rest,
        photos,
        free,
    )
    return effects if sum(effects[:3]) > 0 else None  # not so of NaN, either


def _of_unseen(unseen: Values) -> float:
    """Squares of what the two photos count that are not there, each spread over the k classes."""
    return float(unseen @ unseen) / (len(unseen) / 2)


def _class_means(values: Values, strata: npt.NDArray[np.integer]) -> Values:
    """Of each value (S, P) the mean of its seed and its photo's class, shape (S, P)."""
    _, cell, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat(values[:, np.argsort(cell, kind="stable")], starts, axis=1)
    means: Values = (sums / sizes)[:, cell]
    return means
