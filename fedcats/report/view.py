"""What the report reads out of a results dict: which models there are, names, numbers as text.

Any kind of model may be missing (``mode=centralized`` merges nothing, ``mode=federated`` has no
centralized model), and so may the comparison and the paper's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedcats.merging.registry import RULES
from fedcats.metrics.scores import POSITIVE
from fedcats.results import (
    AtThresholds,
    Comparison,
    Difference,
    Measure,
    Model,
    OverSeeds,
    Published,
    Replicated,
    Results,
    Round,
    RoundScores,
    Score,
    Scores,
    Unbounded,
)
from fedcats.results.explained import OwnThreshold, Without
from fedcats.results.names import IN_ONE_PLACE, client_of, is_merged, is_submodel, submodel

SCORES: tuple[Score, ...] = ("accuracy", "precision", "recall")
MEASURES: tuple[Measure, ...] = (*SCORES, "f1", "loss")
MANY_CLASSES = 12  # more of them get no column, or number, each
SIGNIFICANT = 0.05  # a p value is written so that one sees on which side of this it is
EMPTY = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


class Files(NamedTuple):
    """The files of figures: formats (none: no figures), and how many inches wide at most."""

    formats: Sequence[str] = ("png", "svg")
    width: float | None = None


AS_SHOWN = Files()

TITLES = {
    **{name: rule.title for name, rule in RULES.items()},
    "centralized": "centralized",
    "same_steps": "centralized (same steps)",
    "soup": "greedy soup",
    "best_submodel": "best sub-model",
    "best": "best sub-model, chosen",
    "ensemble": "logit ensemble",
}


def centralized(results: Results) -> Model | None:
    """Return the model trained on everything in one place, if the run has it."""
    return results["models"].get("centralized")


def submodels(results: Results) -> dict[int, Model]:
    """Return the clients' own models by client number, in ascending order."""
    found = {
        client_of(name): model for name, model in results["models"].items() if is_submodel(name)
    }
    return dict(sorted(found.items()))


def merged(results: Results) -> dict[str, Model]:
    """Return the merged models by name, in the order of the results."""
    return {name: model for name, model in results["models"].items() if is_merged(name)}


def of_all(results: Results) -> dict[str, Model]:
    """Return all models but the clients' own: centralized, merged."""
    first = {name: results["models"][name] for name in IN_ONE_PLACE if name in results["models"]}
    return {**first, **merged(results)}


def ordered(results: Results) -> dict[str, Model]:
    """Return all models: centralized, merged, then the clients' own."""
    own = {submodel(client): model for client, model in submodels(results).items()}
    return {**of_all(results), **own}


def title(results: Results, name: str) -> str:
    """Return what a reader calls a model: "centralized", "Polyak β = 0.5", "sub-model 3"."""
    if is_submodel(name):
        return f"sub-model {client_of(name)}"
    said = results["models"][name].get("title") if name in results["models"] else None
    return said or TITLES.get(name, name)


def clients(model: Model) -> list[int]:
    """Return the client that each of a merged model's ``effective_weights`` belongs to."""
    return list(model.get("clients", range(len(model.get("effective_weights", ())))))


def by_rule(one: Round) -> dict[str, RoundScores]:
    """Return the scores of a round's merged models by rule."""
    return {rule: scored for rule, scored in one.items() if not isinstance(scored, int)}


def published(results: Results, name: str) -> Published:
    """Return what the paper printed about a model; empty if nothing."""
    return results["paper"].get("models", {}).get(name, {}) if "paper" in results else {}


def has_paper(results: Results) -> bool:
    """Whether there is anything of the paper to set beside these results."""
    return any(published(results, name) for name in results["models"])


def replication(results: Results) -> dict[str, Replicated]:
    """Return what several seeds say of the merged models; empty if there is one seed."""
    found = results.get("replication", {})
    return {name: one for name, one in found.items() if len(one["seeds"]) > 1}


def of_seed(results: Results) -> str:
    """Return which seed something is of, where there are several: " of seed 3"."""
    return f" of seed {results['seed']}" if replication(results) else ""


def is_drawn(results: Results) -> bool:
    """Whether the pictures are drawings and not photos."""
    return bool(results["data"].get("source") == "synthetic")


