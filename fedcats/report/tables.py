"""The report's tables, each written once as rows of text and rendered for three readers.

Every function takes the results dict and returns a :class:`Table`, or None where the run has
nothing to put in it. ``to_markdown`` renders for a README, ``to_html`` for the page, and
`fedcats.report.rich_table` for the terminal.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fedcats.report import view
from fedcats.report.validation import NOTE, lowest, on_held_out
from fedcats.report.view import MEASURES, points
from fedcats.results import Comparison, OverSeeds, Published, Replicated, Results, Scores, Traffic
from fedcats.results.names import is_submodel, submodel
from fedcats.text import shown

EMPTY = view.EMPTY


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes
    ----------
    title
        Heading, without a full stop.
    header
        Column names.
    rows
        Cells, one tuple per row, each as long as ``header``.
    text
        Indices of the columns that hold words (left-aligned); the others hold numbers.
    note
        What a reader needs to know to read it; may be empty.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text: tuple[int, ...] = (0,)
    note: str = ""

    def __post_init__(self) -> None:
        """Cells hold names of others: none of them can do harm."""
        object.__setattr__(self, "header", tuple(map(shown, self.header)))
        self.rows[:] = [tuple(map(shown, row)) for row in self.rows]


def to_markdown(table: Table) -> str:
    """Render as a GitHub table, without title and note."""

    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = tuple("---" if i in table.text else "---:" for i in range(len(table.header)))
    return "\n".join([line(table.header), line(rule), *map(line, table.rows)]) + "\n"


def to_html(table: Table) -> str:
    """Render as an HTML table that scrolls sideways on a narrow screen."""

    def cells(tag: str, row: tuple[str, ...]) -> str:
        scope = " scope=col" if tag == "th" else ""
        return "".join(
            f"<{tag}{scope}{'' if i in table.text else ' class=num'}>{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in table.rows)
    note = f"<p class=note>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{html.escape(table.title)}">'
        f"<table><thead><tr>{cells('th', table.header)}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def scores(results: Results, *, submodels: bool = True) -> Table:
    """Accuracy, precision, recall, F1, loss and, for two classes, the four counts.

    With ``submodels=False`` the clients' own models are one row, their medians.
    """
    binary = view.is_binary(results)
    own = view.submodels(results)
    rows = [
        (view.title(results, name), *_numbers(results, model), *_counts(results, model))
        for name, model in view.ordered(results).items()
        if submodels or not is_submodel(name)
    ]
    if own and not submodels:
        middle = (f"{median(m[key] for m in own.values()):.4f}" for key in MEASURES)
        unknown = (EMPTY,) * 4 if binary else ()
        rows.append((f"median of {len(own)}", *middle, *unknown))
    if binary:
        classes, of = results["data"]["classes"], view.positive(results)
        note = f"Precision, recall and F1 of the class {classes[of]}; "
        note += f"tn: {classes[1 - of]} seen as {classes[1 - of]}."
    else:
        note = (
            "Precision, recall and F1 are means over the classes; where a class has none, it is 0."
        )
    header: tuple[str, ...] = ("model", "accuracy", "precision", "recall", "F1", "loss")
    header += ("tn", "fp", "fn", "tp") if binary else ()
    return Table(f"Scores{view.of_seed(results)}", header, rows, note=note)


def paper(results: Results, *, submodels: bool = True) -> Table | None:
    """Every score beside the paper's, with the difference in percentage points."""
    if not view.has_paper(results):
        return None
    rows = [
        (view.title(results, name), *_beside(model, view.published(results, name)))
        for name, model in view.ordered(results).items()
        if view.published(results, name) and (submodels or not is_submodel(name))
    ]
    pairs = [
        (model, view.published(results, submodel(client)))
        for client, model in view.submodels(results).items()
        if view.published(results, submodel(client))
    ]
    if pairs:
        here = Published()
        there = Published()
        for key in view.SCORES:
            here[key] = median(m[key] for m, _ in pairs)
            there[key] = median(p[key] for _, p in pairs)
        rows.append((f"median of {len(pairs)}", *_beside(here, there)))
    each = tuple(column for key in view.SCORES for column in (key, "paper", "Δ"))
    note = "Δ: this run minus the paper, in percentage points."
    if pairs:
        note += " The paper's shards held other photos: its sub-models compare as a group."
    return Table("Beside the paper", ("model", *each), rows, note=note)


def comparison(results: Results, *, counts: bool = True) -> Table | None:
    """Each merged model against the centralized one on the same test set.

    With ``counts`` also on how many pictures exactly one of the two was right.
    """
    found = results.get("comparison") or {}
    named = {view.title(results, name): one for name, one in found.items()}
    title = f"Merged minus centralized{view.of_seed(results)}"
    return compared(title, named, results, counts=counts) if named else None


