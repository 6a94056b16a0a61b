"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedcats.report import view
from fedcats.report.drawing import MANY, draw_matrix, look, name_cells, short
from fedcats.results import Results
from fedcats.results.names import submodel


def confusion(results: Results) -> Figure | None:
    """Confusion matrices of the centralized and the merged models."""
    names = [*view.of_all(results)]
    return _matrices(results, names, columns=4, inches=2.5)


def confusion_submodels(results: Results) -> Figure | None:
    """Confusion matrices of the clients' own models, unless there are very many."""
    own = [submodel(client) for client in view.submodels(results)]
    return _matrices(results, own, columns=5, inches=1.9) if len(own) <= 2 * MANY else None


def _matrices(
    results: Results, names: Sequence[str], *, columns: int, inches: float
) -> Figure | None:
    """Draw the confusion matrices of the named models as a grid of panels."""
    if not names:
        return None
    classes = results["data"]["classes"]
    longest = max(len(short(name)) for name in classes)
    size = inches * min(2.0, max(1.0, len(classes) / 2.4))
    turned = len(classes) * longest > 11 * size
    columns = min(columns, len(names), max(1, int(10 / size)))
    lines = -(-len(names) // columns)
    room = 0.09 * longest  # for the class names, in inches
    figure = Figure(
        figsize=(size * columns + 0.4 + room, (size + 0.25) * lines + 0.45 + room * turned),
        layout="constrained",
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for i in range(len(names), axes.size):  # the rest of the last line stays empty
        axes.flat[i].set_visible(False)
        axes.flat[i - columns].tick_params(labelbottom=True)
    for ax, name in zip(axes.flat, names, strict=False):
        there = view.published(results, name).get("confusion_matrix")
        colour, _ = look(results, name)
        draw_matrix(ax, results["models"][name]["confusion_matrix"], colour, there, inches)
        ax.set_title(view.title(results, name), fontsize=11 if inches > 2 else 9)
        name_cells(ax.xaxis, classes, size)
        name_cells(ax.yaxis, classes, size)
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("true", fontsize=10)
    return figure
