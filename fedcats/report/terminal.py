"""The terminal: progress while a run works, a summary when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedcats.report import cautions, dp, privacy, split, tables, validation, verdict, view
from fedcats.report.rich_table import to_rich
from fedcats.results import Results

if TYPE_CHECKING:
    from rich.console import Console


def print_summary(results: Results, folder: Path | None, console: Console | None = None) -> None:
    """Print the answer, the scores and, as the last line, the absolute path of the run folder.

    Parameters
    ----------
    results
        The results dict (``results.json``, schema 1).
    folder
        The run folder; without one the last line is left out.
    console
        Where to print; standard output by default.
    """
    from rich.text import Text

    from fedcats.report.console import SafeConsole

    out = SafeConsole() if console is None else console
    if "grid" in results:
        from fedcats.report.sweep import grid_rows, print_sweep

        rows, grid = grid_rows(results), results["grid"]
        different = len({row["sha256"] for row in grid["rows"]})
        note = f"{grid['points']} combinations, {different} different models. "
        warnings = cautions.warnings(results)
        print_sweep(rows, folder, out, warnings=warnings, note=note + _store_note(results))
        return
    for warning in cautions.warnings(results):
        out.print(Text(warning, style="yellow"))
        out.print()
    for table in (
        tables.over_seeds(view.replication(results)),
        tables.scores(results, submodels=False),
        tables.paper(results, submodels=False),
        None if view.replication(results) else tables.comparison(results, counts=False),
        split.over_seeds_of(results) or split.in_one_run(results, counts=False),
    ):
        if table is not None:
            out.print(to_rich(table, out.width))
            out.print()
    out.print(Text(" ".join(verdict.answer(results)), style="bold"))
    for part in (validation, dp, privacy):
        for sentence in part.sentences(results):
            out.print(Text(sentence))
    if text := _store_note(results):
        out.print(text, markup=False, highlight=False)
    if folder is not None:  # one line whatever the width, so that it can be copied
        out.print(str(folder.resolve()), markup=False, highlight=False, soft_wrap=True)


def _store_note(results: Results) -> str:
    """What was trained and what was found; empty without a store."""
    store = results.get("store") or {}
    if not store:
        return ""
    count = {key: len(value) for key, value in store.items() if isinstance(value, list | dict)}
    text = f"{count.get('trained', 0)} trained, {count.get('reused', 0)} taken from the store."
    if resumed := count.get("resumed"):
        text += f" {resumed} went on from a checkpoint."
    if damaged := count.get("damaged"):
        text += f" {damaged} trained anew because the store's entry was damaged."
    return text
