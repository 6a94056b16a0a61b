"""Finished runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedcats.metrics import compare, read_predictions, wilson
from fedcats.report import view
from fedcats.report.tables import EMPTY, Table
from fedcats.report.varied import flat
from fedcats.results import Results
from fedcats.seeding import derive_seed


def beside(runs: Sequence[tuple[Path, Results]]) -> list[Table]:
    """Tables that lay runs side by side.

    Parameters
    ----------
    runs
        Folder and results of each.

    Returns
    -------
    list of Table
        The settings that differ, if any; the scores of all models but the clients' own; and what
        the runs from the second on differ from the first in, model by model, where both were
        tested on the same images.
    """
    found = [_settings([results for _, results in runs]), _scores(runs), _differences(runs)]
    return [table for table in found if table is not None]


def _settings(runs: Sequence[Results]) -> Table | None:
    configs = [dict(flat(results["config"])) for results in runs]
    keys = dict.fromkeys(key for one in configs for key in one)
    rows = []
    for key in keys:
        values = [one.get(key, EMPTY) for one in configs]
        if any(value != values[0] for value in values):
            rows.append((key, *map(str, values)))
    if not rows:
        return None
    header = ("key", *(f"run {number}" for number in range(1, len(runs) + 1)))
    return Table("Settings that differ", header, rows, text=tuple(range(len(header))))


def _scores(runs: Sequence[tuple[Path, Results]]) -> Table:
    rows = []
    for number, (_, results) in enumerate(runs, 1):
        for name, model in view.of_all(results).items():
            low, high = wilson(round(model["accuracy"] * model["n"]), model["n"])
            interval = f"{view.percent(low)} to {view.percent(high)}"
            scores = (view.percent(view.score(results, model, key)) for key in view.SCORES)
            rows.append((str(number), view.title(results, name), *scores, interval))
    header = ("run", "model", *view.SCORES, "interval")
    note = "The 95% Wilson interval is of the accuracy."
    return Table("Scores", header, rows, text=(0, 1), note=note)


def _differences(runs: Sequence[tuple[Path, Results]]) -> Table | None:
    (first, base), *others = runs
    rows: list[tuple[str, ...]] = []
    apart = []
    for number, (folder, results) in enumerate(others, 2):
        if results["data"]["digest"]["test"] != base["data"]["digest"]["test"]:
            apart.append(f"run {number}")
            continue
        for name, model in view.of_all(results).items():
            if name not in base["models"]:
                continue
            here = read_predictions(folder / model["predictions"])
            there = read_predictions(first / base["models"][name]["predictions"])
            seed = derive_seed(base["seed"], "bootstrap")
            found = compare(here.labels, here.probabilities, there.probabilities, seed=seed)
            accuracy = found["accuracy"]
            change = (view.points(accuracy["difference"]), view.interval(accuracy))
            p = view.p_value(found["mcnemar_p"]).removeprefix("p = ").removeprefix("p ")
            rows.append((str(number), view.title(results, name), *change, p))
    note = "Accuracy minus that of the model of the same name in run 1, in points, on the same "
    note += "images; p of the exact McNemar test. They speak of the choice of images, not of seeds."
    if apart:
        note += f" Not for {', '.join(apart)}: tested on other images than run 1."
    header = ("run", "model", "difference", "95% interval", "p")
    if not rows and not apart:
        return None
    return Table("Against run 1", header, rows, text=(0, 1), note=note)
