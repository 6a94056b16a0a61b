"""The figure of several seeds, of a run and of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedcats.report import view
from fedcats.results import OverSeeds, Replicated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = (
    "Merged minus centralized: dots are seeds, the mark their mean, with its 95% interval over "
    "seeds where there is one; shaded: within the margin."
)


def over_seeds(found: Mapping[str, Replicated]) -> Figure | None:
    """Draw each seed's difference of each merged model from the centralized one, and the mean."""
    if not found:
        return None
    from fedcats.report.drawing import CENTRALIZED, MARKS, RULES, score_panels

    figure, axes = score_panels([one["title"] for one in found.values()], row=0.5, sharex=True)
    for ax, key in zip(axes, view.SCORES, strict=True):
        ax.set_title(key)
        ax.axvline(0, color=CENTRALIZED, linewidth=1, linestyle=(0, (4, 3)))
        for row, model in enumerate(found.values()):
            one: OverSeeds = model if key == "accuracy" else model["measures"][key]
            colour, mark = RULES[row % len(RULES)], MARKS[row % len(MARKS)]
            if key == "accuracy":
                most = 100 * model["margin"]
                ax.fill_between([-most, most], row - 0.5, row + 0.5, color=CENTRALIZED, alpha=0.1)
            dots = [100 * value for value in one["by_seed"] if value is not None]
            ax.plot(dots, [row + 0.22] * len(dots), "o", color=colour, markersize=5, alpha=0.4)
            low, high = one["low"], one["high"]
            if low is not None and high is not None:
                ax.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=1.6)
            if one["difference"] is not None:
                ax.plot(100 * one["difference"], row, mark, color=colour, markersize=7)
        ax.set_xlabel("percentage points")
    return figure
