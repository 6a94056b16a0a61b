"""What the report reads out of a results dict: which models there are, names, numbers as text.

Any kind of model may be missing (``mode=centralized`` merges nothing, ``mode=federated`` has no
centralized model), and so may the comparison and the paper's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedcats.merging.registry import RULES
from fedcats.report.cautions import cautions
from fedcats.results import (
    AtThresholds,
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

SCORES: tuple[Score, ...] = ("accuracy", "precision", "recall")
MEASURES: tuple[Measure, ...] = (*SCORES, "f1", "loss")
MANY_CLASSES = 12  # more of them get no column, or number, each
NOTABLE = 0.01  # a larger share of the training photos left out is worth a warning
SIGNIFICANT = 0.05  # a p value is written so that one sees on which side of this it is
MINUS = "\N{MINUS SIGN}"

IN_ONE_PLACE = ("centralized", "same_steps")  # models of all photos, and not merged
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
        int(name.removeprefix("submodel/")): model
        for name, model in results["models"].items()
        if name.startswith("submodel/")
    }
    return dict(sorted(found.items()))


def merged(results: Results) -> dict[str, Model]:
    """Return the merged models by name, in the order of the results."""
    return {
        name: model
        for name, model in results["models"].items()
        if name not in IN_ONE_PLACE and not name.startswith("submodel/")
    }


def ordered(results: Results) -> dict[str, Model]:
    """Return all models: centralized, merged, then the clients' own."""
    first = {name: results["models"][name] for name in IN_ONE_PLACE if name in results["models"]}
    own = {f"submodel/{client}": model for client, model in submodels(results).items()}
    return {**first, **merged(results), **own}


def title(results: Results, name: str) -> str:
    """Return what a reader calls a model: "centralized", "Polyak β = 0.5", "sub-model 3"."""
    if name.startswith("submodel/"):
        return f"sub-model {name.removeprefix('submodel/')}"
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


def note(results: Results) -> str:
    """Return what a reader must know about the data before reading a number; may be empty."""
    given = str(results["data"].get("note") or "").strip().rstrip(".")
    if not is_drawn(results):
        return f"{given[0].upper()}{given[1:]}." if given else ""
    given = given or "drawings made by fedcats, not photos"
    return (
        f"{given[0].upper()}{given[1:]}: the numbers show that the pipeline works, "
        "not how well it would do on photos."
    )


def warnings(results: Results) -> list[str]:
    """Return what a reader must know before reading a number: drawings, clients left out, .."""
    found = [text] if (text := note(results)) else []
    found += _left_out(results)
    if results.get("status", "complete") != "complete":
        found.append(f"This run is not complete (status: {results['status']}).")
    if attack := results.get("attack"):
        who = ", ".join(map(str, attack["clients"]))
        factor = "" if attack["name"] == "label_flip" else f", factor {attack['factor']:g}"
        found.append(
            f"This run simulates an attack ({attack['name']}{factor}) by client(s) {who}"
            f"{of_seed(results)}; the "
            "centralized model is trained on the images as they are."
        )
    if (weights := results.get("weights") or {}).get("missing"):
        found.append(f"{weights['note']}.")
    means = [m for m in merged(results).values() if "effective_weights" in m] or "grid" in results
    if (results.get("weights") or {}).get("only_linear") and means:
        found.append(
            "Only the last layer is trained, and it is linear: a weighted mean of models answers "
            "with the weighted means of their logits, so that such a merge is a logit ensemble."
        )
    for who, why in (results.get("failures") or {}).items():
        found.append(f"Left out of the merge: {who} ({why}).")
    for who, why in (results.get("not_scored") or {}).items():
        found.append(f"Without scores, though its update was merged: {who} ({why}).")
    return [*found, *cautions(results)]


def _left_out(results: Results) -> list[str]:
    """Say which training photos are on no device, and why."""
    data, what = results["data"], things(results)
    limited, dealt = (data.get("left_out", {}).get(key, {}) for key in ("limit", "partition"))
    held = data.get("held_out", {})
    settings = results.get("config", {})
    limits = [f"data.{k}" for k in ("limit", "counts") if settings.get("data", {}).get(k)]
    partition = dict(settings.get("partition", {}))
    name = partition.pop("name", "")
    how = ", ".join(f"{key}={value}" for key, value in partition.items() if value is not None)
    too = ""
    if centralized(results) is not None:
        with_them = trained_on(results) > sum(shard["examples"] for shard in data["shards"])
        it = "it" if sum(dealt.values()) == 1 else "them"
        too = f"; the centralized model {'has' if with_them else 'lacks'} {it}"
    there = sum(data["train"].values()) + sum(held.values())
    lines = [
        (limited, there + sum(limited.values()), f"not used ({' and '.join(limits)})"),
        (dealt, there, f"on no device (partition {name}: {how}){too}"),
        (held, there, "held out of all training (hold_out)"),
    ]
    return [
        f"{'Warning: ' if count > NOTABLE * total else ''}Of {total:,} training {what} {count:,} "
        f"({_by_class(counts)}) {'is' if count == 1 else 'are'} {text}."
        for counts, total, text in lines
        if (count := sum(counts.values()))
    ]


def _by_class(counts: dict[str, int]) -> str:
    some = {name: count for name, count in counts.items() if count}
    if len(some) > MANY_CLASSES:
        return f"in {len(some)} classes"
    return ", ".join(f"{count:,} {name}" for name, count in some.items())


def trained_on(results: Results) -> int:
    """How many images the centralized model was trained on."""
    found: int = results["models"]["centralized"]["training"]["examples"]
    return found


def is_binary(results: Results) -> bool:
    """Whether there are two classes, so that precision and recall mean the second one."""
    return len(results["data"]["classes"]) == 2


def takes_none(model: Scores) -> bool:
    """Whether nothing is taken for the second of two classes: its precision is not defined."""
    matrix = model.get("confusion_matrix", [])
    return len(matrix) == 2 and not any(row[1] for row in matrix)


def percent(value: float, digits: int = 1) -> str:
    """Format a share: 0.9417 -> "94.2%"."""
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