def compared(
    title: str, found: Mapping[str, Comparison], results: Results, *, counts: bool
) -> Table:
    """Comparisons of single models, by what they are called."""
    holm = counts and len(found) > 1
    rows = [
        (
            name,
            *(
                f"{points(one[key]['difference'])} ({view.interval(one[key])})"
                if view.is_defined(results, one, key)
                else EMPTY
                for key in view.SCORES
            ),
            *((f"{one['only_model_right']} : {one['only_reference_right']}",) if counts else ()),
            _p(one["mcnemar_p"]),
            *((_p(one.get("mcnemar_p_holm")),) if holm else ()),
        )
        for name, one in found.items()
    ]
    level = f"{100 * next(iter(found.values())).get('confidence', 0.95):.0f}%"
    exact = "accuracy and recall" if view.is_binary(results) else "accuracy"
    note = (
        f"Differences in percentage points with {level} intervals, exact ones for {exact}; p of "
        f"the exact McNemar test of the accuracy{', also by Holm over the models' * holm}. All "
        f"speak of the choice of test {view.things(results)}, not of another training seed."
    )
    header = ("model", *view.SCORES, *(("only one right",) if counts else ()), "p")
    return Table(title, (*header, *(("p Holm",) if holm else ())), rows, note=note)


def over_seeds(found: Mapping[str, Replicated], title: str = "Over seeds") -> Table | None:
    """Each model's accuracy minus its reference's, over seeds."""
    if not found:
        return None
    rows = [
        (
            one["title"],
            f"{points(one['difference'] or 0)} ({view.interval(one)})",
            one["verdict"] or EMPTY,
            *(_p(one[key]) for key in ("p_difference", "p_difference_holm", "p_equivalence_holm")),
            number(one["at_least_as_good"], "{:.2f}"),
        )
        for one in found.values()
    ]
    first = next(iter(found.values()))
    note = (
        f"Mean difference in accuracy over {len(first['seeds'])} seeds in percentage points, with "
        f"{100 * first['confidence']:.0f}% interval; p of no difference, also by Holm over the "
        f"models, and of one of {view.size(first['margin'])} or more, by Holm; P: probability "
        "that with a new seed, on these images, the model is at least as good."
    )
    header = ("model", "difference", "verdict", "p", "p Holm", "p margin", "P")
    return Table(title, header, rows, text=(0, 2), note=note)


def measures_over_seeds(found: Mapping[str, Replicated]) -> Table | None:
    """Each measure of each merged model minus the centralized one's, and what moves it."""
    rows = []
    for model in found.values():
        accuracy: dict[str, OverSeeds] = {"accuracy": model}
        for measure, one in (accuracy | model["measures"]).items():
            deviation = one["deviation"]
            parts = [None] * 3 if deviation is None else [*deviation.values()]
            signed = (one["difference"], one["low"], one["high"])
            cells = [*(number(value, "{:+.4f}") for value in signed)]
            cells += [number(value) for value in parts]
            good = number(one["at_least_as_good"], "{:.2f}")
            rows.append((model["title"], measure.replace("_", " "), *cells, good))
    note = (
        "Of log loss, Brier score and calibration error (ece) less is better. The standard "
        "deviations are of one run's difference: another seed on the same images, other images "
        "with all seeds alike, and what other images do to each seed by itself."
    )
    header: tuple[str, ...] = ("model", "measure", "difference", "low", "high")
    header += ("sd seeds", "sd images", "sd both", "P")
    return Table("Each measure over seeds", header, rows, text=(0, 1), note=note) if rows else None


def number(value: object, form: str = "{:.4f}") -> str:
    """Format a number with a true minus; a dash where there is none."""
    return EMPTY if value is None else form.format(value).replace("-", view.MINUS)


def _p(p: float | None) -> str:
    return EMPTY if p is None else view.p_value(p).removeprefix("p = ").removeprefix("p ")


def per_class(results: Results) -> Table | None:
    """Precision, recall and F1 of every class for the centralized and the merged models."""
    rows = [
        (
            view.title(results, name),
            label,
            *(f"{value:.4f}" for value in (one["precision"], one["recall"], one["f1"])),
            f"{one['support']:,}",
        )
        for name, model in view.of_all(results).items()
        for label, one in model.get("per_class", {}).items()
    ]
    if not rows:
        return None
    header = ("model", "class", "precision", "recall", "F1", "test set")
    return Table("Each class", header, rows, text=(0, 1))


def shards(results: Results) -> Table | None:
    """What each client held, how its own model scored, and how much of it each merge kept."""
    found = results["data"].get("shards") or []
    if not found:
        return None
    classes = results["data"]["classes"]
    each = len(classes) <= view.MANY_CLASSES
    weights = {
        name: dict(zip(view.clients(model), model["effective_weights"], strict=True))
        for name, model in view.merged(results).items()
        if model.get("effective_weights")
    }
    own = view.submodels(results)
    last = results["rounds"][-1] if len(results.get("rounds") or []) > 1 else {}
    later = {
        f"{view.title(results, name)}, round {last['round']}": dict(
            zip(one["clients"], one["own"], strict=True)
        )
        for name, one in view.by_rule(last).items()
        if "own" in one
    }
    rows = []
    for shard in found:
        client = shard["client"]
        model = own.get(client)
        counts = Counter(shard.get("per_class", {}))
        rows.append(
            (
                str(client),
                f"{shard['examples']:,}",
                *([f"{counts[name]:,}" for name in classes] if each else [str(len(+counts))]),
                number(model and model["accuracy"]),
                *(number(accuracy.get(client)) for accuracy in later.values()),
                *(_share(kept.get(client)) for kept in weights.values()),
            )
        )
    header = ("client", "examples", *(classes if each else ("classes",)))
    header += (f"own accuracy{', round 1' if last else ''}", *(f"own, {name}" for name in later))
    kept = tuple(f"in {view.title(results, name)}" for name in weights)
    note = "The last columns: how much of the client's weights is in each merged model."
    return Table("The shards", (*header, *kept), rows, note=note if kept else "")


