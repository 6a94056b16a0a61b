"""The gap, merged minus centralized, against what a user can change; and against the barrier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from fedcats.report import view
from fedcats.report.cautions import nobody_has_learned
from fedcats.report.tables import Table
from fedcats.report.varied import flat, short, value_text
from fedcats.results import Results
from fedcats.results.names import is_submodel
from fedcats.text import size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_DIFFERENCE = {  # to the models
    "runner", "store", "save_models", "verbose", "mode", "explain", "paper", "merge", "gallery",
    "figures", "figure_width", "tracking",
}  # fmt: skip
_ASIDE = {"seed", "seeds"} | _NO_DIFFERENCE  # the first two are drawn anew, and no settings
GAPS = (
    "Accuracy of the merged models minus the centralized one's of the same run, with 95% intervals "
    "(over seeds where there are several, else over test pictures)."
)
BARRIER_GAP = (
    "The same gap against the mean barrier of the loss between two sub-models of the run "
    "(mode=explain)."
)


class Gap(NamedTuple):
    """A merged model against the centralized one of its run, in accuracy.

    ``setting`` is what was changed, in words; ``bytes`` went between server and clients in all
    rounds; ``barrier`` is the mean over pairs of sub-models, None without ``mode=explain``; ``run``
    is the same text where the same was run, in whatever sweep.
    """

    setting: str
    rule: str
    title: str
    difference: float
    low: float | None
    high: float | None
    bytes: int
    barrier: float | None
    run: str


class Gaps(NamedTuple):
    """Those of some runs, and the keys in which their configurations differ.

    ``idle`` are the settings with which nobody has learned, where a gap says nothing.
    """

    keys: list[str]
    found: list[Gap]
    idle: list[str]


def gaps(runs: Sequence[Results]) -> Gaps:
    """Gaps of runs with both ways of training, by what sets their configurations apart."""
    runs = [one for one in runs if one["comparison"]]
    configs = [dict(flat(one["config"])) for one in runs]
    keys = [  # one that only some options of a group have counts where it differs among those
        key
        for key in dict.fromkeys(key for one in configs for key in one)
        if key.split(".")[0] not in _ASIDE
        and len({repr(one[key]) for one in configs if key in one}) > 1
    ]
    values = [[one.get(key) for key in keys] for one in configs]
    same = [
        repr(sorted(item for item in one.items() if item[0].split(".")[0] not in _NO_DIFFERENCE))
        for one in configs
    ]
    numeric = bool(keys) and all(type(row[0]) in (int, float) for row in values)
    order = list(range(len(runs)))
    if numeric:
        order.sort(key=lambda i: float(values[i][0]))  # type: ignore[arg-type]
    found, idle = [], []
    for i in order:
        setting = ", ".join(value_text(value) for value in values[i])
        if nobody_has_learned(runs[i]):
            idle.append(setting)
            continue
        found += [_gap(runs[i], rule, setting, same[i]) for rule in runs[i]["comparison"]]
    return Gaps(keys, found, idle)


def _gap(results: Results, rule: str, setting: str, run: str) -> Gap:
    over_seeds = view.replication(results).get(rule)
    one = over_seeds or results["comparison"][rule]["accuracy"]
    rounds = [view.by_rule(row) for row in results.get("rounds", [])]
    traffic = [row[rule]["bytes"] for row in rounds if rule in row]
    traffic = traffic or [results["models"][rule]["bytes"]]
    lines = results["explained"]["lines"] if "explained" in results else []
    own = [line["barrier"] for line in lines if is_submodel(line["second"])]
    return Gap(
        setting,
        rule,
        view.title(results, rule),
        one["difference"] or 0.0,
        one["low"],
        one["high"],
        sum(each["down"] + each["up"] for each in traffic),
        fmean(own) if own else None,
        run,
    )


def side_by_side(sweeps: Sequence[Gaps]) -> Figure | None:
    """A panel for each of some sweeps: the gap of each rule over the settings."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from fedcats.report.drawing import CENTRALIZED, MARKS, RULES, legend_beside

    sweeps = [one for one in sweeps if len({gap.setting for gap in one.found}) > 1]
    if not sweeps:
        return None
    rules = list(dict.fromkeys(gap.rule for one in sweeps for gap in one.found))
    settings = [list(dict.fromkeys(gap.setting for gap in one.found)) for one in sweeps]
    widths = [max(2, min(12, len(own))) for own in settings]
    figure = Figure(figsize=(min(16.0, 1.2 + 0.75 * sum(widths)), 3.9), layout="constrained")
    axes = figure.subplots(1, len(sweeps), sharey=True, squeeze=False, width_ratios=widths)[0]
    for ax, one, own in zip(axes, sweeps, settings, strict=True):
        ax.axhline(0, color=CENTRALIZED, linewidth=1, linestyle=(0, (4, 3)))
        for gap in one.found:
            i = rules.index(gap.rule)
            x = own.index(gap.setting) + (i - (len(rules) - 1) / 2) * min(0.2, 0.6 / len(rules))
            colour, mark = RULES[i % len(RULES)], MARKS[i % len(MARKS)]
            if gap.low is not None and gap.high is not None:
                ends = [100 * gap.low, 100 * gap.high]
                ax.plot([x, x], ends, color=colour, linewidth=1.5, alpha=0.7)
            ax.plot(x, 100 * gap.difference, mark, color=colour, markersize=6)
        step = -(-len(own) // 12)
        turned = sum(map(len, own)) > 8 * len(own)
        places = range(0, len(own), step)
        ax.set_xticks(
            places, own[::step], rotation=30 if turned else 0, ha="right" if turned else "center"
        )
        ax.set_xlabel(", ".join(short(key) for key in one.keys))
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("merged minus centralized, points")
    handles = [
        Line2D([], [], color=RULES[i % len(RULES)], marker=MARKS[i % len(MARKS)], label=rule)
        for i, rule in enumerate(view.TITLES.get(rule, rule) for rule in rules)
    ]
    legend_beside(figure, handles)
    return figure


def scatter(sweeps: Sequence[Gaps]) -> Figure | None:
    """The gap against the barrier, a point for each run and rule."""
    from matplotlib.figure import Figure

    from fedcats.report.drawing import CENTRALIZED, MARKS, RULES

    found = [gap for one in sweeps for gap in one.found if gap.barrier is not None]
    if len({gap.barrier for gap in found}) < 2:
        return None
    rules = list(dict.fromkeys(gap.rule for gap in found))
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=CENTRALIZED, linewidth=1, linestyle=(0, (4, 3)))
    for i, rule in enumerate(rules):
        mine = [gap for gap in found if gap.rule == rule]
        xs, ys = [gap.barrier for gap in mine], [100 * gap.difference for gap in mine]
        label = view.TITLES.get(rule, rule)
        colour, mark = RULES[i % len(RULES)], MARKS[i % len(MARKS)]
        ax.plot(xs, ys, mark, color=colour, markersize=6, label=label)  # type: ignore[arg-type]
    ax.set_xlabel("mean barrier between two sub-models, nats")
    ax.set_ylabel("merged minus centralized, points")
    ax.legend()
    return figure


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Spearman's rho with its 95 % interval (Bonett and Wright, Psychometrika 65, 2000).

    None for fewer than 4 pairs, or where one side does not vary.
    """
    from scipy.stats import spearmanr

    if len(x) < 4 or len({*x}) < 2 or len({*y}) < 2:
        return None
    rho = float(spearmanr(x, y).statistic)
    if abs(rho) >= 1:  # whose variance is not defined by the formula
        return rho, rho, rho
    wide = 1.959964 * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return rho, math.tanh(math.atanh(rho) - wide), math.tanh(math.atanh(rho) + wide)


def sentences(sweeps: Sequence[Gaps]) -> list[str]:
    """What the figures show, from their numbers: of the first rule of each sweep."""
    said = []
    for one in sweeps:
        if one.keys and one.idle and one.found:  # of all of them a warning says it
            names = ", ".join(short(key) for key in one.keys)
            idle = "; ".join(one.idle)
            said.append(f"Left out of the gaps, since nobody has learned there: {names} {idle}.")
        mine = [gap for gap in one.found if gap.rule == one.found[0].rule]
        if len(mine) < 2 or not one.keys:
            continue
        low, high = (f(mine, key=lambda gap: gap.difference) for f in (min, max))
        clear = sum(gap.high is not None and gap.high < 0 for gap in mine)
        said.append(
            f"Over {', '.join(short(key) for key in one.keys)} {mine[0].title} gets from "
            f"{view.points(low.difference)} points ({low.setting}) to "
            f"{view.points(high.difference)} ({high.setting}) against training in one place; "
            f"{clear} of {len(mine)} intervals lie below 0."
        )
    return [*said, *_by_barrier(sweeps)]


def _by_barrier(sweeps: Sequence[Gaps]) -> list[str]:
    """Whether runs with a larger barrier lose more; what is in several sweeps counts once."""
    runs = {
        gap.run: (gap, gap.barrier, " ".join([*map(short, one.keys), gap.setting]).strip())
        for one in sweeps
        for gap in one.found
        if gap.rule == one.found[0].rule and gap.barrier is not None
    }
    both = [(barrier, gap.difference) for gap, barrier, _ in runs.values()]
    if (found := spearman([b for b, _ in both], [g for _, g in both])) is None:
        return []
    rho, low, high = (f"{value:.2f}".replace("-", view.MINUS) for value in found)
    together = f"the larger the barrier, the {'more' if found[0] < 0 else 'less'} is lost"
    if found[1] == found[2]:
        link = f"{together}, without exception: Spearman's rho = {rho}"
    elif found[1] <= 0 <= found[2]:
        link = f"barrier and gap are not shown to go together: Spearman's rho = {rho}"
    else:
        link = f"{together}: Spearman's rho = {rho}"
    ends = f" (95% interval {low} to {high})" if found[1] < found[2] else ""
    worst, at_worst, which = min(runs.values(), key=lambda one: one[0].difference)
    _, largest, where = max(runs.values(), key=lambda one: one[1])
    of_worst = ", ".join(filter(None, [worst.title, which]))
    return [
        f"Over {len(runs)} runs {link}{ends}. The lowest gap, {view.points(worst.difference)} "
        f"points ({of_worst}), comes with a mean barrier of {at_worst:.4f} nats; the largest "
        f"barrier is {largest:.4f}{f' ({where})' if where else ''}."
    ]


def rows(sweeps: Sequence[Gaps]) -> list[list[object]]:
    """A header, and every gap as numbers, of shares from 0 to 1; None: there is none."""
    found: list[list[object]] = [
        ["varied", "setting", "rule", "difference", "low", "high", "bytes", "barrier"]
    ]
    for one in sweeps:
        for gap in one.found:
            of_gap = gap.difference, gap.low, gap.high, gap.bytes, gap.barrier
            found.append([";".join(one.keys), gap.setting, gap.rule, *of_gap])
    return found


def table(sweeps: Sequence[Gaps]) -> Table | None:
    """Every gap as text."""
    rows: list[tuple[str, ...]] = [
        (
            ", ".join(short(key) for key in one.keys) or view.MINUS,
            gap.setting or view.MINUS,
            gap.title,
            view.points(gap.difference),
            view.interval({"difference": gap.difference, "low": gap.low, "high": gap.high}),
            size_text(gap.bytes),
            "" if gap.barrier is None else f"{gap.barrier:.4f}",
        )
        for one in sweeps
        for gap in one.found
    ]
    header: tuple[str, ...] = ("varied", "setting", "model", "points", "95% interval", "bytes")
    note = "Merged minus centralized; bytes: weights sent and received in all rounds"
    if any(row[-1] for row in rows):
        header, note = (*header, "barrier"), f"{note}; barrier: nats"
    else:
        rows = [row[:-1] for row in rows]
    return Table("The gap", header, rows, (0, 1, 2), f"{note}.") if rows else None
