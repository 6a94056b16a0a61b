"""What all figures share: colours, style, SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedcats.report import view
from fedcats.results import Results
from fedcats.results.names import is_submodel

INK, MUTED, GRID, PAPER = "#1f2328", "#6e7781", "#d8dee4", "#ffffff"


BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00"


CENTRALIZED, RULES, OWN = BLUE, (VERMILLION, GREEN, PURPLE, ORANGE, INK), MUTED


BARS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, MUTED)  # one for each class, if so few


MARKS = ("s", "^", "v", "P", "X", "D")  # for merge rules: one more than colours, so no pair twice


# On the page the drawings follow its light or dark theme: each colour becomes a CSS variable.
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "page",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    PURPLE: "purple",
    ORANGE: "orange",
}


STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.parse_math": False,  # a class may have a $ in its name
    "lines.linewidth": 1.8,
    "svg.hashsalt": "fedcats",
    "svg.fonttype": "none",  # text that is found and read aloud
    "pdf.fonttype": 42,  # of which journals can search the text
}


# Of texts in an SVG file: Verdana is as wide, others are narrower. Spaces at the ends count.
FONTS = "'DejaVu Sans', Verdana, sans-serif; white-space: pre"


# Without what would make the same figure other bytes tomorrow.
UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}


MANY = 16  # above this many clients they share one row, and labels of single ones go


SMALL_MATRIX = 12  # a larger confusion matrix has no numbers in its cells


SMALLEST = 0.7  # of the size of letters, where a figure is made narrower


FINE = 1000  # more cells than this are drawn as pixels, in an SVG file too


Beside = Literal["outside lower center", "outside upper left"]  # of a legend


_HOVER = re.compile(r'<g id="hover:([^"]*)">')


@dataclass(frozen=True)
class Drawn:
    """A finished figure: name (of the files), caption, width in pixels, SVG text for the page."""

    name: str
    caption: str
    width: int
    svg: str


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style, whatever the user's own matplotlib settings are."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def write(
    folder: Path,
    figures: Mapping[str, tuple[str, Callable[[], Figure | None]]],
    files: view.Files = view.AS_SHOWN,
) -> list[Drawn]:
    """Draw figures, for the page and as files.

    Parameters
    ----------
    folder
        Where the files go; made if it is missing.
    figures
        File name without suffix -> (caption, function that draws it or returns None).
    files
        Formats, of `UNDATED`, without any nothing is drawn; and a width for these files alone.

    Returns
    -------
    list of Drawn
        One for each figure that there is.
    """
    if not files.formats:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (caption, draw) in figures.items():
        with style():
            figure = draw()
            if figure is None:
                continue
            shown, width = "", round(100 * figure.get_figwidth())
            if files.width is not None and files.width < figure.get_figwidth():
                shown = to_svg(figure)
                fit(figure, files.width)
            for one in sorted(set(files.formats) - {"svg"}, reverse=True):
                figure.savefig(folder / f"{name}.{one}", metadata=UNDATED[one])
                figure.set_layout_engine("none")  # laid out once for all
            svg = to_svg(figure)
        if "svg" in files.formats:
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        label = f"{caption} {figure.get_label()}".strip()  # with the values, for who cannot see it
        drawn.append(Drawn(name, caption, width, inline(shown or svg, name, label)))
    return drawn


def fit(figure: Figure, width: float) -> None:
    """Make the figure so many inches wide; letters, and rows of them, shrink less than that."""
    scale = width / figure.get_figwidth()
    letters = min(1.0, max(SMALLEST, scale))
    for text in cast("list[Text]", figure.findobj(Text)):
        text.set_fontsize(letters * float(text.get_fontsize()))
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        # for the ticks that come when it is laid out
        axis.set_tick_params(labelsize=axis.get_major_ticks()[0].label1.get_fontsize())
    legends = [one for one in figure.legends if one.get_label()]
    square = any(ax.get_aspect() != "auto" for ax in figure.axes)
    down = scale if square else max(letters, scale)
    figure.set_size_inches(width, down * figure.get_figheight())
    for one in legends:
        size = one.get_texts()[0].get_fontsize()
        names = [text.get_text() for text in one.get_texts()]
        one.remove()
        legend_beside(
            figure, one.legend_handles, names, cast(Beside, one.get_label()), fontsize=size
        )


def to_svg(figure: Figure) -> str:
    """The figure as an SVG file, with the texts of `on_hover`; to be called within `style`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=UNDATED["svg"])
    svg = buffer.getvalue().replace("font-family: 'DejaVu Sans'", f"font-family: {FONTS}")
    return _HOVER.sub(r"<g><title>\1</title>", svg)


