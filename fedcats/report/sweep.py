"""The page of a sweep: scores over what was varied, beside what they are to be compared with.

A sweep is a list of rows, one for each model of each job. A row is a flat dict: ``model``, the
scores ``accuracy, precision, recall, f1, loss``, ``n`` (test pictures), and any other key is a
parameter that was set (``strategy.beta``, ``partition.num_shards``, ``order``, ..). A parameter
that has no bearing on a model, such as beta on the centralized one, is left out or None.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from fedcats.report import page, view
from fedcats.report.html import render
from fedcats.report.tables import Table, to_rich
from fedcats.report.view import Results, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

Row = Mapping[str, Any]

MEASURES = ("accuracy", "precision", "recall", "f1", "loss")
FIXED = ("job", "model", *MEASURES, "n", "validation")
REFERENCES = ("centralized", "best_submodel")
DATA_SETS = ("data", "data.root", "data.repo", "classes")  # scores compare within one only
_PANELS = 4  # more groups than this share one panel
_ROWS = 40  # no heat map and no dot plot with more rows

# What a model does not depend on; a sweep over it gives the same model again and again.
_NO_BEARING = {
    "centralized": ("strategy.", "partition.", "attack"),
    "best_submodel": ("strategy.",),
}
_READ_BY = {  # keys that only one rule reads
    "strategy.beta": "polyak",
    "strategy.start": "polyak",
    "strategy.trim": "trimmed_mean",
    "strategy.malicious": "krum",
    "strategy.fedavgm": "fedavgm",
    "strategy.fedadam": "fedadam",
}


def sweep_rows(jobs: Iterable[tuple[Mapping[str, Any], Results]]) -> list[dict[str, Any]]:
    """Collect the rows of a sweep from its jobs.

    Parameters
    ----------
    jobs
        For each job the parameters that the sweep set, name -> value (``{"strategy.beta": 0.1,
        "partition.num_shards": 5}``), and its results.

    Returns
    -------
    list of dict
        Rows for the centralized model, the most accurate sub-model (``best_submodel``) and every
        merged model; a model that several jobs share, such as the centralized one of a sweep
        over beta, has one row.
    """
    rows: list[dict[str, Any]] = []
    for parameters, results in jobs:
        several = results.get("config", {}).get("rounds", 1) != 1
        models = {**view.merged(results)}
        if base := view.centralized(results):
            models = {"centralized": base, **models}
        if own := view.submodels(results):
            models["best_submodel"] = max(own.values(), key=lambda model: model["accuracy"])
        for name, model in models.items():
            # after a first round a sub-model starts from a merge, and so depends on its rule
            without = () if several and name == "best_submodel" else _NO_BEARING.get(name)
            if without is None:
                without = tuple(key for key, rule in _READ_BY.items() if rule != name)
            kept = {
                key: None if key.startswith(("runner.", *without)) else value
                for key, value in parameters.items()
            }
            row = {**kept, "model": name, **{key: model[key] for key in (*MEASURES, "n")}}
            if "validation" in model:
                row["validation"] = model["validation"]["accuracy"]
            if row not in rows:
                rows.append(row)
    return rows


def grid_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of ``mode=merge``: the references, then ``results["grid"]``."""
    merges = [
        {k: v for k, v in row.items() if k in FIXED or "." in k} for row in results["grid"]["rows"]
    ]
    for row in merges:
        if "validation" in row:
            row["validation"] = row["validation"]["accuracy"]
    return [*sweep_rows([({}, results)]), *merges]


