"""What the experiments of several seeds say together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

from fedcats.errors import UserError
from fedcats.metrics import Predictions, read_predictions
from fedcats.metrics.measures import MEASURES
from fedcats.metrics.replication import Replication, replicate
from fedcats.metrics.verdict import Verdict, judge
from fedcats.report import view
from fedcats.results import OverSeeds, Replicated, Results, Seconds, StoreUse
from fedcats.results.names import is_submodel

Runs = Sequence[tuple[Path, Results]]


def prefix(seed: int) -> str:
    """What stands before the name of a training of one of several seeds."""
    return f"seed {seed}, "


def join(results: Results, runs: Sequence[Results]) -> None:
    """Make ``results`` say what all runs took from the store and trained, and how long it took."""
    results["seconds"] = cast(
        Seconds,
        {key: sum(one["seconds"][key] for one in runs) for key in results["seconds"]},  # type: ignore[literal-required]
    )
    if len(runs) == 1:
        return
    joined: dict[str, Any] = {**results["store"], "resumed": {}}
    for key in ("trained", "reused", "damaged"):
        joined[key] = [prefix(one["seed"]) + name for one in runs for name in one["store"][key]]
    for one in runs:
        joined["resumed"] |= {
            prefix(one["seed"]) + n: e for n, e in one["store"]["resumed"].items()
        }
    results["store"] = cast(StoreUse, joined)
    whole = cast(dict[str, Any], results)
    for part in ("failures", "not_scored"):
        found: dict[str, str] = {}
        for one in runs:
            said = cast(dict[str, Any], one).get(part, {})
            found |= {prefix(one["seed"]) + who: why for who, why in said.items()}
        if found:
            whole[part] = found


class Found(NamedTuple):
    """A model minus its reference over ``seeds``, by measure."""

    title: str
    seeds: list[int]
    measures: dict[str, Replication]


Families = dict[str, dict[str, Found]]
"""What is judged together: by model, ``replication`` (merged, beside ``centralized``),
``photos_apart`` (merged, beside ``same_steps``), ``fewer_steps`` (that, beside ``centralized``)."""


def over_seeds(runs: Runs) -> Families:
    """The models of some runs against their references, over the seeds of the runs.

    Parameters
    ----------
    runs
        For each seed the run folder, in which the predictions are, and the results.

    Raises
    ------
    UserError
        When the runs are not of different seeds with the same models and test photos.
    """
    seeds = [results["seed"] for _, results in runs]
    if len({*seeds}) < len(seeds):
        raise UserError(f"seeds {seeds}: not all different")
    data = [results["data"] for _, results in runs]
    if len({(one["digest"]["test"], *one["classes"]) for one in data}) > 1:
        raise UserError("the seeds have different test photos; seeds=[..] keeps those of one seed")
    positive = {view.positive(results) for _, results in runs}
    if len(positive) > 1:
        raise UserError("the seeds have different data.positive; allowed is one for all")
    read = [_predictions(folder, results) for folder, results in runs]
    labels = next(iter(read[0].values())).labels
    predicted = {
        seed: {name: one.probabilities for name, one in models.items()}
        for seed, models in zip(seeds, read, strict=True)
    }

    def title(rule: str) -> str:
        titles = {view.title(results, rule) for _, results in runs}
        return titles.pop() if len(titles) == 1 else view.TITLES.get(rule, rule)

    def against(reference: str, models: Iterable[str]) -> dict[str, Found]:
        return {
            name: Found(
                title(name),
                seeds,
                {
                    measure: replicate(
                        labels,
                        predicted,
                        name,
                        reference,
                        measure=measure,
                        positive=min(positive),
                    )
                    for measure in MEASURES
                },
            )
            for name in models
        }

    merged = view.merged(runs[0][1])
    families = {"replication": against("centralized", merged)}
    if all("same_steps" in models for models in read):
        families["photos_apart"] = against("same_steps", merged)
        families["fewer_steps"] = against("centralized", ["same_steps"])
    return families


def record(families: Families, margin: float, results: Results) -> None:
    """Note in ``results`` what the seeds say; ``margin`` in points."""
    results["replication"] = records(families["replication"], margin)
    if "fewer_steps" in families:
        results["split_over_seeds"] = {
            "fewer_steps": records(families["fewer_steps"], margin)["same_steps"],
            "photos_apart": records(families["photos_apart"], margin),
        }


def _predictions(folder: Path, results: Results) -> dict[str, Predictions]:
    return {
        name: read_predictions(folder / model["predictions"])
        for name, model in results["models"].items()
        if not is_submodel(name)
    }


def records(found: Mapping[str, Found], margin: float) -> dict[str, Replicated]:
    """What ``results.json`` says of them, all judged together; ``margin`` in points."""
    verdicts = judge({name: one.measures["accuracy"] for name, one in found.items()}, margin / 100)

    def of(name: str, one: Found) -> Replicated:
        measures = {measure: _measure(value) for measure, value in one.measures.items()}
        accuracy = one.measures["accuracy"]
        whole = {
            **measures.pop("accuracy"),
            **_judged(verdicts[name]),
            "title": one.title,
            "seeds": one.seeds,
            "n": accuracy.photos,
            "confidence": accuracy.confidence,
            "margin": margin / 100,
            "measures": measures,
        }
        return cast(Replicated, whole)

    return {name: of(name, one) for name, one in found.items()}


def _measure(found: Replication) -> OverSeeds:
    values = {name: getattr(found, name) for name in OverSeeds.__annotations__}
    values["by_seed"] = [_finite(one) for one in found.by_seed]
    return cast(OverSeeds, {name: _finite(value) for name, value in values.items()})


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _judged(verdict: Verdict | None) -> dict[str, Any]:
    values = dict.fromkeys(Verdict.__annotations__) if verdict is None else asdict(verdict)
    return {"verdict": values.pop("word"), **values}
