"""What is said of a model against training in one place, in accuracy; each word from a number."""

from __future__ import annotations

from typing import Any

from fedcats.metrics.replication import LEAST_SEEDS, Replication
from fedcats.metrics.verdict import LEVEL, MOST_SEEDS, Verdict
from fedcats.report.view import apart, interval, p_value, points

CENTRALIZED = "training in one place"


def over_seeds(
    title: str, found: Replication, verdict: Verdict | None, what: str = "photos"
) -> str:
    """Say what the seeds show.

    Parameters
    ----------
    title
        What the model is called.
    found, verdict
        Of the model against the centralized one; the second None if there is no interval.
    what
        The test images, in the plural.
    """
    seeds = f"{found.seeds} seed{'s' if found.seeds > 1 else ''}"
    base = f"{seeds}, {found.photos:,} test {what}"
    size = f"{apart(found.difference)} {CENTRALIZED}"
    if verdict is None:
        return f"{title} gets {size} ({base}); {_why_no_interval(found, what)}."
    p = _p("t test", verdict.p_difference, verdict.p_difference_holm)
    at_95 = f"{_ends(found, 0.95, verdict)}{p}"
    if verdict.word == "undecided":
        return f"Undecided: {title} gets {size} ({base}; {at_95}); {_further(verdict, what)}."
    if verdict.word == "equivalent":
        margin = f"{100 * verdict.margin:g}"
        within = f"within {margin} point{'' if margin == '1' else 's'} of accuracy"
        p = _p("two one-sided tests", verdict.p_equivalence, verdict.p_equivalence_holm)
        first = f"{title} and {CENTRALIZED} are equivalent {within}"
        second = f"{title} gets {size} ({base}; {_ends(found, 0.9, verdict)}{p})"
        if verdict.p_difference_holm >= LEVEL:
            return f"{first}: {second}."
        return f"{first}, but not the same: {second}; against no difference {at_95}."
    return f"{title} is {verdict.word}: it gets {size} ({base}; {at_95})."


def of_one_seed(title: str, comparison: dict[str, Any], what: str = "photos") -> str:
    """Say what one run shows, and what it does not; ``comparison`` as of `metrics.compare`."""
    found = comparison["accuracy"]
    return (
        f"This one {title} model gets {apart(found['difference'])} this one centralized model "
        f"({comparison['n']:,} test {what}, {100 * comparison['confidence']:.0f}% interval "
        f"{interval(found)} points, exact McNemar {p_value(comparison['mcnemar_p'])}). What other "
        f"seeds would give, one seed cannot say: that takes at least {LEAST_SEEDS}."
    )


def _why_no_interval(found: Replication, what: str) -> str:
    if found.seeds < LEAST_SEEDS:
        return f"what other seeds would give takes at least {LEAST_SEEDS} seeds to say"
    return f"so few {what} give no interval"


def _further(verdict: Verdict, what: str) -> str:
    more = verdict.seeds_to_decide
    if more is None:
        would = f"not even {MOST_SEEDS:,} more seeds on these {what} would decide"
    else:
        would = f"{more} more seed{'s' if more > 1 else ''} would decide"
    return f"{would}, if the difference and its variance stay as they are"


def _p(name: str, plain: float, adjusted: float) -> str:
    holm = "" if plain == adjusted else f", {p_value(adjusted)} by Holm"
    return f", {name} {p_value(plain)}{holm}"


def _ends(found: Replication, confidence: float, verdict: Verdict) -> str:
    """The interval in points, with digits enough to see on which side of 0 and the margin it is."""
    ends = found.interval(confidence)
    marks = (0.0, verdict.margin, -verdict.margin)
    apart_by = [(100 * end, 100 * mark) for end in ends for mark in marks if end != mark]
    enough = (d for d in range(2, 9) if all(round(a, d) != round(b, d) for a, b in apart_by))
    digits = next(enough, 9)
    low, high = (points(end, digits) for end in ends)
    return f"{100 * confidence:.0f}% interval {low} to {high} points"