def cost(results: Results) -> Table | None:
    """Examples, steps, final training loss and time of every trained model."""
    trained = {name: m for name, m in view.ordered(results).items() if m.get("training")}
    if not trained:
        return None
    beside = view.has_paper(results)
    held = any(lowest(m["training"]["epochs"]) for m in trained.values())
    rows = []
    for name, model in trained.items():
        training, there = model["training"], view.published(results, name)
        epochs = training["epochs"]
        seconds = sum(epoch.get("seconds") or 0.0 for epoch in epochs)
        row = [
            view.title(results, name),
            f"{training['examples']:,}",
            str(len(epochs)),
            f"{training['steps']:,}",
            number(epochs[-1]["loss"] if epochs else None),
            view.duration(seconds),
        ]
        if beside:
            known = there.get("training_loss")
            row[5:5] = [number(known)]
            row.append(f"{there['minutes']:g} min" if "minutes" in there else EMPTY)
        if held:
            best = lowest(epochs)
            place = 5 + beside
            row[place:place] = [number(best and on_held_out(epochs[-1])), number(best, "{}")]
        rows.append(tuple(row))
    several = len(results.get("rounds") or []) > 1
    for one in (results.get("rounds") or [])[1:]:
        for name, merged in view.by_rule(one).items():
            if did := merged.get("training"):
                who = f"round {one['round']}, {len(merged['clients'])} clients"
                cells = [f"{did['examples']:,}", str(did["epochs"]), f"{did['steps']:,}"]
                tested = did.get("validation")
                cells += [f"{did['loss']:.4f}", *[EMPTY] * beside]
                cells += [number(tested and tested["loss"]), EMPTY] if held else []
                cells.append(view.duration(did["seconds"]))
                title = f"{who} ({view.title(results, name)})"
                rows.append((title, *cells, *[EMPTY] * beside))
    header = ["model", "examples", "epochs", "steps", "last loss", "time"]
    if beside:
        header[5:5] = ["paper"]
        header.append("paper's time")
    if held:
        header[-1 - beside : -1 - beside] = ["held out", "lowest after"]
    note = (
        "Sub-models: in the first round. Of later rounds all clients of a rule together; their "
        "loss is the mean of the last epochs'."
    )
    notes = [NOTE.format(things=view.things(results))] if held else []
    return Table("Training", tuple(header), rows, note=" ".join([*notes, *[note] * several]))


def rounds(results: Results) -> Table | None:
    """Scores of the merged models after each round, if there was more than one."""
    found = results.get("rounds") or []
    if len(found) < 2:
        return None
    rows = [
        (
            str(one["round"]),
            view.title(results, name),
            *_numbers(results, model),
            _own_models([value for value in model.get("own", ()) if value is not None]),
            *_megabytes(model["bytes"]),
        )
        for one in found
        for name, model in view.by_rule(one).items()
    ]
    header = ("round", "model", "accuracy", "precision", "recall", "F1", "loss")
    note = (
        "Own: accuracy of the clients' own models before they were merged, median and range. Down, "
        "up: weights to the clients of the round and back, in a real federation."
    )
    return Table("After each round", (*header, "own", "down", "up"), rows, text=(1,), note=note)


def _own_models(found: list[float]) -> str:
    return f"{median(found):.4f} ({view.span(found)})" if found else EMPTY


def _megabytes(traffic: Traffic) -> tuple[str, str]:
    return f"{traffic['down'] / 1e6:,.1f} MB", f"{traffic['up'] / 1e6:,.1f} MB"


def _numbers(results: Results, model: Scores) -> tuple[str, ...]:
    return tuple(view.four_digits(view.score(results, model, key)) for key in MEASURES)


def _counts(results: Results, model: Scores) -> tuple[str, ...]:
    """True and false negatives, false and true positives of two classes."""
    if not view.is_binary(results):
        return ()
    both = (1 - view.positive(results), view.positive(results))
    return tuple(str(model["confusion_matrix"][true][said]) for true in both for said in both)


def _beside(here: Scores | Published, there: Published) -> tuple[str, ...]:
    return tuple(
        cell
        for key in view.SCORES
        for cell in (f"{here[key]:.4f}", f"{there[key]:.4f}", points(here[key] - there[key]))
    )


def _share(weight: float | None) -> str:
    if weight is None:
        return EMPTY
    return f"{100 * weight:.1f}%" if weight >= 0.01 else f"{100 * weight:.2g}%"
