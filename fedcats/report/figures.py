"""The report's figures: matplotlib, the same bytes from the same results.

Each function takes the results dict and returns a :class:`matplotlib.figure.Figure`, or None
where the run has nothing to draw; :func:`write` draws them all into a folder. Colours are those
of Okabe and Ito, which colour-blind readers can tell apart, and marks differ in shape as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedcats.metrics import wilson
from fedcats.report import explain_figures, view
from fedcats.report.confusion import confusion, confusion_submodels
from fedcats.report.drawing import (
    BARS,
    CENTRALIZED,
    INK,
    MANY,
    OWN,
    Drawn,
    draw_cells,
    hollow_mark,
    legend_beside,
    look,
    name_cells,
    on_hover,
    score_panels,
    short,
    write,
)
from fedcats.report.frontier import FRONTIER, frontier
from fedcats.report.loss_figure import LOSS, history, loss
from fedcats.report.privacy import CURVES, curves
from fedcats.report.seeds_figure import SEEDS, over_seeds
from fedcats.report.sweep import sweep_rows
from fedcats.results import Model, Results, Score
from fedcats.results.names import is_submodel


def run_figures(results: Results, folder: Path) -> list[Drawn]:
    """Draw everything that one run has to show into ``folder/figures``."""
    return write(folder / "figures", drawings(results, folder), view.figure_files(results))


def drawings(
    results: Results, folder: Path
) -> Mapping[str, tuple[str, Callable[[], Figure | None]]]:
    """Caption of each figure of a run, and what draws it, by name; ``folder`` as of `history`."""
    what = view.things(results)
    dotted = "; dotted: with as many steps as a client" * ("same_steps" in results["models"])
    held = history(folder, results, "validation_loss")
    fig = " (the paper’s Fig. 3, twice)" if view.has_paper(results) else ""
    dashed = f"; dashed: on held-out {what}, of the clients the median" if held else ""
    hollow = ", hollow marks: the paper's values" if view.has_paper(results) else ""
    return MappingProxyType(
        {
            "seeds": (SEEDS, lambda: over_seeds(view.replication(results))),
            "scores": (
                f"Scores on the test {what} with 95% Wilson intervals; dashed: the centralized "
                f"model{hollow}.",
                lambda: scores(results),
            ),
            "difference": (
                "Merged minus centralized on the same test set, with 95% intervals where there are "
                f"any; right of 0 the merged model is better{hollow}.",
                lambda: difference(results),
            ),
            "confusion": (
                f"Test {what} by true class (rows) and predicted class (columns); shading: share "
                "of the true class.",
                lambda: confusion(results),
            ),
            "loss": (
                f"{LOSS}{fig}{dotted}{dashed}.",
                lambda: loss(results, history(folder, results), held),
            ),
            "weights": (
                "How much of each client's weights is in each merged model.",
                lambda: weights(results),
            ),
            "who-has-what": (
                f"How many training {what} of each class each client has.",
                lambda: who_has_what(
                    [shard["per_class"] for shard in results["data"]["shards"]],
                    results["data"]["classes"],
                ),
            ),
            "by-client": (
                f"Accuracy of each model (rows) on the {what} held out at each client (columns).",
                lambda: by_client(results),
            ),
            "frontier": (FRONTIER, lambda: frontier(sweep_rows([({}, results)]))),
            "rounds": (
                "The merged models after each round; dashed: the centralized model.",
                lambda: rounds(results),
            ),
            "membership": (CURVES, lambda: curves(results)),
            "confusion_submodels": (
                "The clients' own models, one confusion matrix each.",
                lambda: confusion_submodels(results),
            ),
            **explain_figures.all_figures(results, folder),
        },
    )


def scores(results: Results) -> Figure | None:
    """Accuracy, precision and recall of every model, one row each (Tables I to III)."""
    own = view.submodels(results)
    crowded = len(own) > MANY
    names = [n for n in view.ordered(results) if not (crowded and is_submodel(n))]
    labels = [view.title(results, name) for name in names]
    if crowded:
        labels.append(f"{len(own)} sub-models")
    if not labels:
        return None
    figure, axes = score_panels(labels)
    binary = view.is_binary(results)
    base = view.centralized(results)
    for ax, key in zip(axes, view.SCORES, strict=True):
        ax.set_title(_title(results, key))
        if base:
            ax.axvline(base[key], color=CENTRALIZED, linewidth=1, linestyle=(0, (4, 3)))
        for row, name in enumerate(names):
            model = results["models"][name]
            colour, mark = look(results, name)
            text, at = f"{labels[row]}: {key} {model[key]:.4f}", (row, row)
            if math.isnan(view.score(results, model, key)):
                continue
            drawn = ax.plot(model[key], row, mark, color=colour, markersize=6.5, zorder=2.1)
            if binary or key == "accuracy":
                low, high = _wilson(results, model, key)
                drawn += ax.plot((low, high), at, color=colour, linewidth=1.4, alpha=0.6)
                text += f" ({low:.4f} to {high:.4f})"
            on_hover(text, *drawn)
            there = view.published(results, name)
            if there:
                paper = hollow_mark(ax, there[key], row, colour)
                on_hover(f"the paper, {labels[row]}: {key} {there[key]:.4f}", paper)
        if crowded:
            found = [model[key] for model in own.values()]
            ax.plot(found, [len(names)] * len(found), "o", color=OWN, markersize=6, alpha=0.35)
            ax.plot(median(found), len(names), "|", color=INK, markersize=14, markeredgewidth=2)
        ax.locator_params(axis="x", nbins=5)
    if view.has_paper(results):
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.3}
        legend_beside(
            figure,
            [
                Line2D([], [], marker="o", color=INK, linestyle="", label="this run"),
                Line2D([], [], marker="D", color=INK, linestyle="", label="the paper", **hollow),
            ],
        )
    said = (
        f"{title} {', '.join(f'{key} {model[key]:.4f}' for key in view.SCORES)}"
        for title, model in zip(labels, (results["models"][name] for name in names), strict=False)
    )
    figure.set_label(f"{'; '.join(said)}.")
    return figure


def difference(results: Results) -> Figure | None:
    """Draw what merging costs: each merged model's scores minus the centralized ones."""
    found = results.get("comparison") or {}
    if not found:
        return None
    figure, axes = score_panels(
        [view.title(results, name) for name in found], row=0.34, sharex=True
    )
    base = view.published(results, "centralized")
    for ax, key in zip(axes, view.SCORES, strict=True):
        ax.set_title(_title(results, key))
        ax.axvline(0, color=CENTRALIZED, linewidth=1, linestyle=(0, (4, 3)))
        for row, (name, one) in enumerate(found.items()):
            colour, mark = look(results, name)
            low, high = one[key]["low"], one[key]["high"]
            drawn = ax.plot(
                100 * one[key]["difference"], row, mark, color=colour, markersize=7, zorder=2.1
            )
            if low is not None and high is not None:
                drawn += ax.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=1.6)
            said = f"{view.points(one[key]['difference'])} ({view.interval(one[key])})"
            on_hover(f"{view.title(results, name)}: {key} {said} points", *drawn)
            there = view.published(results, name)
            if there and base:
                hollow_mark(ax, 100 * (there[key] - base[key]), row, colour)
        ax.set_xlabel("percentage points")
    each = (
        f"{view.title(results, name)} {view.points(one['difference'])} ({view.interval(one)})"
        for name, one in ((name, every["accuracy"]) for name, every in found.items())
    )
    figure.set_label(f"Accuracy, in points: {'; '.join(each)}.")
    return figure


