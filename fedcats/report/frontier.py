"""What one round can give for what it costs: accuracy against the bytes that a client sends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from fedcats.report import view
from fedcats.report.tables import EMPTY, Table
from fedcats.report.varied import (
    Row,
    distinct_values,
    means_over_seeds,
    merged_rows,
    model_name,
    varied_parameters,
)
from fedcats.text import size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_APART = ("data", "data.root", "data.repo", "classes", "partition")  # not to be compared
_NAMED = 26  # of more only those on the frontier have their names
FRONTIER = (
    "Accuracy on the test set against the bytes that one client sends, with 95% Wilson intervals "
    "where they are of one seed. The numbers are those of the table; pale: another merge is at "
    "least as accurate for at most as many bytes."
)
"""The figure's caption."""


class Spot(NamedTuple):
    """A model on the figure; ``ends`` of its 95 % interval, None of a mean over seeds."""

    name: str
    size: float
    accuracy: float
    ends: tuple[float, float] | None
    chosen: str
    best: bool


def spots(rows: Sequence[Row]) -> list[Spot]:
    """The models that stand for their rules, the most accurate first; few without a choice.

    A model is `best` where no other is as accurate for fewer bytes, or more accurate for as many.
    """
    from fedcats.metrics import wilson

    averaged = means_over_seeds(rows)
    candidates = [
        row
        for row in merged_rows(averaged)
        if row.get("chosen") and row.get("bytes") and row["model"] != "ensemble"
    ]
    apart = any(
        len(distinct_values(rows, name)) > 1
        for name in varied_parameters(rows)
        if name in _APART or name.startswith("partition.")
    )
    if apart or len({row["bytes"] for row in candidates}) < 2:
        return []
    alone = len(averaged) == len(rows)

    def dominated(row: Row) -> bool:
        size, accuracy = row["bytes"], row["accuracy"]
        return any(
            other["bytes"] <= size
            and other["accuracy"] >= accuracy
            and (other["bytes"], other["accuracy"]) != (size, accuracy)
            for other in candidates
        )

    found = [
        Spot(
            str(row.get("title") or model_name(row, rows)),
            row["bytes"],
            row["accuracy"],
            wilson(round(row["accuracy"] * row["n"]), row["n"]) if alone else None,
            row["chosen"],
            not dominated(row),
        )
        for row in candidates
    ]
    return sorted(found, key=lambda one: (-one.accuracy, one.size))


