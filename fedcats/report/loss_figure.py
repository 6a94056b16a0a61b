"""Training loss over epochs, and the loss on held-out photos beside it where that was tested."""

from __future__ import annotations

import csv
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedcats.report import view
from fedcats.report.drawing import CENTRALIZED, INK, MUTED, OWN, hollow_mark, on_hover
from fedcats.report.validation import on_held_out
from fedcats.results import Results
from fedcats.results.names import is_submodel

LOSS = "Training loss of the centralized model and of the clients' own models"

Curve = Sequence[tuple[int, int, float]]  # round, epoch, mean cross entropy
Column = Literal["loss", "validation_loss"]


def history(folder: Path, results: Results, column: Column = "loss") -> dict[str, Curve]:
    """Read each model's training loss: (round, epoch, loss), from ``history.csv`` if it is there.

    Without that file the first round's losses are taken from the results themselves. With the
    column ``validation_loss`` those on held-out photos, of models that were tested on some.
    """
    path = folder / "history.csv"
    curves: dict[str, list[tuple[int, int, float]]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row.get(column):
                    point = (int(row["round"] or 1), int(row["epoch"]), float(row[column]))
                    curves.setdefault(row["model"], []).append(point)
    else:
        for name, model in results["models"].items():
            epochs = model["training"]["epochs"] if "training" in model else []
            of = on_held_out if column == "validation_loss" else operator.itemgetter("loss")
            losses: list[float | None] = [of(epoch) for epoch in epochs]
            curves[name] = [(1, i, one) for i, one in enumerate(losses, 1) if one is not None]
    return {name: sorted(curve) for name, curve in curves.items() if curve}


def loss(
    results: Results, curves: Mapping[str, Curve], held: Mapping[str, Curve] = MappingProxyType({})
) -> Figure | None:
    """Training loss over epochs, centralized and sub-models side by side (Fig. 3).

    ``held``: the same on held-out photos, where there are such.
    """
    panels: dict[str, Mapping[str, Curve]] = {}
    if "centralized" in curves:
        panels["centralized"] = {"centralized": curves["centralized"]}
    shared = {name: curve for name, curve in curves.items() if is_submodel(name)}
    # from the second round on each rule trains on from its own merge: "<rule>/submodel/<client>"
    later = dict.fromkeys(n.split("/submodel/")[0] for n in curves if "/submodel/" in n)
    for rule in later:
        panels[f"sub-models, {view.title(results, rule)}"] = _of_rule(curves, rule)
    if shared and not later:
        panels[f"{len(shared)} sub-models" if len(shared) > 1 else "1 sub-model"] = shared
    if not panels:
        return None
    figure = Figure(
        figsize=((4.7 if len(panels) < 3 else 3.5) * len(panels), 3.4), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    rules = iter(later or [""])
    for ax, (name, own) in zip(axes, panels.items(), strict=True):
        ax.set_title(name)
        at = _places(own.values())
        if name == "centralized":
            losses = _median_curve(own.values())
            line = ax.plot(at.values(), losses, "o-", color=CENTRALIZED, markersize=4.5)
            on_hover(f"centralized: {_losses(losses)}", *line)
            _draw_held(ax, at, [held.get("centralized", ())], CENTRALIZED)
            if fewer := curves.get("same_steps"):
                losses, label = [p[2] for p in fewer], view.TITLES["same_steps"]
                ax.plot(
                    range(1, len(fewer) + 1),
                    losses,
                    "D:",
                    color=CENTRALIZED,
                    markersize=4,
                    label=label,
                )
                ax.legend(loc="upper right")
            final = view.published(results, name).get("training_loss")
            if final is not None:
                label = f"the paper, last epoch: {final}"
                hollow_mark(ax, len(at), final, CENTRALIZED, label=label, clip_on=False)
                ax.legend(loc="upper right")
        else:
            for title, curve in own.items():
                xs, losses = [at[p[:2]] for p in curve], [p[2] for p in curve]
                line = ax.plot(xs, losses, color=OWN, linewidth=1, alpha=0.6)
                on_hover(f"{view.title(results, title)}: {_losses(losses)}", *line)
            middle = _median_curve(own.values())
            ax.plot(at.values(), middle, "o-", color=INK, markersize=4, label="median")
            _draw_held(ax, at, _of_rule(held, next(rules)).values(), INK)
            ax.legend(loc="upper right")
            for x in [x for (number, epoch), x in at.items() if number > 1 and epoch == 1]:
                ax.axvline(x - 0.5, color=MUTED, linewidth=1, linestyle=":")  # a round begins
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylim(bottom=0)  # after all panels, which share the axis
    axes[0].set_ylabel("mean cross entropy")
    return figure


def _of_rule(curves: Mapping[str, Curve], rule: str) -> dict[str, Curve]:
    """The clients' curves, over all rounds, the later ones of this rule.

    With ``strategy.fraction`` each client is in some rounds, the first or others.
    """
    prefix = f"{rule}/"
    names = dict.fromkeys(name.removeprefix(prefix) for name in curves)
    return {
        name: [*curves.get(name, ()), *curves.get(prefix + name, ())]
        for name in names
        if is_submodel(name)
    }


def _places(curves: Iterable[Curve]) -> dict[tuple[int, int], int]:
    """Where along x each (round, epoch) is, in order, from 1."""
    return {key: x for x, key in enumerate(sorted({p[:2] for c in curves for p in c}), 1)}


def _draw_held(
    ax: Axes, at: Mapping[tuple[int, int], int], held: Iterable[Curve], colour: str
) -> None:
    """Draw the loss on held-out photos, the median of several, over the epochs of training."""
    held = [*held]
    epochs = [at[key] for key in _places(held)]
    if not epochs:
        return
    losses = _median_curve(held)
    line = ax.plot(
        epochs, losses, "o--", color=colour, markersize=4, markerfacecolor="none", label="held out"
    )
    ax.legend(loc="upper right")
    on_hover(f"on held-out photos: {_losses(losses)}", *line)


def _losses(values: Sequence[float]) -> str:
    first = f"{values[0]:.4f} after the first epoch, " if len(values) > 1 else ""
    return f"loss {first}{values[-1]:.4f} after the last"


def _median_curve(curves: Iterable[Curve]) -> list[float]:
    """Median loss at each (round, epoch) over the curves that have it."""
    values: dict[tuple[int, int], list[float]] = {}
    for curve in curves:
        for number, epoch, value in curve:
            values.setdefault((number, epoch), []).append(value)
    return [median(values[at]) for at in sorted(values)]
