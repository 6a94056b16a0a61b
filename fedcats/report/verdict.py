"""What is said of a model against training in one place, in accuracy; each word from a number."""

from __future__ import annotations

from typing import Any, cast

from fedcats.metrics.replication import LEAST_SEEDS, Replication
from fedcats.metrics.verdict import LEVEL, MOST_SEEDS, Verdict, Word
from fedcats.report import split, thresholds, view
from fedcats.report.view import apart, interval, p_value, percent, points
from fedcats.results import Comparison, Model, Replicated, Results

CENTRALIZED = "training in one place"


def answer(results: Results) -> list[str]:
    """Answer the question: how much is lost when only weights are merged?

    Returns
    -------
    list of str
        Sentences about the first merged model against the centralized one; about what there is if
        either is missing.
    """
    base, rules = view.centralized(results), view.merged(results)
    what = view.things(results)
    if not rules:
        if base is None:
            count = len(view.submodels(results))
            return [f"{count} sub-models were trained; nothing was merged."]
        return [
            f"The centralized model reaches {percent(base['accuracy'])} accuracy on "
            f"{base['n']:,} test {what}; nothing was merged in this run."
        ]
    name = next(iter(rules))
    if replication := view.replication(results):
        said = split.sentences(results, name) + thresholds.sentences(results, name)
        chosen = [f"For seed {results['seed']}: {one}" for one in _chosen(results)]
        return [of_replication(replication[name], what), *said, _of_which(results), *chosen]
    start = _merging(results, name)
    if base is None:
        accuracies = [model["accuracy"] for model in view.submodels(results).values()]
        middle = f", single sub-models {view.span(accuracies)}" if accuracies else ""
        return [
            f"{start} on {rules[name]['n']:,} test {what}{middle}; "
            "there is no centralized model in this run to compare with.",
            *_chosen(results),
        ]
    first = f"{start}, training on {_in_one_place(results)} in one place "
    first += f"{percent(base['accuracy'])}."
    found = results.get("comparison", {}).get(name)
    judged = _judged(results, name, found) if found else []
    said = split.sentences(results, name) + thresholds.sentences(results, name)
    return [first, *judged[:1], *said, *judged[1:], *_chosen(results), *_never(results, name)]


def of_replication(found: Replicated, what: str = "photos") -> str:
    """Say what the seeds show of one merged model, from its record in ``results.json``."""
    record = cast(dict[str, Any], found)
    seeds, n = len(found["seeds"]), found["n"]
    known = {key: record[key] for key in Replication.__annotations__ if key in record}
    replication = Replication(**known | {"measure": "accuracy", "seeds": seeds, "photos": n})
    verdict = None
    if found["verdict"] is not None:
        given = {key: record[key] for key in Verdict.__annotations__ if key in record}
        verdict = Verdict(cast(Word, found["verdict"]), **given)
    return over_seeds(found["title"], replication, verdict, what)


def _of_which(results: Results) -> str:
    """Say what the seeds draw, and what else is shown."""
    config, first = results["config"], results["seed"]
    drawn = config["vary"]
    if drawn == "all":
        text = f"The {view.things(results)} are the same for all seeds"
    else:
        text = f"Each seed draws only {drawn} anew, all else is that of seed {config['seed']}"
    return f"{text}; single models are shown for seed {first}."


def _merging(results: Results, name: str) -> str:
    own, shards = view.submodels(results), results["data"].get("shards") or []
    how = f"{len(own)} device{'s' if len(own) > 1 else ''}" if own else "the devices"
    if len(own) < len(shards) and len(results.get("rounds") or []) > 1:  # others in later rounds
        how = f"{len(own)} of {len(shards)} devices a round"
    return (
        f"Training on {how} and merging only the weights ({view.title(results, name)}) "
        f"gives {percent(results['models'][name]['accuracy'])} accuracy"
    )


def _judged(results: Results, name: str, found: Comparison) -> list[str]:
    first = of_one_seed(view.title(results, name), found, view.things(results))
    by, ends = points(found["recall"]["difference"]), interval(found["recall"])
    if not view.is_defined(results, found, "precision"):
        return [first, f"Recall differs by {by} points ({ends})."]
    precision = "Precision" if view.is_binary(results) else "Macro-averaged precision"
    return [
        first,
        f"{precision} differs by {points(found['precision']['difference'])} points "
        f"({interval(found['precision'])}), recall by {by} ({ends}).",
    ]


