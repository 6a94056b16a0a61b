"""Figures of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from fedcats.merging.registry import FOLDS
from fedcats.merging.registry import RULES as RULE_NAMES
from fedcats.report import view
from fedcats.report.varied import (
    EPSILON,
    REFERENCES,
    SEEDS,
    Row,
    distinct_values,
    is_numeric,
    merged_rows,
    model_name,
    short,
    title,
    value_text,
    varied_names,
    x_axis,
)
from fedcats.results.names import IN_ONE_PLACE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_PANELS = 4  # more groups than this share one panel


_ROWS = 40  # no heat map and no dot plot with more rows


def curves(rows: Sequence[Row]) -> Figure | None:
    """Scores over one numeric parameter, a column of panels for each value of another."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from fedcats.report.drawing import MARKS, RULES, legend_beside

    x = x_axis(rows)
    if x in (None, EPSILON):
        return None
    merged = [row for row in merged_rows(rows) if row.get(x) is not None]
    others = [name for name in varied_names(merged) if name not in (x, *SEEDS)]
    facet = next((name for name in others if is_numeric(merged, name)), next(iter(others), None))
    groups = distinct_values(merged, facet) if facet else [None]
    if len(groups) > _PANELS:
        facet, groups = None, [None]
    series = [name for name in (*others, "model") if name != facet]
    figure = Figure(
        figsize=(max(5.2, min(9.6, 3.2 * len(groups) + 0.6)), 7.2), layout="constrained"
    )
    axes = figure.subplots(3, len(groups), squeeze=False, sharex=True, sharey="row")
    keys = list(dict.fromkeys(tuple(row.get(name) for name in series) for row in merged))
    for column, group in enumerate(groups):
        here = [row for row in rows if facet is None or row.get(facet) in (None, group)]
        if facet:
            axes[0][column].set_title(f"{short(facet)} = {value_text(group)}")
        for ax, measure in zip(axes[:, column], view.SCORES, strict=True):
            _levels(ax, here, x, measure)
            for i, key in enumerate(keys):
                line = [
                    row
                    for row in here
                    if row in merged and tuple(row.get(name) for name in series) == key
                ]
                _curve(ax, line, x, measure, RULES[i % len(RULES)], MARKS[i % len(MARKS)])
        axes[-1][column].set_xlabel(short(x))
    for ax, measure in zip(axes[:, 0], view.SCORES, strict=True):
        ax.set_ylabel(measure)
        low, high = ax.get_ylim()
        if high - low < 0.01:  # all the same: no axis in 1e-17
            ax.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)
    handles = [
        Line2D([], [], color=RULES[i % len(RULES)], marker=MARKS[i % len(MARKS)], label=label)
        for i, key in enumerate(keys)
        for label in [", ".join(title(v) for v in reversed(key))]
    ]
    handles += [
        Line2D([], [], label=title(name), **_level_look(name))
        for name in dict.fromkeys(row["model"] for row in rows if row.get(x) is None)
        if _is_level(name)
    ]
    legend_beside(figure, handles)
    return figure


