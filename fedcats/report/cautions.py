"""What forbids a verdict: too few test photos, and models that have learned nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedcats.metrics import wilson
from fedcats.report import view
from fedcats.results import Model, Results

MOST = 6  # warnings of a sweep
FEW = 100  # test images; with fewer an accuracy is known to some ten points
NOTABLE = 0.01  # a larger share of the training photos left out is worth a warning


def note(results: Results) -> str:
    """Return what a reader must know about the data before reading a number; may be empty."""
    given = str(results["data"].get("note") or "").strip().rstrip(".")
    if not view.is_drawn(results):
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
            f"{view.of_seed(results)}; the "
            "centralized model is trained on the images as they are."
        )
    if (weights := results.get("weights") or {}).get("missing"):
        found.append(f"{weights['note']}.")
    merged = view.merged(results).values()
    means = any("effective_weights" in model for model in merged) or "grid" in results
    if (results.get("weights") or {}).get("only_linear") and means:
        found.append(
            "Only the last layer is trained, and it is linear: a weighted mean of models answers "
            "with the weighted means of their logits, so that such a merge is a logit ensemble."
        )
    for who, why in (results.get("failures") or {}).items():
        found.append(f"Left out of the merge: {who} ({why}).")
    for who, why in (results.get("not_scored") or {}).items():
        found.append(f"Without scores, though its update was merged: {who} ({why}).")
    return [*found, *of_scores(results)]


def of_runs(runs: Sequence[Results]) -> list[str]:
    """Return those of several runs, each once: of how many it is, where that is not all.

    Of more than a page's first lines have room for those that are of most runs.
    """
    counts = Counter(line for one in runs for line in warnings(one))
    lines = [
        line if count == len(runs) else f"In {count} of {len(runs)} runs: {line}"
        for line, count in counts.most_common()
    ]
    if len(lines) > MOST + 1:
        left = f"{len(lines) - MOST} more such lines are on the pages of single runs."
        lines = [*lines[:MOST], left]
    return lines


def _left_out(results: Results) -> list[str]:
    """Say which training photos are on no device, and why."""
    data, what = results["data"], view.things(results)
    limited, dealt = (data.get("left_out", {}).get(key, {}) for key in ("limit", "partition"))
    held = data.get("held_out", {})
    settings = results.get("config", {})
    limits = [f"data.{k}" for k in ("limit", "counts") if settings.get("data", {}).get(k)]
    partition = dict(settings.get("partition", {}))
    name = partition.pop("name", "")
    how = ", ".join(f"{key}={value}" for key, value in partition.items() if value is not None)
    too = ""
    if view.centralized(results) is not None:
        with_them = view.trained_on(results) > sum(shard["examples"] for shard in data["shards"])
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
    if len(some) > view.MANY_CLASSES:
        return f"in {len(some)} classes"
    return ", ".join(f"{count:,} {name}" for name, count in some.items())


def of_scores(results: Results) -> list[str]:
    """Say, in sentences, what the numbers cannot be taken for; empty when there is nothing."""
    counts = results["data"]["test"]
    n = sum(counts.values())
    models = view.of_all(results)
    found = []
    if 0 < n < FEW:
        low, high = wilson(round(n / 2), n)
        found.append(
            f"Only {n} test {view.things(results)}: where a model gets half of them right, its "
            f"true accuracy may be anything from {100 * low:.0f}% to {100 * high:.0f}%."
        )
    if not models or not n:
        return found
    largest = max(counts, key=lambda name: counts[name])
    always = f"always saying {largest} ({100 * counts[largest] / n:.1f}%)"
    idle = _idle(results)
    if len(idle) == len(models):
        found.append(
            f"Nobody has learned: no model is better than {always}, beyond chance. What they "
            "differ in says nothing; raise train.epochs, train.lr or rounds."
        )
    else:
        names = [view.title(results, name) for name in idle]
        found += [f"No better than {always}, beyond chance: {', '.join(names)}."] if names else []
    return found


def nobody_has_learned(results: Results) -> bool:
    """Whether each of the models is no better than always saying one class, beyond chance."""
    idle = _idle(results)
    return bool(idle) and len(idle) == len(view.of_all(results))


def _idle(results: Results) -> list[str]:
    counts = results["data"]["test"].values()
    n = sum(counts)
    models = view.of_all(results) if n else {}
    return [name for name, model in models.items() if not _has_learned(model, max(counts) / n)]


def _has_learned(model: Model, share: float) -> bool:
    """Whether its accuracy is above a class's share by more than the test images' chance."""
    low, _ = wilson(round(model["accuracy"] * model["n"]), model["n"])
    return low > share