def over_seeds(
    title: str, found: Replication, verdict: Verdict | None, what: str = "photos"
) -> str:
    """Say what the seeds show.

    Parameters
    ----------
    title
        What the model is called.
    found, verdict
        Of the model against the centralized one; the second None if there is no interval.
    what
        The test images, in the plural.
    """
    seeds = f"{found.seeds} seed{'s' if found.seeds > 1 else ''}"
    base = f"{seeds}, {found.photos:,} test {what}"
    size = f"{apart(found.difference)} {CENTRALIZED}"
    if verdict is None:
        return f"{title} gets {size} ({base}); {_why_no_interval(found, what)}."
    p = _p("t test", verdict.p_difference, verdict.p_difference_holm)
    at_95 = f"{_ends(found, 0.95, verdict)}{p}"
    if verdict.word == "undecided":
        return f"Undecided: {title} gets {size} ({base}; {at_95}); {_further(verdict, what)}."
    if verdict.word == "equivalent":
        within = f"within {view.size(verdict.margin)} of accuracy"
        p = _p("two one-sided tests", verdict.p_equivalence, verdict.p_equivalence_holm)
        first = f"{title} and {CENTRALIZED} are equivalent {within}"
        second = f"{title} gets {size} ({base}; {_ends(found, 0.9, verdict)}{p})"
        if verdict.p_difference_holm >= LEVEL:
            return f"{first}: {second}."
        return f"{first}, but not the same: {second}; against no difference {at_95}."
    return f"{title} is {verdict.word}: it gets {size} ({base}; {at_95})."


def _chosen(results: Results) -> list[str]:
    """Say that a beta was chosen, on how many images, and against what."""
    models = view.merged(results).values()
    return [_of_choice(one, view.things(results)) for one in models if "beta_chosen_from" in one]


def _of_choice(model: Model, what: str) -> str:
    found = model["beta_chosen_from"]
    n, own = model["validation"]["n"], f"{model['beta']:g}"
    most, others = found[own], {beta: one for beta, one in found.items() if beta != own}
    text = f"β = {own} was chosen among {len(found)} values"
    if alike := sum(one == most for one in others.values()):
        text += f", as that with the lowest loss of {alike + 1} equally good ones,"
    text += f" on {n:,} held-out training {what}: {round(most * n):,} right"
    if "0.5" in others:
        text += f", with β = 0.5 {round(others['0.5'] * n):,}"
    elif others:
        text += f", with the others {round(min(others.values()) * n):,} to "
        text += f"{round(max(others.values()) * n):,}"
    return f"{text}."


def of_one_seed(title: str, comparison: Comparison, what: str = "photos") -> str:
    """Say what one run shows, and what it does not; ``comparison`` as of `metrics.compare`."""
    found, plain = comparison["accuracy"], comparison["mcnemar_p"]
    adjusted = comparison.get("mcnemar_p_holm", plain)
    return (
        f"This one {title} model gets {apart(found['difference'])} this one centralized model "
        f"({comparison['n']:,} test {what}, {100 * comparison['confidence']:.0f}% interval "
        f"{interval(found)} points{_p('exact McNemar', plain, adjusted)}). What other "
        f"seeds would give, one seed cannot say: that takes at least {LEAST_SEEDS}."
    )


def _why_no_interval(found: Replication, what: str) -> str:
    if found.seeds < LEAST_SEEDS:
        return f"what other seeds would give takes at least {LEAST_SEEDS} seeds to say"
    return f"so few {what} give no interval"


def _further(verdict: Verdict, what: str) -> str:
    more = verdict.seeds_to_decide
    if more is None:
        would = f"not even {MOST_SEEDS:,} more seeds on these {what} would decide"
    else:
        would = f"{more} more seed{'s' if more > 1 else ''} would decide"
    return f"{would}, if the difference and its variance stay as they are"


def _p(name: str, plain: float, adjusted: float) -> str:
    holm = "" if plain == adjusted else f", {p_value(adjusted)} by Holm"
    return f", {name} {p_value(plain)}{holm}"


def _ends(found: Replication, confidence: float, verdict: Verdict) -> str:
    """The interval in points, with digits enough to see on which side of 0 and the margin it is."""
    ends = found.interval(confidence)
    marks = (0.0, verdict.margin, -verdict.margin)
    apart_by = [(100 * end, 100 * mark) for end in ends for mark in marks if end != mark]
    enough = (d for d in range(2, 9) if all(round(a, d) != round(b, d) for a, b in apart_by))
    digits = next(enough, 9)
    low, high = (points(end, digits) for end in ends)
    return f"{100 * confidence:.0f}% interval {low} to {high} points"


def _in_one_place(results: Results) -> str:
    """Say what the centralized model was trained on: "all 400 drawings"."""
    data, n, what = results["data"], view.trained_on(results), view.things(results)
    parts = (data["train"], data.get("held_out", {}), data.get("left_out", {}).get("limit", {}))
    if n == sum(sum(counts.values()) for counts in parts):
        return f"all {n:,} {what}"
    if n == sum(shard["examples"] for shard in data["shards"]):
        clients = len(data["shards"])
        return f"the {n:,} {what} of " + (f"all {clients} devices" if clients > 1 else "the device")
    return f"{n:,} {what}"


def _never(results: Results, name: str) -> list[str]:
    """Say which precision of a change has no meaning: that of a class that is never predicted."""
    if not view.is_binary(results):
        return []
    positive = results["data"]["classes"][view.positive(results)]
    pair = {"centralized": "The centralized model", name: "The merged model"}
    one = view.things(results).removesuffix("s")
    return [
        f"{who} takes no {one} for {positive}: its precision is not defined."
        for key, who in pair.items()
        if view.takes_none(results, results["models"][key])
    ]
