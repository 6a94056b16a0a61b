"""Does DP-SGD keep its promise? A lower bound of epsilon from what one training gives away.

    python benchmarks/privacy_audit.py [--runs 20] [--canaries 1000] [--epsilon 2] [--json FILE]

One-run audit (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846): each canary, an image of noise
with a label of chance, is in the training by a coin of its own; after it, those whose loss fell
most are guessed to be in, those whose loss fell least to be out. Were epsilon smaller than the
bound, so many right guesses would come up in less than 5 % of all runs. The training is fedcats'
own loop. The same is done without noise, to see that the audit sees anything.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from torch import nn
from torch.nn.functional import cross_entropy

from fedcats.data import normalise
from fedcats.metrics.epsilon import noise_for
from fedcats.seeding import derive_seed
from fedcats.training.loop import train
from fedcats.training.recipe import DpSgd, Recipe

CONFIDENCE = 0.95
SIDE = 32
DELTA = 1e-5
RATE, STEPS, GUESSED = 0.1, 40, 0.1  # probability of each photo, steps, share guessed either way
RECIPE = Recipe(1, 1, 0.5, 0.0, False, 0.0, 0, 1.0, False)


@dataclass(frozen=True)
class Canaries:
    """As `fedcats.data.Images`, in memory: ``array`` (n, 3, s, s) uint8, ``labels`` (n,)."""

    array: torch.Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, batch: torch.Tensor) -> torch.Tensor:
        return self.array[batch].clone()

    def subset(self, chosen: np.ndarray) -> Canaries:
        return Canaries(self.array[torch.from_numpy(chosen)], self.labels[chosen])


def canaries(count: int, classes: int, seed: int) -> Canaries:
    """Noise that is its own mirror image, so that flips do nothing."""
    draw = np.random.default_rng(derive_seed(seed, "canaries"))
    half = draw.integers(0, 256, (count, 3, SIDE, SIDE // 2), dtype=np.uint8)
    whole = np.concatenate([half, half[..., ::-1]], axis=-1)
    return Canaries(torch.from_numpy(whole), draw.integers(0, classes, count))


def audit(seed: int, noise: float, count: int, classes: int = 10) -> tuple[float, int, int]:
    """A lower bound of epsilon at DELTA from one training; right guesses, and all of them."""
    everyone = canaries(count, classes, seed)
    coins = np.random.default_rng(derive_seed(seed, "coins")).random(count) < 0.5
    torch.manual_seed(derive_seed(seed, "init"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, classes))
    x, y = normalise(everyone.array), torch.from_numpy(everyone.labels)

    def losses() -> np.ndarray:
        with torch.no_grad():
            return cross_entropy(model(x), y, reduction="none").numpy()

    before = losses()
    # Rate and steps are set beforehand: who is in changes nothing but that.
    dp = DpSgd(1.0, noise, RATE, RATE * count / 2)
    train(model, everyone.subset(np.flatnonzero(coins)), RECIPE, seed, steps=STEPS, dp=dp)  # type: ignore[arg-type]
    order = np.argsort(losses() - before, kind="stable")
    sure = max(1, round(GUESSED * count))
    right = int(coins[order[:sure]].sum() + (~coins[order[-sure:]]).sum())
    return lower_bound(count, 2 * sure, right, DELTA, 1 - CONFIDENCE), right, 2 * sure


def lower_bound(canaries: int, guesses: int, right: int, delta: float, level: float) -> float:
    """The largest epsilon that so many right guesses refute at a level (their Algorithm 1)."""
    low, high = 0.0, 20.0
    if p_value(canaries, guesses, right, 0.0, delta) > level:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Of so many right guesses under (epsilon, delta) (their Theorem 5.2 and Appendix D)."""
    share = 1 / (1 + np.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, share))
    below = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, share))
    alpha = float(np.max(below / np.arange(1, right + 1), initial=0.0))
    return min(1.0, beta + alpha * delta * 2 * canaries)


def main() -> None:
    """Audit so many trainings with noise, and as many without; print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--canaries", type=int, default=1000)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    noise, started = noise_for(asked.epsilon, RATE, STEPS, DELTA), time.perf_counter()
    rows = []
    for seed in range(asked.runs):
        bound, right, guesses = audit(seed, noise, asked.canaries)
        open_bound, open_right, _ = audit(seed, 0.0, asked.canaries)
        rows.append((seed, bound, right, guesses, open_bound, open_right))
        print(
            f"seed {seed}: noise {noise:g}: {right} of {guesses} right, epsilon at least "
            f"{bound:.2f}; without noise {open_right}, at least {open_bound:.2f}",
            flush=True,
        )
    bounds, opened = [row[1] for row in rows], [row[4] for row in rows]
    print(
        f"{sum(one <= asked.epsilon for one in bounds)} of {len(rows)} lower bounds are below "
        f"epsilon {asked.epsilon:g} (largest {max(bounds):.2f}, median {np.median(bounds):.2f}); "
        f"without noise the least is {min(opened):.2f}; {time.perf_counter() - started:.0f} s"
    )
    if asked.json:
        asked.json.write_text(json.dumps({"noise": noise, "rows": rows}))


if __name__ == "__main__":
    main()
