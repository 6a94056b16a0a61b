"""A sweep's figure of what privacy costs and gives: accuracy and membership over epsilon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedcats.report.privacy import strongest
from fedcats.report.varied import (
    EPSILON,
    SEEDS,
    Row,
    distinct_values,
    is_numeric,
    means_over_seeds,
    merged_rows,
    title,
    value_text,
    varied_names,
)
from fedcats.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPSILON_CAPTION = (
    "Above: accuracy on the test set with 95% Wilson intervals. Below, where the models were "
    "attacked (privacy.measure=true): area under the ROC curve of the strongest attack that asks "
    "which photos a model was trained on, with its 95% interval over photos; 0.5 (dotted) is "
    "guessing. Both over epsilon on a log axis; ∞: gradients clipped, but no noise. Intervals are "
    "left out where points are means over seeds."
)
"""The figure's caption."""

_MOST = 8  # lines


def attacked(results: Results, name: str) -> dict[str, float]:
    """For a row of a sweep: how well the strongest attack does, if the model was attacked.

    On the model, and on all clients' updates that it is made of.
    """
    privacy: Mapping[str, Any] = results.get("privacy", {})
    if name not in (models := privacy.get("models", {})):
        return {}
    found: dict[str, float] = {}
    for what, one in {"auc": models[name], "updates_auc": privacy.get("clients")}.items():
        if one is not None:
            best = one["attacks"][strongest(one)]["auc"]
            found |= {what: best["value"], f"{what}_low": best["low"], f"{what}_high": best["high"]}
    return found


def over_epsilon(rows: Sequence[Row]) -> Figure | None:
    """Accuracy and area under the curve over ``privacy.epsilon``, where that was varied."""
    from matplotlib.figure import Figure

    from fedcats.report.drawing import CENTRALIZED, INK, MARKS, MUTED, RULES, legend_beside

    averaged = means_over_seeds(rows)
    shown = [r for r in averaged if r.get(EPSILON) is not None and r["model"] != "best_submodel"]
    values = distinct_values(shown, EPSILON)
    if len(values) < 2 or not is_numeric(shown, EPSILON):
        return None
    finite = [value for value in values if math.isfinite(value)]
    places = {value: math.log10(value) for value in finite}
    ends = (min(places.values()), max(places.values())) if places else (0.0, 0.0)
    beyond = ends[1] + max(0.3, 0.15 * (ends[1] - ends[0]))
    places |= {value: beyond for value in values if math.isinf(value)}
    others = [n for n in varied_names(shown) if n not in (EPSILON, *SEEDS)]
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(shown, key=lambda row: float(row[EPSILON])):
        lines.setdefault((row["model"], *(row.get(name) for name in others)), []).append(row)
    if len(lines) > _MOST:
        return None
    measures = ["accuracy", *(["auc"] if any("auc" in row for row in shown) else [])]
    figure = Figure(figsize=(6.4, 1.2 + 2.6 * len(measures)), layout="constrained")
    axes = figure.subplots(len(measures), sharex=True, squeeze=False)[:, 0]
    rules = list(dict.fromkeys(row["model"] for row in merged_rows(shown)))
    alone = len(averaged) == len(rows)
    for i, (key, line) in enumerate(lines.items()):
        name = ", ".join([title(key[0]), *(value_text(one) for one in key[1:] if one is not None)])
        colour = RULES[i % len(RULES)] if key[0] in rules else CENTRALIZED
        mark = MARKS[i % len(MARKS)] if key[0] in rules else "s"
        for ax, measure in zip(axes, measures, strict=True):
            _line(ax, line, measure, places, colour, mark, name, alone)
    axes[0].set_ylabel("accuracy")
    if len(measures) > 1:
        updates = next((line for key, line in lines.items() if key[0] in rules), [])
        if not others:
            _line(axes[1], updates, "updates_auc", places, INK, "x", "all clients' updates", alone)
        axes[1].axhline(0.5, color=MUTED, linestyle=":", linewidth=1)
        axes[1].set_ylabel("AUC of the strongest attack")
    texts = ["∞" if math.isinf(value) else f"{value:g}" for value in values]
    axes[-1].set_xticks([places[value] for value in values], texts)
    axes[-1].set_xlabel("epsilon")
    legend_beside(figure, *axes[-1].get_legend_handles_labels())
    return figure


def _line(
    ax: Axes,
    line: Sequence[Row],
    measure: str,
    places: Mapping[float, float],
    colour: str,
    mark: str,
    name: str,
    alone: bool,
) -> None:
    """One model; infinity stands by itself."""
    from fedcats.metrics import wilson

    if not (found := [row for row in line if measure in row]):
        return
    joined = [row for row in found if math.isfinite(row[EPSILON])]
    x = [places[row[EPSILON]] for row in joined]
    ax.plot(x, [row[measure] for row in joined], color=colour, linewidth=1.4)
    ax.plot(
        [places[row[EPSILON]] for row in found], [row[measure] for row in found],
        mark, color=colour, markersize=5.5, label=name,
    )  # fmt: skip
    for row in found if alone else ():
        if measure == "accuracy":
            low, high = wilson(round(row["accuracy"] * row["n"]), row["n"])
        else:
            low, high = row[f"{measure}_low"], row[f"{measure}_high"]
        ax.plot([places[row[EPSILON]]] * 2, [low, high], color=colour, linewidth=1, alpha=0.5)
