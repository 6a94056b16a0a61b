"""Figures of ``mode=explain``: what the stored sub-models say of the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fedcats.metrics.measures import ECE_BINS
from fedcats.report import view
from fedcats.report.drawing import (
    CENTRALIZED,
    INK,
    MANY,
    MUTED,
    OWN,
    draw_cells,
    legend_beside,
    look,
)
from fedcats.results import Results
from fedcats.results.explained import Explained, Line
from fedcats.results.names import client_of, is_submodel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedcats.metrics import Predictions

_LAYERS = 40  # of more, the largest are drawn
_CLASSES = 3  # of more, no panel each
_GRID = np.linspace(0, 1, 201)


def kinds(results: Results, lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines by what they join, in words."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        ends = [_kind(results, line[end]) for end in ("first", "second")]
        words = "two sub-models" if ends[0] == ends[1] else " and ".join(ends)
        found.setdefault(words, []).append(line)
    return found


def _kind(results: Results, name: str) -> str:
    if name == "centralized":
        return "the centralized model"
    return "a sub-model" if is_submodel(name) else view.title(results, name)


def orders(results: Results, explained: Explained) -> Figure | None:
    """Accuracy of Polyak over orders, by beta, and by who is last with the first beta."""
    found = explained["orders"]
    if not found:
        return None
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.4])
    base = view.centralized(results)
    for ax in (left, right):
        if base:
            ax.axhline(base["accuracy"], color=CENTRALIZED, linewidth=1, linestyle=(0, (4, 3)))
    for x, one in enumerate(found):
        near, mean = [one["mean"] - one["sd"], one["mean"] + one["sd"]], one["mean"]
        left.plot([x, x], [one["worst"], one["best"]], color=MUTED, linewidth=1.2)
        left.plot([x, x], near, color=MUTED, linewidth=9, alpha=0.35, solid_capstyle="butt")
        left.plot(x, mean, "_", color=INK, markersize=16, markeredgewidth=2)
        left.plot(x, one["reported"], "s", color=INK, markersize=6)
        left.plot(x, one["plain_mean"], "x", color=INK, markersize=7, markeredgewidth=1.5)
    left.set_xticks(range(len(found)), [f"{one['beta']:g}" for one in found])
    left.set_xlim(-0.7, len(found) - 0.3)
    left.set_xlabel("beta")
    left.set_ylabel("accuracy")
    left.grid(axis="x", visible=False)
    merged = results["models"].get("polyak")
    own = merged.get("beta") if merged else None
    first = next((one for one in found if one["beta"] == own), found[0])
    last = sorted(set(first["last"]))
    for x, client in enumerate(last):
        mine = [a for a, c in zip(first["accuracies"], first["last"], strict=True) if c == client]
        right.plot([x] * len(mine), mine, "o", color=OWN, markersize=4, alpha=0.35)
        right.plot(x, float(np.mean(mine)), "_", color=INK, markersize=14, markeredgewidth=2)
    step = -(-len(last) // 20)
    right.set_xticks(range(0, len(last), step), [str(client) for client in last[::step]])
    right.set_xlabel(f"client merged last, beta {first['beta']:g}")
    right.grid(axis="x", visible=False)
    handles = [
        Line2D([], [], color=MUTED, linewidth=1.2, label="worst to best order"),
        Line2D([], [], color=MUTED, linewidth=9, alpha=0.35, label="mean ± SD"),
        Line2D([], [], color=INK, marker="s", linestyle="", label="the run's order"),
        Line2D([], [], color=INK, marker="x", linestyle="", label="plain mean"),
    ]
    if base:
        dashed = Line2D([], [], color=CENTRALIZED, linestyle=(0, (4, 3)), label="centralized")
        handles.append(dashed)
    legend_beside(figure, handles)
    return figure


def barriers(results: Results, explained: Explained) -> Figure | None:
    """Barrier of the loss between each two models, and how alike the updates' directions are."""
    lines = explained["lines"]
    if not lines:
        return None
    names = list(dict.fromkeys(name for one in lines for name in (one["first"], one["second"])))
    place = {name: i for i, name in enumerate(names)}
    table = np.full((len(names), len(names)), np.nan)
    for one in lines:
        i, k = place[one["first"]], place[one["second"]]
        table[i, k] = table[k, i] = one["barrier"]
    cosines = np.array(explained["cosines"])
    clients = [str(client) for client in explained["clients"]]
    size = 1.6 + 0.4 * min(len(names), 2 * MANY)
    figure = Figure(figsize=(min(12.0, 2 * size + 0.8), size), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[len(names), max(1, len(clients))])
    labels = [
        str(client_of(name)) if is_submodel(name) else view.title(results, name) for name in names
    ]
    _heat(left, table, labels, "barrier, nats", digits=3)
    np.fill_diagonal(cosines, np.nan)
    _heat(right, cosines, clients, "cosine of updates", digits=2)
    return figure