def inline(svg: str, name: str, label: str) -> str:
    """Prepare an SVG file for standing inside a page: no prologue, own ids, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escaped}" ', 1)


def score_panels(
    labels: Sequence[str], row: float = 0.3, *, sharex: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """Three panels side by side for accuracy, precision and recall, with a row for each label."""
    figure = Figure(figsize=(9.6, 1.4 + row * len(labels)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True, sharex=sharex)
    for ax in axes:
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    return figure, axes


def draw_cells(
    ax: Axes, shades: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], size: float = 8
) -> None:
    """Draw a table of cells, each as dark as its shade (0 to 1), with texts where they are few."""
    shade_cells(ax, shades, BLUE)
    if len(shades[0]) <= MANY and len(shades) <= 2 * MANY:
        for i, row in enumerate(texts):
            for k, text in enumerate(row):
                ax.text(k, i, text, ha="center", va="center", fontsize=size)


def shade_cells(ax: Axes, shades: Sequence[Sequence[float]], colour: str) -> None:
    """Draw rows of cells, each as dark as its shade (0 to 1), as one mesh however many."""
    alpha = np.asarray(shades, dtype=float)
    painted = np.dstack([*(np.full(alpha.shape, part) for part in to_rgb(colour)), alpha])
    across, down = (np.arange(size + 1) - 0.5 for size in reversed(alpha.shape))
    ax.pcolormesh(across, down, painted, rasterized=alpha.size > FINE)
    ax.set_xlim(-0.5, alpha.shape[1] - 0.5)
    ax.set_ylim(alpha.shape[0] - 0.5, -0.5)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def name_cells(axis: Axis, names: Sequence[str], inches: float) -> None:
    """Label the cells along an axis of this length, every one or as many as have room."""
    step = -(-len(names) // int(9 * inches))
    fits = 72 * inches / len(names) > 12
    turned = isinstance(axis, XAxis) and len(names) * max(map(len, names)) > 11 * inches
    axis.set_ticks(range(0, len(names), step), [short(name) for name in names[::step]])
    axis.set_tick_params(labelsize=9 if fits else 7, labelrotation=90 if turned else 0)


def on_hover(text: str, *artists: Artist) -> None:
    """Show a text where the pointer is on one of these, in the SVG file and on the page."""
    for artist in artists:
        artist.set_gid(f"hover:{text}")  # `write` makes a title of it


def legend_beside(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str] | None = None,
    loc: Beside = "outside lower center",
    **options: Any,
) -> None:
    """Put a legend above or below the panels, in as many columns as the width has room for."""
    names = labels or [one.get_label() for one in handles]
    for columns in range(len(names), 0, -1):
        legend = figure.legend(handles, names, loc=loc, ncols=columns, **options)
        legend.set_label(loc)  # for `fit`
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            return
        legend.remove()


def hollow_mark(ax: Axes, x: float, y: float, colour: str, **more: Any) -> Artist:
    """Mark a value of the paper's."""
    (mark,) = ax.plot(
        x, y, marker="D", linestyle="", markersize=5.5, zorder=3,
        markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.3, **more,
    )  # fmt: skip
    return mark


def short(name: str, most: int = 16) -> str:
    """The name, cut where it is too long for a label."""
    return name if len(name) <= most else name[: most - 1] + "…"


def draw_matrix(
    ax: Axes, matrix: list[list[int]], colour: str, there: list[list[int]] | None, inches: float
) -> None:
    """Draw one confusion matrix; shading and the small number are shares of the true class."""
    k = len(matrix)
    big, small = (13, 8) if inches > 2 else (10, 7)
    if k > 4:
        big = small = max(6, 11 - k // 2)
    shares = [[value / (sum(row) or 1) for value in row] for row in matrix]
    light, more = (0.06, 0.5) if k <= SMALL_MATRIX else (0.04, 0.96)  # under numbers, or alone
    shade_cells(ax, [[light + more * share for share in row] for row in shares], colour)
    for i, row in enumerate(matrix if k <= SMALL_MATRIX else ()):
        for j, value in enumerate(row):
            lines = [f"{100 * shares[i][j]:.1f}%"] if k <= 4 else []
            lines += [f"paper {there[i][j]}"] if there else []
            # the count sits on the middle of the cell where nothing is written below it
            lift = 0.12 if lines else 0.0
            ax.text(j, i - lift, str(value), ha="center", va="center", fontsize=big)
            if lines:
                below = "\n".join(lines)
                ax.text(j, i + 0.08, below, ha="center", va="top", fontsize=small, color=INK)
    ax.set_aspect("equal")


def look(results: Results, name: str) -> tuple[str, str]:
    """Colour and mark of a model, the same in every figure."""
    if name == "centralized":
        return CENTRALIZED, "o"
    if name == "same_steps":
        return CENTRALIZED, "D"
    if is_submodel(name):
        return OWN, "o"
    i = list(view.merged(results)).index(name)
    return RULES[i % len(RULES)], MARKS[i % len(MARKS)]
