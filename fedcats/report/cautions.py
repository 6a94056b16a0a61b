"""What forbids a verdict: too few test photos, and models that have learned nothing."""

from __future__ import annotations

from fedcats.metrics import wilson
from fedcats.results import Model, Results

FEW = 100  # test images; with fewer an accuracy is known to some ten points


def cautions(results: Results) -> list[str]:
    """Say, in sentences, what the numbers cannot be taken for; empty when there is nothing."""
    counts = results["data"]["test"]
    n = sum(counts.values())
    models = {
        name: model for name, model in results["models"].items() if not name.startswith("submodel/")
    }
    found = []
    what = "drawings" if results["data"].get("source") == "synthetic" else "photos"
    if 0 < n < FEW:
        low, high = wilson(round(n / 2), n)
        found.append(
            f"Only {n} test {what}: where a model gets half of them right, its true accuracy may "
            f"be anything from {100 * low:.0f}% to {100 * high:.0f}%."
        )
    if not models or not n:
        return found
    largest = max(counts, key=lambda name: counts[name])
    always = f"always saying {largest} ({100 * counts[largest] / n:.1f}%)"
    idle = [name for name, model in models.items() if not _has_learned(model, counts[largest] / n)]
    if len(idle) == len(models):
        found.append(
            f"Nobody has learned: no model is better than {always}, beyond chance. What they "
            "differ in says nothing; raise train.epochs, train.lr or rounds."
        )
    else:
        names = [models[name].get("title", name) for name in idle]
        found += [f"No better than {always}, beyond chance: {', '.join(names)}."] if names else []
    return found


def _has_learned(model: Model, share: float) -> bool:
    """Whether its accuracy is above a class's share by more than the test images' chance."""
    low, _ = wilson(round(model["accuracy"] * model["n"]), model["n"])
    return low > share