def write_sweep_report(folder: Path, rows: Sequence[Row], *, warnings: Sequence[str] = ()) -> None:
    """Write ``sweep.csv``, ``figures/`` and ``sweep.html``.

    Parameters
    ----------
    folder
        The sweep's folder.
    rows
        See the module's description and :func:`sweep_rows`.
    warnings
        What a reader must know first, for example ``view.warnings(results)`` of one of the jobs.
    """
    from fedcats.report import figures

    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "sweep.csv", rows)
    what = "dashed: centralized, dotted: the best single sub-model, dash-dotted: the plain mean"
    drawn = figures.write(
        folder / "figures",
        {
            "sweep": (
                f"Scores of the merged models on the test set; {what}. Bands are 95% Wilson "
                "intervals of the accuracy.",
                lambda: curves(rows),
            ),
            "heat": (
                "Accuracy of the merged models on the test set, in %; framed: the highest.",
                lambda: heat(rows),
            ),
            "dots": (
                "Scores of every model on the test set; bars are 95% Wilson intervals.",
                lambda: dots(rows),
            ),
        },
    )
    jobs = sorted(path.parent.name for path in folder.glob("*/report.html"))
    text = render(
        page.SWEEP,
        drawn,
        title="fedcats sweep",
        kind="FEDCATS SWEEP",
        heading=_heading(rows),
        warnings=warnings,
        answer=sweep_verdict(rows),
        meta=f"{len(rows)} models",
        points=points_table(rows),
        jobs=sorted(jobs, key=lambda name: (len(name), name)),
    )
    (folder / "sweep.html").write_text(text, encoding="utf-8", errors="backslashreplace")


def print_sweep(
    rows: Sequence[Row],
    folder: Path,
    console: Console | None = None,
    *,
    warnings: Sequence[str] = (),
    note: str = "",
) -> None:
    """Print the points, the answer and, as the last line, the absolute path of the folder."""
    from rich.console import Console
    from rich.text import Text

    out = Console() if console is None else console
    for warning in warnings:
        out.print(Text(warning, style="yellow"))
    out.print(to_rich(points_table(rows)))
    out.print()
    out.print(Text(" ".join(sweep_verdict(rows)), style="bold"))
    if note:
        out.print(Text(note))
    out.print(str(folder.resolve()), markup=False, highlight=False, soft_wrap=True)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, parameters first; a parameter without bearing is an empty field."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.DictWriter(
            stream,
            [*_parameters(rows), *(key for key in FIXED[1:] if any(key in row for row in rows))],
            lineterminator="\n",
            extrasaction="ignore",
        )
        writer.writeheader()
        writer.writerows(rows)


def sweep_verdict(rows: Sequence[Row]) -> list[str]:
    """Say which merged model did best, beside the centralized one and the best sub-model."""
    apart = [name for name in DATA_SETS if len(_values(rows, name)) > 1]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in apart), []).append(row)
    if len(groups) > 1:
        names = [_short(name) for name in apart]
        return [
            f"With {', '.join(f'{n} {_text(v)}' for n, v in zip(names, key, strict=True))}: "
            + " ".join(sweep_verdict(group))
            for key, group in groups.items()
        ]
    models = _merged(rows)
    if not models:
        return ["This sweep merged nothing."]
    if all("validation" in row for row in models):
        return _chosen_verdict(models, rows)
    best = max(models, key=lambda row: row["accuracy"])
    worst = min(models, key=lambda row: row["accuracy"])
    if best["accuracy"] == worst["accuracy"]:
        all_of = f"All {len(models)} merged models have" if models[1:] else "The merged model has"
        text = f"{all_of} an accuracy of {view.percent(best['accuracy'])}."
    else:
        text = (
            f"Of {len(models)} merged models {_name(best, rows)} has the highest accuracy, "
            f"{view.percent(best['accuracy'])}; {_name(worst, rows)} has the lowest, "
            f"{view.percent(worst['accuracy'])}."
        )
    if not models[1:]:
        return [text, *([beside] if (beside := _beside(best, rows).strip()) else [])]
    return [
        text,
        f"{_beside(best, rows)}The best of many, picked on the test set itself, flatters: a "
        "setting is to be chosen on held-out training pictures and then tested once.",
    ]


