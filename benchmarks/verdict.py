"""Do the verdicts and intervals over seeds hold what they say? Simulated pairs of models.

    python benchmarks/verdict.py [--pairs 500] > table.md

A model gets a photo right where its score is above 0. The score is a sum of normal parts: how easy
the photo is, what this kind of model makes of this photo (with every seed), what the seed makes of
the model, of a class, and of the photo. So most photos are right with all seeds, a few never, and
the true accuracy of either kind of model is known exactly. Half of the photos are of each class.
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import numpy as np
from scipy.stats import norm

from fedcats.metrics import compare
from fedcats.metrics.measures import MEASURES
from fedcats.metrics.paired import HEADLINE
from fedcats.metrics.replication import Replication, crossed, differences, one_run
from fedcats.metrics.verdict import Word, judge

MARGIN = 0.01
PHOTOS, SEEDS, GAPS = (200, 1012), (3, 5, 10, 20), (0.0, -0.01)


@dataclass(frozen=True)
class World:
    """Standard deviations of the parts of a score; ``easy`` is 1."""

    accuracy: float  # of the reference
    kind: float  # of model, on a photo
    seed: float  # of a model
    lean: float  # of a seed, to one of the classes
    noise: float  # of a photo with a seed

    def centre(self, accuracy: float) -> float:
        """The mean score with which so many photos are right."""
        parts = (1.0, self.kind, self.seed, self.lean, self.noise)
        return float(norm.ppf(accuracy)) * float(np.linalg.norm(parts))

    def scores(
        self, generator: np.random.Generator, labels: np.ndarray, seeds: int, gap: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of a model and of the reference, each (seeds, photos)."""
        photos, side = len(labels), 2 * labels - 1
        easy = generator.normal(size=photos)

        def kind(accuracy: float) -> np.ndarray:
            own = easy + self.kind * generator.normal(size=photos)
            whole = self.seed * generator.normal(size=(seeds, 1))
            lean = self.lean * generator.normal(size=(seeds, 1)) * side
            noise = self.noise * generator.normal(size=(seeds, photos))
            return self.centre(accuracy) + own + whole + lean + noise

        return kind(self.accuracy + gap), kind(self.accuracy)


WORLDS = {
    "few": World(accuracy=0.98, kind=0.08, seed=0.03, lean=0.05, noise=0.08),
    "few, of every seed": World(accuracy=0.98, kind=0.15, seed=0.02, lean=0.03, noise=0.02),
    "as in the paper": World(accuracy=0.957, kind=0.15, seed=0.03, lean=0.08, noise=0.2),
    "many": World(accuracy=0.85, kind=0.4, seed=0.03, lean=0.1, noise=0.6),
}


def classes(photos: int) -> np.ndarray:
    return np.arange(photos) % 2


def accuracies(
    world: World, photos: int, seeds: int, gap: float, pairs: int, generator: np.random.Generator
) -> Iterator[tuple[Replication, np.ndarray]]:
    """Each simulated pair's difference of accuracies, and what it was made from."""
    unseen = np.tile([1.0, -1.0], (seeds, 2))  # as `differences` has it for the accuracy
    for _ in range(pairs):
        model, reference = world.scores(generator, classes(photos), seeds, gap)
        values = (model > 0).astype(float) - (reference > 0)
        yield crossed(values, unseen, classes(photos)), values


def crossed_bootstrap(
    values: np.ndarray, generator: np.random.Generator, resamples: int = 400
) -> tuple[float, float]:
    """Seeds and, within classes, photos drawn anew, both at once (Owen 2007)."""
    seeds, photos = values.shape
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    drawn = np.zeros(resamples)
    for one in (0, 1):
        part = values[:, classes(photos) == one]
        n = part.shape[1]
        by_photo = generator.multinomial(n, np.full(n, 1 / n), resamples) / photos
        drawn += ((by_seed @ part) * by_photo).sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def percent(hits: list[bool]) -> str:
    return f"{100 * np.mean(hits):.1f}"


