"""The page of a sweep: scores over what was varied, beside what they are to be compared with.

A sweep is a list of rows, one for each model of each job. A row is a flat dict: ``model``, the
scores ``accuracy, precision, recall, f1, loss``, ``n`` (test pictures), and any other key is a
parameter that was set (``strategy.beta``, ``partition.num_shards``, ``order``, ..). A parameter
that has no bearing on a model, such as beta on the centralized one, is left out or None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedcats.merging.registry import RULES
from fedcats.metrics.choice import rank
from fedcats.plugins import short_name
from fedcats.report import page, tables, view
from fedcats.report.epsilon_figure import EPSILON_CAPTION, attacked, over_epsilon
from fedcats.report.frontier import FRONTIER, frontier, frontier_answer, frontier_table
from fedcats.report.gaps import BARRIER_GAP, GAPS, Gaps, scatter, sentences, side_by_side
from fedcats.report.page import render
from fedcats.report.rich_table import to_rich
from fedcats.report.seeds_figure import SEEDS as SEEDS_CAPTION
from fedcats.report.seeds_figure import over_seeds
from fedcats.report.sweep_figures import curves, dots, heat
from fedcats.report.tables import Table
from fedcats.report.varied import (
    FIXED,
    REFERENCES,
    Row,
    distinct_values,
    fits,
    means_over_seeds,
    merged_rows,
    model_name,
    short,
    title,
    value_text,
    varied_names,
    varied_parameters,
)
from fedcats.report.verdict import of_replication
from fedcats.report.view import MEASURES, points
from fedcats.results import GridRow, Replicated, Results, Tested
from fedcats.results.names import IN_ONE_PLACE
from fedcats.text import write_csv

if TYPE_CHECKING:
    from rich.console import Console


_SAID = 4  # of more models over seeds only the table says what they are
DATA_SETS = ("data", "data.root", "data.repo", "classes")  # scores compare within one only

# What a model does not depend on; a sweep over it gives the same model again and again.
_NO_BEARING = {
    "centralized": ("strategy.", "partition.", "attack"),
    "same_steps": ("strategy.", "attack"),
    "best_submodel": ("strategy.",),
}
_READ_BY = {key: name for name, rule in RULES.items() for key in rule.reads()}


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
        found = results["models"]
        models = {name: found[name] for name in IN_ONE_PLACE if name in found}
        models |= view.merged(results)
        if own := view.submodels(results):
            held = all("validation" in model for model in own.values())  # else on the test images
            models["best_submodel"] = max(
                own.values(), key=lambda model: rank(model["validation"] if held else model)
            )
        for name, model in models.items():
            # after a first round a sub-model starts from a merge, and so depends on its rule
            without = () if several and name == "best_submodel" else _NO_BEARING.get(name)
            if name == "centralized" and _lacks_photos(results):
                without = ("strategy.", "attack")
            if without is None:
                read_by = _READ_BY | {
                    f"strategy.{short_name(one)}.": one for one in models if one not in RULES
                }
                without = tuple(key for key, rule in read_by.items() if rule != name)
            # What other seeds draw is nothing to the experiment whose seed all draws have.
            first = results.get("config", {}).get("seed") == results.get("seed")
            drawn = ("vary",) if first else ()
            kept = {
                key: None if key.startswith(("runner.", *drawn, *without)) else value
                for key, value in parameters.items()
            }
            row = {**kept, "model": name, "n": model["n"]}
            row |= {key: view.score(results, model, key) for key in MEASURES}
            row |= _held_out(model) | attacked(results, name)
            if "bytes" in model and not several:
                row["bytes"] = model["bytes"]["up"] / len(model["clients"])
                row["title"] = model["title"]
                row["chosen"] = model.get("chosen", "as configured")
            if row not in rows:
                rows.append(row)
    return rows


def _lacks_photos(results: Results) -> bool:
    """Whether the shards decide which photos the centralized model is trained on."""
    data: Mapping[str, Any] = results.get("data", {})
    same = results.get("config", {}).get("centralized", {}).get("photos") == "same"
    dealt = data.get("left_out", {}).get("partition", {})
    return any(data.get("held_out", {}).values()) or (same and any(dealt.values()))


def grid_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of ``mode=merge``: the references, then ``results["grid"]``."""
    rows = sweep_rows([({}, results)])
    for merge in results["grid"]["rows"]:
        rows.append({k: v for k, v in merge.items() if k in FIXED or "." in k})
        rows[-1]["precision"] = view.score(results, merge, "precision")
        rows[-1] |= _held_out(merge)
    return rows


