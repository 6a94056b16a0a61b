"""What moves the difference of one run, by source, where a sweep varied ``vary``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from fedcats.report.tables import EMPTY, Table
from fedcats.results import Replicated

_DRAWN = {
    "all": "all of it",
    "shards": "who has which photos",
    "init": "weights that start at random",
    "training": "order, flips, dropout",
}


def table(found: Sequence[tuple[str, Replicated]]) -> Table | None:
    """Standard deviations over seeds side by side.

    Parameters
    ----------
    found
        What the seeds of each setting drew (``vary``), and what they say of a model.
    """
    if len({drawn for drawn, _ in found}) < 2:
        return None
    note = (
        "Standard deviation of one run's difference in accuracy over the seeds, on these images, "
        "in percentage points, with 95% interval: what a new seed moves that draws only this anew."
    )
    body: list[tuple[str, ...]] = [
        (one["title"], _DRAWN[drawn], str(len(one["seeds"])), *_spread(one))
        for drawn, one in sorted(found, key=lambda pair: [*_DRAWN].index(pair[0]))
    ]
    header = ("model", "drawn anew", "seeds", "sd", "interval")
    return Table("Where the difference between seeds comes from", header, body, (0, 1), note)


def _spread(one: Replicated) -> tuple[str, str]:
    from scipy.stats import chi2

    values = [100 * value for value in one["by_seed"] if value is not None]
    free = len(values) - 1
    if free < 1:
        return EMPTY, EMPTY
    spread = stdev(values)
    low, high = (spread * math.sqrt(free / float(chi2.ppf(q, free))) for q in (0.975, 0.025))
    return f"{spread:.2f}", f"{low:.2f} to {high:.2f}"