def _chosen_verdict(models: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """The choice on held-out training pictures, and what the test says of it."""
    merges = [row for row in models if row["model"] != "ensemble"]  # that is no merge
    chosen = max(merges or models, key=lambda row: row["validation"])
    return [
        f"Of {len(models)} models {_name(chosen, rows)} is chosen: it has the highest accuracy on "
        f"the held-out training pictures, {view.percent(chosen['validation'])}. On the test "
        f"pictures, which had no part in the choice, it has {view.percent(chosen['accuracy'])}.",
        _beside(chosen, rows).strip(),
    ]


def _beside(chosen: Row, rows: Sequence[Row]) -> str:
    """The reference models that the chosen one is to be compared with."""
    beside = []
    for model in REFERENCES:
        found = [row for row in rows if row["model"] == model and _fits(row, chosen, rows)]
        if found:
            top = max(found, key=lambda row: row["accuracy"])
            beside.append(f"{_title(model)} {view.percent(top['accuracy'])}")
    return f"To compare: {', '.join(beside)}. " if beside else ""


def points_table(rows: Sequence[Row]) -> Table:
    """Every row, with the difference in accuracy from the centralized model in points."""
    names = _varied(rows)
    body: list[tuple[str, ...]] = []
    for row in rows:
        base = [r for r in rows if r["model"] == "centralized" and _fits(r, row, rows)]
        body.append(
            (
                *(_text(row.get(name)) for name in names),
                _title(row["model"]),
                *(f"{row[key]:.4f}" for key in MEASURES),
                points(row["accuracy"] - base[0]["accuracy"]) if len(base) == 1 else "–",
            )
        )
    header = (*(_short(name) for name in names), "model", *MEASURES, "Δ")
    return Table(
        "Every point",
        header,
        body,
        text=tuple(range(len(names) + 1)),
        note="Δ: accuracy minus that of the centralized model, in percentage points.",
    )


# --- figures ---------------------------------------------------------------------------------


def curves(rows: Sequence[Row]) -> Figure | None:
    """Scores over one numeric parameter, a column of panels for each value of another."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from fedcats.report.figures import MARKS, RULES

    x = _x(rows)
    if x is None:
        return None
    merged = [row for row in _merged(rows) if row.get(x) is not None]
    others = [name for name in _varied(merged) if name not in (x, "seed")]
    facet = next((name for name in others if _is_numeric(merged, name)), next(iter(others), None))
    groups = _values(merged, facet) if facet else [None]
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
            axes[0][column].set_title(f"{_short(facet)} = {_text(group)}")
        for ax, measure in zip(axes[:, column], view.SCORES, strict=True):
            _levels(ax, here, x, measure)
            for i, key in enumerate(keys):
                line = [
                    row
                    for row in here
                    if row in merged and tuple(row.get(name) for name in series) == key
                ]
                _curve(ax, line, x, measure, RULES[i % len(RULES)], MARKS[i % len(MARKS)])
        axes[-1][column].set_xlabel(_short(x))
    for ax, measure in zip(axes[:, 0], view.SCORES, strict=True):
        ax.set_ylabel(measure)
        low, high = ax.get_ylim()
        if high - low < 0.01:  # all the same: no axis in 1e-17
            ax.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)
    handles = [
        Line2D([], [], color=RULES[i % len(RULES)], marker=MARKS[i % len(MARKS)], label=label)
        for i, key in enumerate(keys)
        for label in [", ".join(_title(v) for v in reversed(key))]
    ]
    handles += [
        Line2D([], [], label=_title(name), **_level_look(name))
        for name in dict.fromkeys(row["model"] for row in rows if row.get(x) is None)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return figure


def heat(rows: Sequence[Row]) -> Figure | None:
    """Accuracy where two or more things vary: one along x, the combinations of the rest along y."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from fedcats.report.figures import BLUE, INK, MANY, shade_cells

    x = _x(rows)
    if x is None:
        return None
    merged = [row for row in _merged(rows) if row.get(x) is not None]
    others = [name for name in (*_varied(merged), "model") if name not in (x, "seed")]
    if len(_values(merged, "model")) == 1:
        others.remove("model")
    lines = list(dict.fromkeys(tuple(row.get(name) for name in others) for row in merged))
    if not others or not 2 <= len(lines) <= _ROWS:
        return None
    xs = _values(merged, x)
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
    for (i, j), value in means.items():
        share = (value - low) / (high - low) if high > low else 0.5
        shades[i][j] = 0.06 + 0.5 * share
        if len(xs) <= MANY:
            ax.text(j, i, f"{100 * value:.1f}", ha="center", va="center", fontsize=9)
        if value == high:
            frame = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, edgecolor=INK)
            ax.add_patch(frame)
    shade_cells(ax, shades, BLUE)
    ax.set_xlim(-0.5, len(xs) - 0.5)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    step = -(-len(xs) // MANY)
    ax.set_xticks(range(0, len(xs), step), [_text(value) for value in xs[::step]])
    labels = [", ".join(_title(v) for v in line) for line in lines]
    ax.set_yticks(range(len(lines)), labels)
    ax.set_xlabel(_short(x))
    ax.set_ylabel(", ".join(_short(name) for name in others))
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return figure


def dots(rows: Sequence[Row]) -> Figure | None:
    """Scores of every model, one row each, where no numeric parameter was varied."""
    from matplotlib.figure import Figure

    from fedcats.metrics import wilson
    from fedcats.report.figures import CENTRALIZED, MARKS, MUTED, RULES

    if _x(rows) is not None or not 2 <= len(rows) <= _ROWS:
        return None
    merged = list(dict.fromkeys(row["model"] for row in _merged(rows)))
    figure = Figure(figsize=(9.6, 1.3 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, key in zip(axes, view.SCORES, strict=True):
        ax.set_title(key)
        for line, row in enumerate(rows):
            colour, mark = CENTRALIZED if row["model"] == "centralized" else MUTED, "o"
            if row["model"] in merged:
                i = merged.index(row["model"])
                colour, mark = RULES[i % len(RULES)], MARKS[i % len(MARKS)]
            if key == "accuracy":
                ends = wilson(round(row["accuracy"] * row["n"]), row["n"])
                ax.plot(ends, [line, line], color=colour, linewidth=1.4, alpha=0.6)
            ax.plot(row[key], line, marker=mark, color=colour, markersize=6.5, linestyle="")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(rows)), [_name(row, rows) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _curve(ax: Axes, line: Sequence[Row], x: str, measure: str, colour: str, mark: str) -> None:
    """One merged model over x: the mean where several seeds give a value, else with its band."""
    from fedcats.metrics import wilson

    xs = _values(line, x)
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
        if row.get(x) is None:
            found.setdefault(row["model"], []).append(row[measure])
    for name, values in found.items():
        for value in [mean(values)] if name in REFERENCES else sorted(set(values)):
            ax.axhline(value, **_level_look(name))


def _level_look(model: str) -> dict[str, Any]:
    from fedcats.report.figures import CENTRALIZED, INK, MUTED

    looks = {"centralized": (CENTRALIZED, "--"), "best_submodel": (MUTED, ":")}
    colour, dash = looks.get(model, (INK, "-."))
    return {"color": colour, "linestyle": dash, "linewidth": 1.4}


# --- what varies -----------------------------------------------------------------------------


def _merged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["model"] not in REFERENCES]


def _parameters(rows: Sequence[Row]) -> list[str]:
    """Names of the parameters; one that only repeats the model (its rule) says nothing new."""
    names = dict.fromkeys(key for row in rows for key in row if key not in FIXED)
    return [
        name
        for name in names
        if any(row.get(name) not in (None, row["model"]) for row in _merged(rows) or rows)
    ]


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a parameter, sorted if they are numbers, else as they come."""
    values = list(dict.fromkeys(row[name] for row in rows if row.get(name) is not None))
    return sorted(values) if _is_numeric(rows, name) else values


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    found = [row[name] for row in rows if row.get(name) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)


def _varied(rows: Sequence[Row]) -> list[str]:
    return [name for name in _parameters(rows) if len(_values(rows, name)) > 1]


def _x(rows: Sequence[Row]) -> str | None:
    """The parameter along x: beta if it was varied, else the numeric one with the most values."""
    merged = _merged(rows)
    found = [n for n in _varied(merged) if n != "seed" and _is_numeric(merged, n)]
    return max(found, key=lambda n: (n.endswith("beta"), len(_values(merged, n))), default=None)


def _fits(reference: Row, row: Row, rows: Sequence[Row]) -> bool:
    """Whether the reference holds for the row: equal wherever both have a parameter."""
    return all(
        reference.get(name) is None or row.get(name) is None or reference[name] == row[name]
        for name in _varied(rows)
    )


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1].replace("_", " ")


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _title(value: Any) -> str:
    return view.TITLES.get(str(value), _text(value))


def _name(row: Row, rows: Sequence[Row]) -> str:
    """Call a model by its kind and by what was varied: "Polyak (beta 0.3, num shards 5)"."""
    said = [f"{_short(n)} {_text(row[n])}" for n in _varied(rows) if row.get(n) is not None]
    kind = _title(row["model"])
    return f"{kind} ({', '.join(said)})" if said else kind


def _heading(rows: Sequence[Row]) -> str:
    names = [_short(name) for name in _varied(_merged(rows))]
    return f"The merged model over {' and '.join(names)}" if names else "The merged models"
