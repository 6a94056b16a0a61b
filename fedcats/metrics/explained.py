"""What the scores of many merges of the same sub-models say: barriers, orders, Shapley values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
LASTS = (1, 2, 3)  # how many of those merged last may explain the variance


def excess(values: Sequence[float], points: Sequence[float]) -> float:
    """The barrier: the largest excess of the values over the line between the two ends.

    Parameters
    ----------
    values
        Such as losses, at ``points`` from 0 to 1 on the line between two models.

    Returns
    -------
    float
        At least 0, which it is at the ends (Frankle et al., ICML 2020; Entezari et al., ICLR 2022).
    """
    t, found = np.asarray(points, dtype=np.float64), np.asarray(values, dtype=np.float64)
    over = found - (found[0] + t * (found[-1] - found[0]))  # of equal ends exactly their value
    return float(max(0.0, over[1:-1].max(initial=0.0)))


def draw_orders(clients: Sequence[int], count: int, seed: int) -> list[tuple[int, ...]]:
    """All orders of the clients if there are at most ``count``, else so many different ones."""
    if count < 1:
        return []
    if len(clients) <= 12 and math.factorial(len(clients)) <= count:
        return list(itertools.permutations(clients))
    draw, found = random.Random(seed), dict[tuple[int, ...], None]()
    while len(found) < count:
        found[tuple(draw.sample(clients, len(clients)))] = None
    return list(found)


def explained_by_last(
    orders: Sequence[Sequence[int]], values: Sequence[float], count: int
) -> float | None:
    """Share of the values' variance that goes with who is merged last, second last, ..

    A linear model has an effect of each client at each of the last ``count`` places. Of drawn
    orders the share is adjusted for its number of effects, which would explain some of any
    variance; of all orders there is nothing to adjust.

    Returns
    -------
    float or None
        At most 1, and 0 if less than chance; None if the values do not differ, or there are too
        few of them.
    """
    y = np.asarray(values, dtype=np.float64)
    n, clients = len(y), sorted(orders[0]) if orders else []
    spread = float(((y - y.mean()) ** 2).sum()) if n else 0.0
    if spread <= n * 1e-18:
        return None
    places = np.array([list(order)[::-1][:count] for order in orders])
    design = (places[:, :, None] == np.array(clients)).reshape(n, -1).astype(np.float64)
    design = np.hstack([np.ones((n, 1)), design])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    left = float(((y - design @ solution) ** 2).sum())
    if len(clients) <= 12 and n == math.factorial(len(clients)):
        return min(1.0, max(0.0, 1 - left / spread))
    if n <= rank:
        return None
    return max(0.0, 1 - (left / (n - int(rank))) / (spread / (n - 1)))


@dataclass(frozen=True)
class Shares:
    """Shapley values of a game over some players.

    Attributes
    ----------
    values
        By player; they add up to the value of all less that of nobody.
    errors
        Their standard errors over pairs of orders, by player; all 0 if exact.
    pairs
        How many pairs of opposite orders were drawn; 0: every coalition was looked at.
    """

    values: list[float]
    errors: list[float]
    pairs: int


Coalition = frozenset[int]


def draw_pairs(players: Sequence[int], most: int, seed: int) -> list[tuple[int, ...]]:
    """Orders from which Shapley values are worked out; empty where every coalition is affordable.

    Each second one is the opposite of the one before, which makes errors smaller (Mitchell et al.,
    JMLR 23, 2022). So many that at most ``most`` different coalitions are met, but two pairs.
    """
    if len(players) < 31 and 2 ** len(players) - 1 <= most:
        return []
    draw, orders, met = random.Random(seed), list[tuple[int, ...]](), set[Coalition]()
    while True:
        order = tuple(draw.sample(players, len(players)))
        new = {frozenset(one[:i]) for one in (order, order[::-1]) for i in range(1, len(order) + 1)}
        if len(orders) >= 4 and len(met | new) > most:
            return orders
        met |= new
        orders += [order, order[::-1]]


def coalitions(players: Sequence[int], orders: Sequence[Sequence[int]]) -> list[Coalition]:
    """Those whose values :func:`shapley` asks for, without the empty one."""
    if orders:
        met = (frozenset(order[:i]) for order in orders for i in range(1, len(order) + 1))
    else:
        sizes = range(1, len(players) + 1)
        met = (frozenset(c) for size in sizes for c in itertools.combinations(players, size))
    return list(dict.fromkeys(met))


def shapley(
    players: Sequence[int],
    value: Callable[[Coalition], float] | Mapping[Coalition, float],
    orders: Sequence[Sequence[int]] = (),
) -> Shares:
    """Shapley values: exact over all coalitions, or the means over ``orders`` of `draw_pairs`."""
    of = value if callable(value) else value.__getitem__
    n, place = len(players), {player: i for i, player in enumerate(players)}
    if not orders:
        exact = np.zeros(n)
        for one in [frozenset[int](), *coalitions(players, ())]:
            here = of(one)
            for player, i in place.items():
                size = len(one)
                if player in one:
                    exact[i] += here / (n * math.comb(n - 1, size - 1))
                else:
                    exact[i] -= here / (n * math.comb(n - 1, size))
        return Shares(exact.tolist(), [0.0] * n, 0)
    added = np.zeros((len(orders), n))
    for row, order in zip(added, orders, strict=True):
        for before, player in zip(_growing(order), order, strict=True):
            row[place[player]] = of(before | {player}) - of(before)
    pairs = added.reshape(-1, 2, n).mean(axis=1)
    errors = pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs)) if len(pairs) > 1 else np.zeros(n)
    return Shares(pairs.mean(axis=0).tolist(), errors.tolist(), len(pairs))


def _growing(order: Sequence[int]) -> Iterator[Coalition]:
    return (frozenset(order[:i]) for i in range(len(order)))


def geometry(grams: Mapping[str, Values]) -> dict[str, tuple[Values, Values]]:
    """Lengths (K,) and cosines (K, K) of K updates in each layer, from their inner products.

    The cosine of an update of length 0 with anything is 0.
    """
    found = {}
    for layer, gram in grams.items():
        lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
        scale = np.outer(lengths, lengths)
        cosines = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
        found[layer] = (lengths, np.clip(cosines, -1, 1))
    return found
