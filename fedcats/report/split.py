"""The difference from training in one place in two parts: fewer steps, and photos kept apart.

``same_steps`` is trained in one place with as many steps as one client. What it has less than the
centralized model comes with fewer steps, what a merged model has less than it with keeping the
photos apart; the two add up to the whole difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedcats.report import tables, thresholds, view
from fedcats.report.tables import Table
from fedcats.report.view import interval, points
from fedcats.results import OverSeeds, Replicated, Results, SplitOverSeeds, Unbounded
from fedcats.results.names import IN_ONE_PLACE

TITLE = "What fewer steps cost, and what keeping photos apart costs"
_NOTE = (
    "Steps: trained in one place with as many steps as one client, minus centralized; apart: "
    "merged minus that. "
)


def in_one_run(results: Results, *, counts: bool = True) -> Table | None:
    """Both parts of each merged model's difference; None where there is no ``same_steps``."""
    split = results.get("split")
    if split is None:
        return None
    named = {"steps": split["fewer_steps"]}
    named |= {f"apart: {view.title(results, k)}": one for k, one in split["photos_apart"].items()}
    table = tables.compared(f"{TITLE}{view.of_seed(results)}", named, results, counts=counts)
    return replace(table, note=_NOTE + table.note)


def over_seeds(fewer: Iterable[Replicated], apart: Iterable[Replicated]) -> Table | None:
    """The same over seeds, of a run or of all settings of a sweep."""
    table = tables.over_seeds(_named(fewer, apart), f"{TITLE}, over seeds")
    return table and replace(table, note=_NOTE + table.note)


def over_seeds_of(results: Results) -> Table | None:
    """The same, from the results of a run."""
    split = _over(results)
    return split and over_seeds([split["fewer_steps"]], split["photos_apart"].values())


def measures_of(results: Results) -> Table | None:
    """Each measure of both parts over seeds."""
    split = _over(results)
    named = split and _named([split["fewer_steps"]], split["photos_apart"].values())
    return tables.measures_over_seeds(named or {})


def _named(fewer: Iterable[Replicated], apart: Iterable[Replicated]) -> dict[str, Replicated]:
    named = [(one["title"].replace(view.TITLES["same_steps"], "steps"), one) for one in fewer]
    named += [(f"apart: {one['title']}", one) for one in apart]
    return {title: {**one, "title": title} for title, one in named}


def _over(results: Results) -> SplitOverSeeds | None:
    """Where there are several seeds."""
    return results.get("split_over_seeds") if view.replication(results) else None


def sentences(results: Results, name: str) -> list[str]:
    """Say how much of one merged model's difference comes with what; nothing if not known."""
    models, split = results["models"], results.get("split")
    pairs: list[tuple[float | None, Unbounded | OverSeeds]]
    if split is None:
        return []
    all_steps, steps = (models[one]["training"]["steps"] for one in IN_ONE_PLACE)
    where = f"{steps:,} steps in one place instead of {all_steps:,}"
    if over := _over(results):
        parts = [over["fewer_steps"], over["photos_apart"][name]]
        said = [f"{points(one['difference'] or 0)} points ({_seen(one)})" for one in parts]
        pairs = [(one["difference"], one["measures"]["roc_auc"]) for one in parts]
    else:
        both = [split["fewer_steps"], split["photos_apart"][name]]
        found = [one["accuracy"] for one in both]
        said = [f"{points(one['difference'])} points ({interval(one)})" for one in found]
        pairs = [(o["accuracy"]["difference"], o["thresholdless"]["roc_auc"]) for o in both]
        where += f" give {view.percent(models['same_steps']['accuracy'])}"
    apart = f"keeping the {view.things(results)} apart"
    text = f"Of the difference {said[0]} come with fewer steps ({where}), {said[1]} with {apart}."
    named = zip((" with fewer steps", f" with {apart}"), pairs, strict=True)
    return [text, *(thresholds.other_way(area, what) for what, (difference, area) in named
                    if thresholds.differ(difference, area["difference"]))]  # fmt: skip


def _seen(one: Replicated) -> str:
    return ", ".join(filter(None, [interval(one), one["verdict"]]))