def _heat(
    ax: Axes, table: NDArray[np.float64], labels: Sequence[str], title: str, digits: int
) -> None:
    known = table[np.isfinite(table)]
    low, high = known.min(initial=0.0), known.max(initial=10.0**-digits)
    shades = 0.05 + 0.6 * (table - low) / (high - low)
    texts = [[f"{v:.{digits}f}".lstrip("0") if v == v else "" for v in row] for row in table]
    draw_cells(ax, np.nan_to_num(shades, nan=0.0).tolist(), texts, size=6 if len(table) > 8 else 8)
    step = -(-len(labels) // (2 * MANY))
    places = range(0, len(labels), step)
    turned = 90 if max(map(len, labels)) > 3 else 0
    ax.set_xticks(places, labels[::step], rotation=turned)
    ax.set_yticks(places, labels[::step])
    ax.set_title(title)


def lines(results: Results, explained: Explained) -> Figure | None:
    """Loss and accuracy along the lines, a column for each kind of ends."""
    groups = kinds(results, explained["lines"])
    if not groups:
        return None
    figure = Figure(figsize=(3.1 * len(groups) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False)
    for column, (name, group) in enumerate(groups.items()):
        axes[0][column].set_title("\nand ".join(name.split(" and ")), fontsize=9)
        for ax, key in zip(axes[:, column], ("loss", "accuracy"), strict=True):
            curves = np.array([cast(dict[str, list[float]], one)[key] for one in group])
            ax.plot(explained["points"], curves.T, color=OWN, linewidth=1, alpha=0.5)
            middle = np.median(curves, axis=0)
            ax.plot(explained["points"], middle, color=INK, linewidth=2)
        axes[1][column].set_xlabel("share of the second")
    for ax, key in zip(axes[:, 0], ("loss", "accuracy"), strict=True):
        ax.set_ylabel(key)
    return figure


def updates(results: Results, explained: Explained) -> Figure | None:
    """How far each layer moved, and how alike the clients' moves are."""
    layers = explained["layers"]
    if len(layers) > _LAYERS:
        kept = {one["layer"] for one in sorted(layers, key=lambda one: -one["weights"])[:_LAYERS]}
        layers = [one for one in layers if one["layer"] in kept]
    if not layers:
        return None
    figure = Figure(figsize=(7.6, 1.2 + 0.28 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(layers))
    left.barh(rows, [100 * (one["relative"] or 0) for one in layers], 0.7, color=MUTED)
    left.set_yticks(rows, [one["layer"] for one in layers])
    left.set_ylim(len(layers) - 0.4, -0.6)
    left.set_xlabel("length of an update, % of the start's")
    cosines = [(row, one["cosine"]) for row, one in enumerate(layers) if one["cosine"] is not None]
    right.plot([c for _, c in cosines], [row for row, _ in cosines], "o", color=INK, markersize=6)
    right.axvline(0, color=MUTED, linewidth=1)
    right.set_xlabel("mean cosine of two clients' updates")
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
    return figure


def clients(results: Results, explained: Explained) -> Figure | None:
    """Each model on each client's photos: those trained on, those held out, by class."""
    own = explained["own"]
    if not own or len(own) > 4 * MANY:
        return None
    classes = results["data"]["classes"]
    each = range(len(classes)) if len(classes) <= _CLASSES else ()
    parts: list[tuple[str, list[list[float | None]]]] = []
    for key, words in (("trained", "training photos"), ("held_out", "held-out photos")):
        whole = [cast(dict[str, list[float | None]], one)[key] for one in own]
        if all(value is None for row in whole for value in row):
            continue
        parts.append((words, whole))
        for k in each:
            by_class = [
                cast(dict[str, list[list[float | None]]], one)[f"{key}_by_class"] for one in own
            ]
            parts.append((f"{classes[k]}, {words}", [[v[k] for v in row] for row in by_class]))
    columns = 1 + len(each)
    count = len(own[0]["trained"])
    lines = -(-len(parts) // columns)
    width = min(4.2, 1.2 + 0.3 * min(count, MANY))
    figure = Figure(
        figsize=(width * columns + 1.2, (0.8 + 0.22 * len(own)) * lines), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    step = max(1, count // 10)
    for ax, (words, table) in zip(axes.flat, parts, strict=True):
        found = [v for row in table for v in row if v is not None] or [0.0]
        low, wide = min(found), max(max(found) - min(found), 1e-9)
        shades = [[0.0 if v is None else 0.05 + 0.75 * (v - low) / wide for v in r] for r in table]
        texts = [["" if v is None else f"{100 * v:.0f}" for v in row] for row in table]
        draw_cells(ax, shades, texts, size=6)
        ax.set_title(words.replace("photos", view.things(results)), fontsize=9)
        ax.set_xticks(range(0, count, step))
        ax.set_xlabel("client")
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(own)), [view.title(results, one["model"]) for one in own])
        ax.tick_params(axis="y", labelsize=7)
    return figure


def without(results: Results, explained: Explained) -> Figure | None:
    """What each client adds: leave-one-out by rule, Shapley values of the plain mean."""
    panels: list[tuple[str, str, list[tuple[int, float, float, float]]]] = [
        (
            f"in {view.title(results, rule)}",
            look(results, rule)[0],
            [(o["client"], o["difference"], o["low"], o["high"]) for o in found],
        )
        for rule, found in explained["without"].items()
    ]
    if game := explained["shapley"]:
        rows = zip(game["clients"], game["values"], game["low"], game["high"], strict=True)
        panels.append(("Shapley, plain mean", INK, list(rows)))
    if not panels:
        return None
    everyone = sorted({row[0] for _, _, rows in panels for row in rows})
    place = {client: i for i, client in enumerate(everyone)}
    row = 0.26 if len(everyone) <= 2 * MANY else 0.1
    figure = Figure(
        figsize=(max(3.0, 2.6 * len(panels) + 0.6), 1.3 + row * len(everyone)), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, colour, rows_) in zip(axes, panels, strict=True):
        ax.axvline(0, color=MUTED, linewidth=1)
        for client, value, low, high in rows_:
            y = place[client]
            ax.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=1.4, alpha=0.6)
            ax.plot(100 * value, y, "o", color=colour, markersize=5)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("points of accuracy")
        ax.grid(axis="y", visible=False)
    step = -(-len(everyone) // (2 * MANY))
    axes[0].set_yticks(range(0, len(everyone), step), [str(c) for c in everyone[::step]])
    axes[0].set_ylim(len(everyone) - 0.4, -0.6)
    axes[0].set_ylabel("client")
    return figure


def _predictions(results: Results, folder: Path) -> Iterator[tuple[str, Predictions]]:
    """What the models said of the test images; others lie on top of the clients' own."""
    from fedcats.metrics import read_predictions

    names = list(view.ordered(results))
    for name in sorted(names, key=lambda one: not is_submodel(one)):
        path = folder / results["models"][name]["predictions"]
        if path.is_file():
            yield name, read_predictions(path)


def _style(results: Results, name: str) -> dict[str, object]:
    colour, _ = look(results, name)
    own = is_submodel(name)
    return {"color": colour, "linewidth": 0.8 if own else 1.8, "alpha": 0.35 if own else 1.0}


def curves(results: Results, folder: Path) -> Figure | None:
    """ROC and precision-recall curves; of more than two classes means, one against the rest."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, found in _predictions(results, folder):
        k = len(found.classes)
        rates, precisions = [], []
        for c in [view.positive(results)] if k == 2 else range(k):
            truth, p = found.labels == c, found.probabilities[:, c]
            if truth.all() or not truth.any():
                continue
            false, true, _ = roc_curve(truth, p)
            precision, recall, _ = precision_recall_curve(truth, p)
            rates.append((false, true) if k == 2 else (_GRID, np.interp(_GRID, false, true)))
            whole = (recall, precision)
            down = (_GRID, np.interp(_GRID, recall[::-1], precision[::-1]))
            precisions.append(whole if k == 2 else down)
        if rates:
            for ax, parts in ((left, rates), (right, precisions)):
                ax.plot(
                    parts[0][0], np.mean([y for _, y in parts], axis=0), **_style(results, name)
                )
    if not left.lines:
        return None
    macro = "" if view.is_binary(results) else ", mean over classes"
    left.set_xlabel("false positive rate")
    left.set_ylabel(f"true positive rate{macro}")
    right.set_xlabel("recall")
    right.set_ylabel(f"precision{macro}")
    for ax in (left, right):
        low = min(0.9, *(float(np.min(line.get_ydata()[1:-1], initial=1)) for line in ax.lines))
        ax.set_ylim(low - 0.02, 1.01)
    _legend(figure, results)
    return figure


def reliability(results: Results, folder: Path) -> Figure | None:
    """How often the predicted class is right, by the probability that it was given."""
    from sklearn.calibration import calibration_curve

    names = dict(_predictions(results, folder))
    if not names:
        return None
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    start = 1.0
    for name, found in names.items():
        sure = found.probabilities.max(axis=1).astype(float).clip(0, 1)
        right = found.probabilities.argmax(axis=1) == found.labels
        share, mean = calibration_curve(right, sure, n_bins=ECE_BINS)
        mark = "" if is_submodel(name) else "o"
        ax.plot(mean, share, marker=mark, markersize=4, **_style(results, name))  # type: ignore[arg-type]
        start = min(start, float(mean.min()))
    ax.set_xlim(max(0.0, start - 0.03), 1.01)
    ax.set_ylim(top=1.03)
    ax.set_xlabel("probability of the predicted class")
    ax.set_ylabel("share that is right")
    _legend(figure, results)
    return figure


def _legend(figure: Figure, results: Results) -> None:
    names = [*view.of_all(results)]
    handles = [
        Line2D([], [], color=look(results, name)[0], label=view.title(results, name))
        for name in names
    ]
    if view.submodels(results):
        handles.append(Line2D([], [], color=OWN, linewidth=0.8, alpha=0.6, label="sub-models"))
    legend_beside(figure, handles)


def all_figures(
    results: Results, folder: Path
) -> dict[str, tuple[str, Callable[[], Figure | None]]]:
    """Those of a run with ``mode=explain``, as `fedcats.report.drawing.write` takes them."""
    if "explained" not in results:
        return {}
    found, what = results["explained"], view.things(results)
    return {
        "orders": (
            f"Accuracy of the Polyak merge on the test {what} over random orders of the clients, "
            "by beta and by who is last. None of these is chosen here.",
            lambda: orders(results, found),
        ),
        "barriers": (
            "Barriers: the largest excess of the loss over the straight line between two models. "
            "Right: cosines of the clients' updates.",
            lambda: barriers(results, found),
        ),
        "lines": (
            f"Loss and accuracy on the test {what} along the straight lines between two models; "
            "dark: the median.",
            lambda: lines(results, found),
        ),
        "updates": (
            "How far the clients' updates move each layer, and how much two clients' updates point "
            "the same way.",
            lambda: updates(results, found),
        ),
        "clients": (
            f"Accuracy in % of each model (rows) on the {what} of each client (columns).",
            lambda: clients(results, found),
        ),
        "without": (
            "What a client adds to the accuracy: with it less without it, with exact 95% intervals "
            f"over test {what}; Shapley values with 95% intervals of the sampling of coalitions.",
            lambda: without(results, found),
        ),
        "curves": (
            f"Every threshold: ROC and precision-recall curves on the test {what}.",
            lambda: curves(results, folder),
        ),
        "reliability": (
            f"Reliability on the test {what} in {ECE_BINS} bins; on the dashed line a model is as "
            "often right as it says.",
            lambda: reliability(results, folder),
        ),
    }