def weights(results: Results) -> Figure | None:
    """Effective weight of each client in each merged model."""
    rules = {n: m for n, m in view.merged(results).items() if m.get("effective_weights")}
    if not rules:
        return None
    everyone = sorted({client for model in rules.values() for client in view.clients(model)})
    place = {client: i for i, client in enumerate(everyone)}
    figure = Figure(figsize=(min(9.6, 4.2 + 0.6 * len(everyone)), 3.4), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(rules)
    for i, (name, model) in enumerate(rules.items()):
        colour, _ = look(results, name)
        shares = [100 * weight for weight in model["effective_weights"]]
        centres = [
            place[client] + (i - (len(rules) - 1) / 2) * width for client in view.clients(model)
        ]
        many = f", N_eff = {model['n_eff']:.1f} of {len(shares)}" if "n_eff" in model else ""
        bars = ax.bar(
            centres, shares, width * 0.92, color=colour, label=view.title(results, name) + many
        )
        texts = [f"{share:.1f}" if share >= 1 else f"{share:.1g}" for share in shares]
        for client, text, bar in zip(view.clients(model), texts, bars, strict=True):
            on_hover(f"{view.title(results, name)}: client {client}, {text}%", bar)
        if len(everyone) * len(rules) <= 2 * MANY:
            ax.bar_label(bars, texts, padding=2, fontsize=8)
    step = max(1, len(everyone) // 20)
    ax.set_xticks(range(0, len(everyone), step), [str(c) for c in everyone[::step]])
    ax.set_xlim(-0.7, len(everyone) - 0.3)
    ax.set_xlabel("client")
    ax.set_ylabel("share of the merged weights, %")
    ax.grid(axis="x", visible=False)
    legend_beside(figure, *ax.get_legend_handles_labels(), loc="outside upper left")
    return figure


def who_has_what(
    shards: Sequence[Mapping[str, int]], classes: Sequence[str], *, always: bool = False
) -> Figure | None:
    """Training images of each class at each client; None where all have the same (or always)."""
    counts = [[shard.get(name, 0) for name in classes] for shard in shards]
    if not counts or (not always and all(row == counts[0] for row in counts)):
        return None
    height = 1.3 + 0.28 * min(len(shards), 2 * MANY)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    ax = figure.subplots()
    if len(classes) <= len(BARS):
        _stacked(ax, counts, classes)
        ax.set_xlabel("training images")
        legend_beside(figure, *ax.get_legend_handles_labels(), loc="outside upper left")
    else:
        most = max(map(max, counts)) or 1
        shades = [[0.05 + 0.75 * n / most if n else 0.0 for n in row] for row in counts]
        draw_cells(ax, shades, [[str(n) for n in row] for row in counts])
        name_cells(ax.xaxis, classes, 6.0)
    step = -(-len(shards) // (2 * MANY))
    ax.set_yticks(range(0, len(shards), step))
    ax.set_ylim(len(shards) - 0.4, -0.6)
    ax.set_ylabel("client")
    ax.grid(axis="y", visible=False)
    return figure


def _stacked(ax: Axes, counts: list[list[int]], classes: Sequence[str]) -> None:
    """Draw a bar for each client, a colour for each class."""
    left = [0] * len(counts)
    for k, name in enumerate(classes):
        widths = [row[k] for row in counts]
        ax.barh(range(len(counts)), widths, 0.8, left=left, color=BARS[k], label=short(name))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    if len(counts) <= MANY:
        for i, row in enumerate(counts):
            text = " + ".join(map(str, row))
            ax.text(left[i], i, f"  {text}", va="center", fontsize=8)
        ax.set_xlim(right=1.18 * max(left))


def by_client(results: Results) -> Figure | None:
    """Each model's accuracy on each client's held-out images, unless there are very many."""
    names = [n for n in view.ordered(results) if results["models"][n].get("by_client")]
    if not names or len(names) > 4 * MANY:
        return None
    shares = [results["models"][name]["by_client"] for name in names]
    found = [value for row in shares for value in row if value is not None]
    low, high = min(found), max(found)
    shades = [
        [0.0 if v is None else 0.05 + 0.75 * (v - low) / max(high - low, 1e-9) for v in row]
        for row in shares
    ]
    texts = [["" if v is None else f"{100 * v:.0f}" for v in row] for row in shares]
    size = (min(9.6, 2.6 + 0.5 * len(shares[0])), 1.0 + 0.3 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    draw_cells(ax, shades, texts)
    ax.set_yticks(range(len(names)), [view.title(results, name) for name in names])
    step = max(1, len(shares[0]) // 20)
    ax.set_xticks(range(0, len(shares[0]), step))
    ax.set_xlabel("held out at client")
    ax.set_title("accuracy, %")
    return figure


def rounds(results: Results) -> Figure | None:
    """Scores of the merged models after each round, if there was more than one."""
    found = {one["round"]: view.by_rule(one) for one in results.get("rounds", [])}
    if len(found) < 2:
        return None
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    base = view.centralized(results)
    for ax, key in zip(axes, view.SCORES, strict=True):
        ax.set_title(_title(results, key))
        if base:
            ax.axhline(base[key], color=CENTRALIZED, linewidth=1.2, linestyle=(0, (4, 3)))
        for name in view.merged(results):
            points = [(number, one[name][key]) for number, one in found.items() if name in one]
            colour, mark = look(results, name)
            line = ax.plot(*zip(*points, strict=True), marker=mark, color=colour, markersize=5.5)
            values = ", ".join(f"{value:.4f}" for _, value in points)
            on_hover(f"{view.title(results, name)}: {key} by round {values}", *line)
        ax.set_xlabel("round")
        ax.xaxis.get_major_locator().set_params(integer=True)
    handles = [
        Line2D([], [], color=colour, marker=mark, label=view.title(results, name))
        for name in view.merged(results)
        for colour, mark in [look(results, name)]
    ]
    legend_beside(figure, handles)
    return figure


def _title(results: Results, key: Score) -> str:
    return key if key == "accuracy" or view.is_binary(results) else f"{key} (macro)"


def _wilson(results: Results, model: Model, key: Score) -> tuple[float, float]:
    """Wilson interval of a two-class score; of the accuracy for any number of classes."""
    matrix = model["confusion_matrix"]
    if key == "accuracy":
        return wilson(sum(matrix[i][i] for i in range(len(matrix))), model["n"])
    of = view.positive(results)
    false = matrix[1 - of][of] if key == "precision" else matrix[of][1 - of]
    return wilson(matrix[of][of], matrix[of][of] + false)
