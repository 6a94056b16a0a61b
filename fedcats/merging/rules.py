"""The rules of the fold: each gives its steps."""

from collections.abc import Callable
from functools import partial

Rule = Callable[[int, int, int], float]
"""``rule(i, n_i, n_1 + .. + n_i) -> s_i`` for the i-th update (from 1) of ``n_i`` examples."""


def polyak(i: int, examples: int, total: int, *, beta: float, start: str) -> float:
    """Sequential Polyak average: the paper's listing, ``w = beta * w_i + (1 - beta) * w``.

    ``start`` says what ``w`` is before the first update: ``first``, as in the paper, that update
    itself, so that nothing is left of the model that the clients started from; ``global``, that
    model, of which ``(1 - beta) ** n`` is left after n clients.
    """
    return 1.0 if i == 1 and start == "first" else beta


def fedavg(i: int, examples: int, total: int) -> float:
    """FedAvg: the mean weighted by each client's number of examples."""
    return examples / total


def uniform(i: int, examples: int, total: int) -> float:
    """Plain mean, whatever the number of examples (Polyak with ``beta = 1 / i``)."""
    return 1.0 / i


RULES: dict[str, Callable[..., float]] = {"polyak": polyak, "fedavg": fedavg, "uniform": uniform}


def make_rule(name: str, *, beta: float, start: str = "first") -> Rule:
    """The rule called ``name``; ``beta`` in [0, 1] and ``start`` are read by ``polyak`` only."""
    return partial(polyak, beta=beta, start=start) if name == "polyak" else RULES[name]