def _held_out(model: Tested | GridRow) -> dict[str, float]:
    """What was chosen by, where images are held out."""
    found = model.get("validation")
    return {"validation": found["accuracy"], "validation_loss": found["loss"]} if found else {}


def write_sweep_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    warnings: Sequence[str] = (),
    replicated: Mapping[str, Replicated] = MappingProxyType({}),
    more: Sequence[Table | None] = (),
    compared: Sequence[Gaps] = (),
    files: view.Files = view.AS_SHOWN,
) -> None:
    """Write ``sweep.csv``, ``figures/`` and ``sweep.html``.

    Parameters
    ----------
    folder
        The sweep's folder.
    rows
        See the module's description and :func:`sweep_rows`.
    warnings
        What a reader must know first, for example `cautions.of_runs` of the jobs.
    replicated
        What several seeds say of the merged models, under any names.
    more
        Further tables over seeds.
    compared
        The gaps between merged and centralized models of the jobs.
    files
        Of the figures; without formats there are none.
    """
    from fedcats.report import drawing

    folder.mkdir(parents=True, exist_ok=True)
    write_sweep_csv(folder / "sweep.csv", rows)
    what = (
        "dashed: centralized (thin: with as many steps as a client), dotted: "
        f"the {_best_single(rows)}, dash-dotted: the plain mean"
    )
    drawn = drawing.write(
        folder / "figures",
        {
            "seeds": (SEEDS_CAPTION, lambda: over_seeds(replicated)),
            "sweep": (
                f"Scores of the merged models on the test set; {what}. Bands are 95% Wilson "
                "intervals of the accuracy.",
                lambda: curves(rows),
            ),
            "epsilon": (EPSILON_CAPTION, lambda: over_epsilon(rows)),
            "frontier": (FRONTIER, lambda: frontier(rows)),
            "heat": (
                "Accuracy of the merged models on the test set, in %; framed: the highest.",
                lambda: heat(rows),
            ),
            "dots": (
                "Scores of every model on the test set; bars are 95% Wilson intervals.",
                lambda: dots(rows),
            ),
            "gaps": (GAPS, lambda: side_by_side(compared)),
            "barrier-gap": (BARRIER_GAP, lambda: scatter(compared)),
        },
        files,
    )
    jobs = sorted(path.parent.name for path in folder.glob("*/report.html"))
    text = render(
        page.SWEEP,
        drawn,
        title="fedcats sweep",
        kind="FEDCATS SWEEP",
        heading=_heading(rows),
        warnings=warnings,
        answer=[*_answer(rows, replicated), *sentences(compared)],
        meta=f"{len(rows)} models",
        points=points_table(rows),
        csv="sweep.csv",
        frontier=frontier_table(rows),
        seeds=[tables.over_seeds(replicated), *more, tables.measures_over_seeds(replicated)],
        jobs=sorted(jobs, key=lambda name: (len(name), name)),
    )
    (folder / "sweep.html").write_text(text, encoding="utf-8", errors="backslashreplace")


def print_sweep(
    rows: Sequence[Row],
    folder: Path | None,
    console: Console | None = None,
    *,
    warnings: Sequence[str] = (),
    note: str = "",
    replicated: Mapping[str, Replicated] = MappingProxyType({}),
    more: Sequence[Table | None] = (),
) -> None:
    """Print the points, the answer and, as the last line, the absolute path of the folder."""
    from rich.text import Text

    from fedcats.report.console import SafeConsole

    out = SafeConsole() if console is None else console
    for warning in warnings:
        out.print(Text(warning, style="yellow"))
    out.print(to_rich(points_table(rows), out.width))
    out.print()
    for table in (tables.over_seeds(replicated), *more):
        if table is not None:
            out.print(to_rich(table, out.width))
            out.print()
    out.print(Text(" ".join(_answer(rows, replicated)), style="bold"))
    if note:
        out.print(Text(note))
    if folder is not None:
        out.print(str(folder.resolve()), markup=False, highlight=False, soft_wrap=True)


