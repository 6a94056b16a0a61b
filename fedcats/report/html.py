"""The page of a run: one file that holds its figures, its style and no link to anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedcats.report import (
    cautions,
    dp,
    page,
    photos,
    privacy,
    split,
    tables,
    thresholds,
    validation,
    verdict,
    view,
)
from fedcats.report.frontier import frontier_answer, frontier_table
from fedcats.report.page import render
from fedcats.results import OverSeeds, Replicated, Results

if TYPE_CHECKING:
    from fedcats.data import Images


def write_report(folder: Path, results: Results, images: Images | None = None) -> None:
    """Draw the figures of a run and write its page.

    Parameters
    ----------
    folder
        The run folder. ``figures/`` and ``report.html`` are written to it; ``history.csv`` is read
        from it if it is there.
    results
        The results dict (``results.json``, schema 1). No key of ``models`` is required, and
        neither are ``comparison``, ``paper``, ``rounds``, ``store`` and ``failures``. With
        ``grid`` (``mode=merge``) the page is that of a sweep.
    images
        The test images, for the gallery.
    """
    if "grid" in results:
        from fedcats.report.sweep import grid_rows, write_sweep_report

        write_sweep_report(
            folder,
            grid_rows(results),
            warnings=cautions.warnings(results),
            files=view.figure_files(results),
        )
        return
    from fedcats.report import explained
    from fedcats.report.figures import run_figures
    from fedcats.report.sweep import sweep_rows

    drawn, rows = run_figures(results, folder), sweep_rows([({}, results)])
    text = render(
        page.REPORT,
        drawn,
        title="fedcats report",
        kind="FEDCATS RUN REPORT",
        heading="How much is lost when the photos stay on the devices and only weights are merged?",
        warnings=cautions.warnings(results),
        answer=verdict.answer(results),
        meta=_meta(results),
        made_by=_made_by(results),
        gallery=photos.gallery(results, folder, images),
        data=photos.data(results),
        cards=_cards(results),
        of_seed=view.of_seed(results),
        explained=explained.sections(results),
        tables={
            "seeds": tables.over_seeds(view.replication(results)),
            "measures": tables.measures_over_seeds(view.replication(results)),
            "scores": tables.scores(results),
            "comparison": tables.comparison(results),
            "split": split.in_one_run(results),
            "split_over_seeds": split.over_seeds_of(results),
            "split_measures": split.measures_of(results),
            "thresholds": thresholds.table(results),
            "paper": tables.paper(results),
            "frontier": frontier_table(rows),
            "rounds": tables.rounds(results),
            "per_class": tables.per_class(results),
            "cost": tables.cost(results),
            "shards": tables.shards(results),
            "membership": privacy.membership(results),
            "promise": dp.promise(results),
            "who_sees_what": privacy.who_sees_what(results),
        },
        privacy=[*dp.sentences(results), *privacy.sentences(results)],
        validation=validation.sentences(results),
        frontier=frontier_answer(rows),
        made=_made(results),
        config=json.dumps(results.get("config", {}), indent=2, ensure_ascii=False, default=str),
        thing=view.things(results).removesuffix("s"),
    )
    (folder / "report.html").write_text(text, encoding="utf-8", errors="backslashreplace")


def _meta(results: Results) -> str:
    data = results["data"]
    what = view.things(results)
    classes = data["classes"]
    parts = [
        ", ".join(classes) if len(classes) <= view.MANY_CLASSES else f"{len(classes)} classes",
        f"{sum(data['train'].values()):,} training {what}",
        f"{sum(data['test'].values()):,} test {what}",
    ]
    if data.get("shards"):
        parts.append(f"{len(data['shards'])} clients")
    return " · ".join([*parts, f"seed {results.get('seed')}"])


def _made_by(results: Results) -> str:
    """When, by which version, and the command."""
    parts = [f"fedcats {results.get('versions', {}).get('fedcats', '')}".strip()]
    if date := results.get("date"):
        parts.insert(0, date.replace("T", " ")[:16] + date[19:])
    return " · ".join([*parts, *([results["command"]] if results.get("command") else [])])


def _cards(results: Results) -> list[dict[str, str]]:
    """The three numbers of the answer: what merging changes in accuracy, precision, recall."""
    base, rules = view.centralized(results), view.merged(results)
    if base is None or not rules:
        return []
    if replication := view.replication(results):
        return _cards_over_seeds(next(iter(replication.values())))
    name, model = next(iter(rules.items()))
    found = (results.get("comparison") or {}).get(name)
    cards = []
    for key in view.SCORES:
        detail = f"centralized {view.percent(base[key])}, merged {view.percent(model[key])}"
        ends = view.interval(found[key]) if found else ""
        ends = f"interval {ends}" if " to " in ends else ends
        change = f"{view.points(model[key] - base[key])} points"
        if key == "precision" and any(view.takes_none(results, one) for one in (base, model)):
            change, ends = tables.EMPTY, "not defined where nothing is taken for the class"
        cards.append({"name": key, "change": change, "detail": detail, "interval": ends})
    return cards


def _cards_over_seeds(found: Replicated) -> list[dict[str, str]]:
    shown: dict[str, OverSeeds] = {"accuracy": found} | found["measures"]
    return [
        {
            "name": key,
            "change": f"{view.points(shown[key]['difference'] or 0)} points",
            "detail": f"mean over {len(found['seeds'])} seeds",
            "interval": f"interval {view.interval(shown[key])}".replace("interval no", "no"),
        }
        for key in view.SCORES
    ]


def _made(results: Results) -> list[tuple[str, str]]:
    weights, store = results.get("weights") or {}, results.get("store") or {}
    items = [("initial weights", str(weights.get("source", "unknown")))]
    if weights.get("note"):
        items.append(("about them", str(weights["note"])))
    if weights.get("sha256"):
        items.append(("their sha256", str(weights["sha256"])))
    items += [("seed", str(results.get("seed"))), ("data", str(results["data"].get("source")))]
    if machine := results.get("machine"):
        items.append(("machine", ", ".join(f"{key}: {value}" for key, value in machine.items())))
    if store:
        trained, reused = store.get("trained", ()), store.get("reused", ())
        items.append(("models", f"{len(trained)} trained, {len(reused)} taken from the store"))
    saved = [model for model in results["models"].values() if model.get("file")]
    kept = [model for model in results["models"].values() if model.get("key")]
    if saved or kept:
        stored = f"{len(kept)} in the store, by the keys in results.json" if kept else ""
        files = f"{len(saved)} in models/" if saved else ""
        items.append(("weights of the models", "; ".join(filter(None, (files, stored)))))
    for name, seconds in (results.get("seconds") or {}).items():
        if isinstance(seconds, int | float):
            items.append((f"time: {name}", view.duration(seconds)))
    versions = (f"{name} {version}" for name, version in results.get("versions", {}).items())
    return [*items, ("versions", ", ".join(versions))]
