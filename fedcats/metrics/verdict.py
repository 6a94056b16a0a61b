"""What follows from a difference over seeds: equivalent, worse, better or undecided.

Equivalence is shown by two one-sided t tests (Schuirmann, Journal of Pharmacokinetics and
Biopharmaceutics 15, 1987), a difference by the two-sided one; where several models are compared
with the same reference, both sets of p values are adjusted by Holm's method (Scandinavian Journal
of Statistics 6, 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedcats.metrics.measures import LOSSES
from fedcats.metrics.replication import Replication

LEVEL = 0.05  # of the tests: how often a word other than "undecided" may be wrong
MOST_SEEDS = 1000  # more than those nobody will train

Word = Literal["equivalent", "worse", "better", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of a model against the reference.

    Attributes
    ----------
    word
        ``equivalent`` if the difference is shown to lie within the margin (it need not be 0);
        else ``worse`` or ``better`` if it is shown not to be 0; else ``undecided``.
    margin
        In the unit of the measure: 0.01 is one point of accuracy.
    p_difference, p_equivalence
        Of the t test against 0, and the larger of the two one-sided ones against the margin.
    p_difference_holm, p_equivalence_holm
        The same, adjusted for the number of models; the word comes from these.
    seeds_to_decide
        If undecided: how many seeds more would decide, if the difference and the variances stay
        what they are (of several models: with the level divided by their number); None if not
        even `MOST_SEEDS` would, on as many photos.
    """

    word: Word
    margin: float
    p_difference: float
    p_difference_holm: float
    p_equivalence: float
    p_equivalence_holm: float
    seeds_to_decide: int | None = None


def judge(found: Mapping[str, Replication], margin: float) -> dict[str, Verdict | None]:
    """The verdict on each model, by name; None on one without an interval over seeds.

    Parameters
    ----------
    found
        By model, its difference from the one reference.
    margin
        Differences below it count as none, in the unit of the measure; above 0, and chosen before
        the results are seen.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: must be above 0")
    known = {name: one for name, one in found.items() if one.effects is not None}
    plain = [_p_values(one, margin) for one in known.values()]
    adjusted = zip(*(holm(column) for column in zip(*plain, strict=True)), strict=True)
    verdicts: dict[str, Verdict | None] = dict.fromkeys(found)
    for (name, one), (p, q), (p_holm, q_holm) in zip(known.items(), plain, adjusted, strict=True):
        word = _word(one, p_holm, q_holm)
        more = _seeds_to_decide(one, margin, len(known)) if word == "undecided" else None
        verdicts[name] = Verdict(word, margin, p, p_holm, q, q_holm, more)
    return verdicts


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values of several tests so that all of them together err no more than one may."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(one) for one in adjusted]


def _p_values(one: Replication, margin: float) -> tuple[float, float]:
    from scipy.stats import t

    ends = np.array([abs(one.difference), abs(one.difference) - margin]) / one.standard_error
    return float(2 * t.sf(ends[0], one.df)), float(t.cdf(ends[1], one.df))


def _word(one: Replication, p_difference: float, p_equivalence: float) -> Word:
    if p_equivalence < LEVEL:
        return "equivalent"
    if p_difference >= LEVEL:
        return "undecided"
    return "better" if (one.difference > 0) != (one.measure in LOSSES) else "worse"


def _seeds_to_decide(one: Replication, margin: float, models: int) -> int | None:
    from scipy.stats import t

    assert one.effects is not None
    more = np.arange(1, MOST_SEEDS + 1)
    error, df = one.effects.precision(one.seeds + more)
    size, level = abs(one.difference), LEVEL / models
    decided = size > t.isf(level / 2, df) * error
    decided |= margin - size > t.isf(level, df) * error
    return int(more[np.argmax(decided)]) if decided.any() else None