def _answer(rows: Sequence[Row], replicated: Mapping[str, Replicated]) -> list[str]:
    some = replicated.values() if len(replicated) <= _SAID else ()
    return [
        *(of_replication(one, "pictures") for one in some),
        *sweep_verdict(rows),
        *frontier_answer(rows),
    ]


def write_sweep_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, parameters first; what has no bearing or is not defined is an empty field."""
    names = [*varied_parameters(rows), *(key for key in FIXED[1:] if any(key in r for r in rows))]
    body = ([row.get(name, "") for name in names] for row in rows)
    # Of all values NaN alone is not equal to itself.
    write_csv(path, [names, *(["" if v != v else v for v in line] for line in body)])


def sweep_verdict(rows: Sequence[Row]) -> list[str]:
    """Say which merged model did best, beside the centralized one and the best sub-model.

    Of seeds, which are no settings, the means.
    """
    averaged = means_over_seeds(rows)
    if len(averaged) < len(rows):
        first, *more = sweep_verdict(averaged)
        return [f"In the mean over seeds: {first}", *more]
    apart = [name for name in DATA_SETS if len(distinct_values(rows, name)) > 1]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in apart), []).append(row)
    if len(groups) > 1:
        names = [short(name) for name in apart]
        return [
            f"With {', '.join(f'{n} {value_text(v)}' for n, v in zip(names, key, strict=True))}: "
            + " ".join(sweep_verdict(group))
            for key, group in groups.items()
        ]
    models = merged_rows(rows)
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
            f"Of {len(models)} merged models {model_name(best, rows)} has the highest accuracy, "
            f"{view.percent(best['accuracy'])}; {model_name(worst, rows)} has the lowest, "
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
    top = max(row["validation"] for row in merges or models)
    equal = [row for row in merges or models if row["validation"] == top]
    chosen = min(equal, key=lambda row: row["validation_loss"])
    why = f", and of {len(equal)} with that the lowest loss" if equal[1:] else ""
    return [
        f"Of {len(models)} models {model_name(chosen, rows)} is chosen: it has the highest "
        f"accuracy on the held-out training pictures, {view.percent(top)}{why}. On the "
        "test pictures, which had no part in the choice, it has "
        f"{view.percent(chosen['accuracy'])}.",
        _beside(chosen, rows).strip(),
    ]


def _beside(chosen: Row, rows: Sequence[Row]) -> str:
    """The reference models that the chosen one is to be compared with."""
    beside = []
    for model in REFERENCES:
        found = [row for row in rows if row["model"] == model and fits(row, chosen, rows)]
        if found:
            top = max(found, key=lambda row: row["accuracy"])
            name = _best_single(found) if model == "best_submodel" else title(model)
            beside.append(f"{name} {view.percent(top['accuracy'])}")
    return f"To compare: {', '.join(beside)}. " if beside else ""


def _best_single(rows: Sequence[Row]) -> str:
    """What the best sub-model is called: on what it was picked must be known."""
    own = [row for row in rows if row["model"] == "best_submodel"]
    if own and all("validation" in row for row in own):
        return "best sub-model (chosen on held-out pictures)"
    return "best sub-model (picked on the test pictures)"


def points_table(rows: Sequence[Row]) -> Table:
    """Every row, with the difference in accuracy from the centralized model in points."""
    names = varied_names(rows)
    body: list[tuple[str, ...]] = []
    for row in rows:
        base = [r for r in rows if r["model"] == "centralized" and fits(r, row, rows)]
        body.append(
            (
                *(value_text(row.get(name)) for name in names),
                title(row["model"]),
                *(view.four_digits(row[key]) for key in MEASURES),
                points(row["accuracy"] - base[0]["accuracy"]) if len(base) == 1 else "–",
            )
        )
    header = (*(short(name) for name in names), "model", *MEASURES, "Δ")
    return Table(
        "Every point",
        header,
        body,
        text=tuple(range(len(names) + 1)),
        note="Δ: accuracy minus that of the centralized model, in percentage points.",
    )


# --- what varies -----------------------------------------------------------------------------


def _heading(rows: Sequence[Row]) -> str:
    names = [short(name) for name in varied_names(merged_rows(rows))]
    return f"The merged model over {' and '.join(names)}" if names else "The merged models"