def things(results: Results) -> str:
    """Return what to call the pictures, "photos" or "drawings"."""
    return "drawings" if is_drawn(results) else "photos"


def figure_files(results: Results) -> Files:
    """Return how a run's figures are written."""
    config = results.get("config", {})
    return Files(config.get("figures", AS_SHOWN.formats), config.get("figure_width"))


def trained_on(results: Results) -> int:
    """How many images the centralized model was trained on."""
    found: int = results["models"]["centralized"]["training"]["examples"]
    return found


def is_binary(results: Results) -> bool:
    """Whether there are two classes, so that precision and recall mean one of them."""
    return len(results["data"]["classes"]) == 2


def positive(results: Results) -> int:
    """Of two classes, the one that precision and recall mean: its position."""
    data = results["data"]
    return data["classes"].index(data["positive"]) if "positive" in data else POSITIVE


def takes_none(results: Results, model: Scores) -> bool:
    """Whether of two classes nothing is taken for that one: its precision is not defined."""
    matrix = model.get("confusion_matrix", [])
    return len(matrix) == 2 and not any(row[positive(results)] for row in matrix)


def is_defined(results: Results, found: Comparison, key: Score) -> bool:
    """Whether a difference is: not that of a precision which one of two models does not have.

    Of two classes, both of which every run tests on, that alone leaves it without an interval.
    """
    return not (key == "precision" and is_binary(results) and found[key]["low"] is None)


def score(results: Results, model: Scores, key: Measure) -> float:
    """A model's score; NaN where it is the precision of a class for which nothing is taken."""
    undefined = key == "precision" and takes_none(results, model)
    return math.nan if undefined else model[key]


def four_digits(value: float) -> str:
    """Format a score: 0.94172 -> "0.9417"; a dash where it is not defined."""
    return EMPTY if math.isnan(value) else f"{value:.4f}"


def percent(value: float, digits: int = 1) -> str:
    """Format a share: 0.9417 -> "94.2%"; a dash where it is not defined."""
    if math.isnan(value):
        return EMPTY
    return f"{100 * value:.{digits}f}%"


def points(value: float, digits: int = 1) -> str:
    """Format a difference of two scores in percentage points with its sign: -0.007 -> "−0.7"."""
    text = f"{100 * value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", MINUS)


def size(share: float) -> str:
    """Format a size in percentage points, without a sign: 0.01 -> "1 point"."""
    number = f"{100 * share:g}"
    return f"{number} point{'' if number == '1' else 's'}"


def interval(
    difference: Difference | OverSeeds | Unbounded | AtThresholds | Without | OwnThreshold,
) -> str:
    """Format the ends of a difference's interval: "−1.8 to +0.3".

    With as many digits as it takes to see on which side of 0 an end lies; what rounding of float64
    leaves of a 0 is one.
    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "no interval"
    low, high = (0.0 if abs(end) < 1e-12 else end for end in (low, high))
    ends = [end for end in (low, high) if end]
    digits = next((d for d in range(1, 9) if all(round(100 * end, d) for end in ends)), 9)
    return f"{points(low, digits)} to {points(high, digits)}"


def apart(difference: float) -> str:
    """Say how a score lies to another: "the same as", "0.7 points less than"."""
    if difference == 0:
        return "the same as"
    by = f"{100 * abs(difference):.1f}"
    by = "under 0.1" if by == "0.0" else by
    return f"{by} points {'less' if difference < 0 else 'more'} than"


def duration(seconds: float) -> str:
    """Format a time span: "8.4 s", "2 min 05 s", "1 h 03 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def p_value(p: float) -> str:
    """Format a p value: "p = 0.21", "p < 0.001"; on the side of `SIGNIFICANT` on which it is."""
    if p < 0.001:
        return "p < 0.001"
    if p >= 0.1:
        return f"p = {p:.2f}"
    shorter = (f"{p:.{digits}g}" for digits in range(2, 17))
    fits = (text for text in shorter if (float(text) < SIGNIFICANT) == (p < SIGNIFICANT))
    return f"p = {next(fits, p)}"


def span(values: Iterable[float], digits: int = 4) -> str:
    """Format the range of some scores: "0.9240 to 0.9510"."""
    found = list(values)
    return f"{min(found):.{digits}f} to {max(found):.{digits}f}"