def frontier(rows: Sequence[Row]) -> Figure | None:
    """Accuracy over bytes; what is dominated pale, what was tried and not chosen small."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from fedcats.report.drawing import CENTRALIZED, INK, MUTED, VERMILLION, legend_beside, on_hover

    found = spots(rows)
    if not found:
        return None
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    ax = figure.subplots()
    ax.set_xscale("log")
    for name, colour, dash in (("centralized", CENTRALIZED, "--"), ("ensemble", INK, "-.")):
        if (level := _level(rows, name)) is not None:
            label = f"{view.TITLES[name]}, {view.percent(level)}"
            ax.axhline(100 * level, color=colour, linestyle=dash, linewidth=1.2, label=label)
    rest = [row for row in merged_rows(rows) if row.get("bytes") and not row.get("chosen")]
    if rest:
        ax.plot(
            [row["bytes"] for row in rest], [100 * row["accuracy"] for row in rest],
            ".", color=MUTED, alpha=0.35, markersize=4, label="another setting, not chosen",
        )  # fmt: skip
    names = []
    for number, one in enumerate(found, 1):
        colour, alpha = (VERMILLION, 1.0) if one.best else (MUTED, 0.45)
        y, mark = 100 * one.accuracy, 7 if one.best else 5
        if one.ends:
            ax.plot([one.size] * 2, [100 * e for e in one.ends], color=colour, alpha=0.3 * alpha)
        (point,) = ax.plot(one.size, y, "o", color=colour, alpha=alpha, markersize=mark)
        on_hover(f"{one.name}: accuracy {one.accuracy:.4f}, {size_text(one.size)}", point)
        if one.best or len(found) <= _NAMED:
            names.append((point, f"{number} {one.name}"))
    taken: list[tuple[float, float, int]] = []
    tall = max(one.accuracy for one in found) - min(one.accuracy for one in found) + 0.03
    for number, one in sorted(enumerate(found, 1), key=lambda item: not item[1].best):
        x, y = 25 * math.log10(one.size), 50 * one.accuracy / tall
        for side in (1, -1):  # where there is room; the names tell the rest
            if all(side != s or abs(x - a) > 1.5 or abs(y - b) > 1.5 for a, b, s in taken):
                taken.append((x, y, side))
                ax.annotate(
                    str(number), (one.size, 100 * one.accuracy), (6 * side, 0), va="center",
                    ha="left" if side == 1 else "right", textcoords="offset points", fontsize=8,
                    color=INK if one.best else MUTED,
                )  # fmt: skip
                break
    figure.legend(*zip(*names, strict=True), loc="outside right upper", fontsize=8)
    best = sorted((one for one in found if one.best), key=lambda one: one.size)
    ax.plot(
        [one.size for one in best], [100 * one.accuracy for one in best], drawstyle="steps-post",
        color=VERMILLION, linewidth=1, alpha=0.5, label="nothing sends less and is more accurate",
    )  # fmt: skip
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("a client sends")
    ax.set_ylabel("accuracy on the test set, %")
    legend_beside(figure, *ax.get_legend_handles_labels())
    return figure


def frontier_table(rows: Sequence[Row]) -> Table | None:
    """The same as numbers, and of each what was chosen, on what."""
    found = spots(rows)
    if not found:
        return None
    base = _level(rows, "centralized")
    body: list[tuple[str, ...]] = [
        (
            str(number),
            one.name,
            size_text(one.size),
            f"{one.accuracy:.4f}",
            EMPTY if one.ends is None else f"{one.ends[0]:.3f} to {one.ends[1]:.3f}",
            EMPTY if base is None else view.points(one.accuracy - base),
            "yes" if one.best else EMPTY,
            one.chosen,
        )
        for number, one in enumerate(found, 1)
    ]
    header = ("no.", "model", "a client sends", "accuracy", "95%", "Δ", "frontier", "chosen")
    note = (
        "Δ: accuracy minus that of the centralized model, in points; frontier: no other "
        "sends less, or as much, and is more accurate on these pictures. Nothing was chosen on "
        "them: the last column says what was, and on what."
    )
    return Table("Accuracy against bytes", header, body, text=(1, 6, 7), note=note)


def frontier_answer(rows: Sequence[Row]) -> list[str]:
    """What the figure shows, in a sentence or two."""
    found = spots(rows)
    if not found:
        return []
    best = sorted((one for one in found if one.best), key=lambda one: one.size)
    said = [
        f"{one.name} ({size_text(one.size)} a client, accuracy {view.percent(one.accuracy)})"
        for one in (best[0], best[-1])
    ]
    where = f"Of {len(found)} merges of one round {len(best)}"
    if len(best) == 1:
        sentences = [f"{where} leaves all others behind in accuracy and in bytes: {said[0]}."]
    else:
        sentences = [
            f"{where} are on the frontier of accuracy against bytes, from {said[0]} to {said[1]}."
        ]
    fedavg = next((one for one in found if one.name == "FedAvg"), None)
    if fedavg is not None and len(found) > 1:
        above = sum(one.accuracy > fedavg.accuracy for one in found)
        less = sum(one.accuracy >= fedavg.accuracy and one.size < fedavg.size for one in found)
        sentences.append(
            f"FedAvg has {view.percent(fedavg.accuracy)}: {_of(above, len(found) - 1)} more than "
            f"it, {_of(less, len(found) - 1)} at least as much for fewer bytes; what "
            "is closer than the intervals, another draw of test pictures may turn round."
        )
    return sentences


def _of(count: int, total: int) -> str:
    return f"{count if count else 'none'} of {total} others {'has' if count < 2 else 'have'}"


def _level(rows: Sequence[Row], model: str) -> float | None:
    values = [row["accuracy"] for row in rows if row["model"] == model]
    return fmean(values) if values else None