def table(head: str, rows: Iterator[list[str]]) -> None:
    print(f"\n| {head} |\n|{'---|' * len(head.split(' | '))}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def verdicts(pairs: int) -> Iterator[list[str]]:
    for name, photos, gap, seeds in product(WORLDS, PHOTOS, GAPS, SEEDS):
        generator = np.random.default_rng([photos, seeds, round(-1000 * gap), *name.encode()])
        held, words, errors, apart = [], [], [], []
        for found, values in accuracies(WORLDS[name], photos, seeds, gap, pairs, generator):
            held.append(found.low <= gap <= found.high)
            words.append(judge({"": found}, MARGIN)[""].word)
            errors.append(100 * found.standard_error)
            apart.append(100 * np.mean(values != 0))
        shares = [percent([w == word for w in words]) for word in get_args(Word)]
        cells = [f"{np.mean(apart):.1f}", f"{np.median(errors):.2f}", percent(held), *shares]
        yield [name, f"{photos:,}", f"{100 * gap:.0f}", str(seeds), *cells]


def bootstraps(pairs: int) -> Iterator[list[str]]:
    for name, photos, seeds in product(WORLDS, PHOTOS, (10, 20)):
        generator = np.random.default_rng([photos, seeds, *name.encode()])
        both: tuple[list[bool], list[bool]] = ([], [])
        widths = []
        for found, values in accuracies(WORLDS[name], photos, seeds, 0.0, pairs, generator):
            low, high = crossed_bootstrap(values, generator)
            both[0].append(found.low <= 0 <= found.high)
            both[1].append(low <= 0 <= high)
            widths.append((high - low) / (found.high - found.low))
        yield [name, f"{photos:,}", str(seeds), *map(percent, both), f"{np.median(widths):.2f}"]


def probabilities(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax outputs (.., 2), float32, with the right class's from the score."""
    of_label = 1 / (1 + np.exp(-4 * scores))
    of_one = np.where(labels == 1, of_label, 1 - of_label)
    return np.stack([1 - of_one, of_one], axis=-1).astype(np.float32)


def truths(world: World, gap: float) -> dict[str, float]:
    """The difference of each measure over very many photos and seeds."""
    labels = classes(20_000)
    pairs = simulate(world, labels, 100, gap, np.random.default_rng(1)) if gap else []
    return {m: float(differences(labels, pairs, m)[0].mean()) if gap else 0.0 for m in MEASURES}


def simulate(
    world: World, labels: np.ndarray, seeds: int, gap: float, generator: np.random.Generator
) -> list[tuple[np.ndarray, ...]]:
    """By seed, the probabilities of a model and of the reference."""
    both = world.scores(generator, labels, seeds, gap)
    return list(zip(*(probabilities(one, labels) for one in both), strict=True))


def measures(pairs: int) -> Iterator[list[str]]:
    """With one seed also whether the interval holds the difference of just these two models."""
    world = WORLDS["as in the paper"]
    alike = replace(world, seed=0.0, lean=0.0)  # every seed has the same true difference
    for gap, (label, seeds, parts) in product(
        GAPS, [("1, these models", 1, alike), ("1", 1, world), ("5", 5, world), ("10", 10, world)]
    ):
        truth = truths(parts, gap)
        for photos in PHOTOS:
            held = coverage(parts, photos, seeds, gap, truth, pairs)
            row = [percent(held[m]) for m in MEASURES]
            yield [label, f"{photos:,}", f"{100 * gap:.0f}", *row]


def coverage(
    world: World, photos: int, seeds: int, gap: float, truth: dict[str, float], pairs: int
) -> dict[str, list[bool]]:
    labels, generator = classes(photos), np.random.default_rng([photos, seeds])
    held: dict[str, list[bool]] = {m: [] for m in MEASURES}
    for _ in range(pairs):
        models = simulate(world, labels, seeds, gap, generator)
        for m in MEASURES:
            values, unseen = differences(labels, models, m)
            if seeds == 1:
                low, high = one_run(values[0], unseen[0], labels)
            else:
                found = crossed(values, unseen, labels, measure=m)
                low, high = found.low, found.high
            held[m].append(low <= truth[m] <= high)
    return held


def one_comparison(pairs: int) -> Iterator[list[str]]:
    """`compare`, of one run: errors go to any other class alike, so that the truths are known."""
    shares = {"few": (0.97, 0.01, 0.01), "some": (0.9, 0.02, 0.07), "many": (0.7, 0.1, 0.1)}
    for (k, n), name in product([(2, 40), (2, 200), (4, 40), (4, 200), (10, 200)], shares):
        both, gained, lost = shares[name]
        labels, generator = np.arange(n) % k, np.random.default_rng([k, n, *name.encode()])
        held: dict[str, list[bool]] = {m: [] for m in HEADLINE}
        for seed in range(pairs):
            cell = generator.choice(4, n, p=[both, gained, lost, 1 - both - gained - lost])
            models = [
                np.eye(k)[(labels + wrong * generator.integers(1, k, n)) % k]
                for wrong in (cell >= 2, (cell == 1) | (cell == 3))
            ]
            found = compare(labels, *models, seed=seed, resamples=1000)
            for m in HEADLINE:
                if found[m]["low"] is not None:
                    held[m].append(found[m]["low"] <= gained - lost <= found[m]["high"])
        yield [str(k), str(n), name, *(percent(held[m]) for m in HEADLINE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500)
    pairs = parser.parse_args().pairs
    start = time.monotonic()
    table(
        "disagreements | photos | true gap | seeds | % of photos differ | standard error | coverage"
        " | equivalent | worse | better | undecided",
        verdicts(pairs),
    )
    table("disagreements | photos | seeds | t | crossed bootstrap | width", bootstraps(pairs // 2))
    table(f"seeds | photos | true gap | {' | '.join(MEASURES)}", measures(pairs))
    table(f"classes | photos | disagreements | {' | '.join(HEADLINE)}", one_comparison(pairs))
    took = (time.monotonic() - start) / 60
    print(f"\n{pairs} pairs a row, {took:.0f} min on {os.cpu_count()} CPUs ({platform.machine()}).")


if __name__ == "__main__":
    main()
