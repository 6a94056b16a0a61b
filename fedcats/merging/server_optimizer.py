"""The step of a server optimizer, see `fedcats.merging.adaptive.ServerOptimizer`."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fedcats.merging.adaptive import ServerOptimizer
from fedcats.merging.fold import Fold, rounded
from fedcats.merging.rules import Accumulator, FedAvg, Merge, Round

Memory = dict[str, tuple[Tensor, ...]]
"""What an optimizer remembers of each parameter, float64; empty before the first round."""


class ServerStep(Accumulator):
    """FedAvg's fold, which is the round's own, and the step behind it."""

    def __init__(self, rule: ServerOptimizer, server_round: Round) -> None:
        self._rule, self._round = rule, server_round
        self._mean = cast(Fold, server_round.begin(FedAvg()))

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        """Nothing: the fold has it from the round."""

    def finish(self) -> Merge:
        """The step, and the memory for the next round."""
        now, memory = self._round, self._round.memory
        old = memory.get(self._rule, {})
        state, memory[self._rule] = server_step(
            self._rule, now.start, self._mean.exact(), old, now.parameters
        )
        return Merge(state)


def server_step(
    rule: ServerOptimizer,
    start: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    memory: Memory,
    parameters: frozenset[str],
) -> tuple[dict[str, Tensor], Memory]:
    """One round.

    Parameters
    ----------
    start
        The model that the clients started from, by state-dict key.
    mean
        FedAvg's mean of their updates, float64: `Fold.exact`.
    memory
        What the round before gave; nothing of it is changed.
    parameters
        Keys that the optimizer moves; all others are averaged only.

    Returns
    -------
    (merged, memory)
        Tensors in the dtypes of ``start``, computed in float64 and rounded once.

    Raises
    ------
    ValueError
        When a weight is not finite any more.
    """
    merged: dict[str, Tensor] = {}
    after: Memory = {}
    for name, value in mean.items():
        new = value
        if name in parameters:
            old = start[name].double()
            added, after[name] = rule.move(value - old, memory.get(name, ()))
            new = old + added
        merged[name] = rounded(new, start[name].dtype)
        if not bool(torch.isfinite(merged[name]).all()):
            raise ValueError(
                f"{rule.title} with lr={rule.lr:g}: {name} has values that are not finite after "
                "the server's step; lower the learning rate"
            )
    return merged, after