def heat(rows: Sequence[Row]) -> Figure | None:
    """Accuracy where two or more things vary: one along x, the combinations of the rest along y."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from fedcats.report.drawing import INK, MANY, draw_cells

    x = x_axis(rows)
    if x is None:
        return None
    merged = [row for row in merged_rows(rows) if row.get(x) is not None]
    others = [name for name in (*varied_names(merged), "model") if name not in (x, *SEEDS)]
    if len(distinct_values(merged, "model")) == 1:
        others.remove("model")
    lines = list(dict.fromkeys(tuple(row.get(name) for name in others) for row in merged))
    if not others or not 2 <= len(lines) <= _ROWS:
        return None
    xs = distinct_values(merged, x)
    cells: dict[tuple[int, int], list[float]] = {}
    for row in merged:
        at = (lines.index(tuple(row.get(name) for name in others)), xs.index(row[x]))
        cells.setdefault(at, []).append(row["accuracy"])
    means = {at: mean(values) for at, values in cells.items()}
    low, high = min(means.values()), max(means.values())
    figure = Figure(
        figsize=(min(9.6, 2.4 + 0.72 * len(xs)), 1.1 + 0.45 * len(lines)), layout="constrained"
    )
    ax = figure.subplots()
    shades = [[0.0] * len(xs) for _ in lines]
    texts = [[""] * len(xs) for _ in lines]
    for (i, j), value in means.items():
        share = (value - low) / (high - low) if high > low else 0.5
        shades[i][j], texts[i][j] = 0.06 + 0.5 * share, f"{100 * value:.1f}"
        if value == high:
            frame = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, edgecolor=INK)
            ax.add_patch(frame)
    draw_cells(ax, shades, texts, size=9)
    step = -(-len(xs) // MANY)
    ax.set_xticks(range(0, len(xs), step), [value_text(value) for value in xs[::step]])
    labels = [", ".join(title(v) for v in line) for line in lines]
    ax.set_yticks(range(len(lines)), labels)
    ax.set_xlabel(short(x))
    ax.set_ylabel(", ".join(short(name) for name in others))
    return figure


def dots(rows: Sequence[Row]) -> Figure | None:
    """Scores of every model, one row each, where no numeric parameter was varied."""

    from fedcats.metrics import wilson
    from fedcats.report.drawing import CENTRALIZED, MARKS, MUTED, RULES, on_hover, score_panels

    if x_axis(rows) is not None or not 2 <= len(rows) <= _ROWS:
        return None
    merged = list(dict.fromkeys(row["model"] for row in merged_rows(rows)))
    figure, axes = score_panels([model_name(row, rows) for row in rows])
    for ax, key in zip(axes, view.SCORES, strict=True):
        ax.set_title(key)
        for line, row in enumerate(rows):
            colour, mark = CENTRALIZED if row["model"] in IN_ONE_PLACE else MUTED, "o"
            mark = "D" if row["model"] == "same_steps" else mark
            if row["model"] in merged:
                i = merged.index(row["model"])
                colour, mark = RULES[i % len(RULES)], MARKS[i % len(MARKS)]
            if math.isnan(row[key]):
                continue
            drawn = ax.plot(row[key], line, mark, color=colour, markersize=6.5, zorder=2.1)
            if key == "accuracy":
                ends = wilson(round(row["accuracy"] * row["n"]), row["n"])
                drawn += ax.plot(ends, [line, line], color=colour, linewidth=1.4, alpha=0.6)
            on_hover(f"{model_name(row, rows)}: {key} {row[key]:.4f}", *drawn)
    return figure


def _curve(ax: Axes, line: Sequence[Row], x: str, measure: str, colour: str, mark: str) -> None:
    """One merged model over x: the mean where several seeds give a value, else with its band."""
    from fedcats.metrics import wilson

    xs = distinct_values(line, x)
    at = {value: [row for row in line if row[x] == value] for value in xs}
    if any(len(found) > 1 for found in at.values()):
        ax.plot(
            [row[x] for row in line], [row[measure] for row in line],
            mark, color=colour, markersize=4, alpha=0.4, linestyle="",
        )  # fmt: skip
    elif measure == "accuracy" and len(xs) > 1:
        ends = [wilson(round(at[v][0]["accuracy"] * at[v][0]["n"]), at[v][0]["n"]) for v in xs]
        lows, highs = zip(*ends, strict=True)
        ax.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
    means = [mean(row[measure] for row in at[value]) for value in xs]
    ax.plot(xs, means, marker=mark, color=colour, markersize=5)


def _levels(ax: Axes, rows: Sequence[Row], x: str, measure: str) -> None:
    """Horizontal lines: what does not depend on x."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get(x) is None and _is_level(row["model"]):
            found.setdefault(row["model"], []).append(row[measure])
    for name, values in found.items():
        for value in [mean(values)] if name in REFERENCES else sorted(set(values)):
            ax.axhline(value, **_level_look(name))


def _is_level(model: str) -> bool:
    """Not of the package's many rules that are no folds: of these the frontier tells."""
    return model in FOLDS or model not in RULE_NAMES


def _level_look(model: str) -> dict[str, Any]:
    from fedcats.report.drawing import CENTRALIZED, INK, MUTED

    looks = {"best_submodel": (MUTED, ":"), **dict.fromkeys(IN_ONE_PLACE, (CENTRALIZED, "--"))}
    colour, dash = looks.get(model, (INK, "-."))
    return {"color": colour, "linestyle": dash, "linewidth": 0.8 if model == "same_steps" else 1.4}
