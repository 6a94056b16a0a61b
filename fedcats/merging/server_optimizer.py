"""Server optimizers: FedAvg's mean of a round as one step of an optimizer over the rounds.

The server takes ``delta = mean - w``, what FedAvg would add to the model ``w`` that the clients
started from, as a gradient, and keeps a memory from round to round.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcats.merging.fold import rounded

Memory = dict[str, tuple[Tensor, ...]]
"""What an optimizer remembers of each parameter, float64; empty before the first round."""


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer(ABC):
    """A rule that goes on from the model of the round before.

    Attributes
    ----------
    lr
        Server learning rate, above 0.
    parameters
        State-dict keys that it moves; all others (batch norm's statistics) are averaged only.
    """

    lr: float
    parameters: frozenset[str]

    @abstractmethod
    def _step(self, delta: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What is added to a parameter, and its new memory; ``memory`` is empty at first."""

    def merge(
        self, start: Mapping[str, Tensor], mean: Mapping[str, Tensor], memory: Memory
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
            if name in self.parameters:
                old = start[name].double()
                added, after[name] = self._step(value - old, memory.get(name, ()))
                new = old + added
            merged[name] = rounded(new, start[name].dtype)
            if not bool(torch.isfinite(merged[name]).all()):
                raise ValueError(
                    f"{type(self).__name__} with lr={self.lr:g}: {name} has values that are not "
                    "finite after the server's step; lower the learning rate"
                )
        return merged, after


@dataclass(frozen=True, kw_only=True)
class FedAvgM(ServerOptimizer):
    """FedAvg with server momentum (Hsu et al. 2019, arXiv:1909.06335).

    ``v <- momentum * v + delta; w <- w + lr * v`` from ``v = 0``.
    """

    momentum: float

    def _step(self, delta: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        v = self.momentum * memory[0] + delta if memory else delta
        return self.lr * v, (v,)


@dataclass(frozen=True, kw_only=True)
class FedAdam(ServerOptimizer):
    """FedAdam (Reddi et al. 2020, arXiv:2003.00295, Algorithm 2).

    ``m <- beta_1 * m + (1 - beta_1) * delta; v <- beta_2 * v + (1 - beta_2) * delta^2;
    w <- w + lr * m / (sqrt(v) + tau)`` from ``m = 0, v = tau^2``.

    Flower 1.41 differs from the paper in two things: there ``v`` starts at 0, and the learning rate
    has Adam's bias correction, with the number of the next round instead of the present one's.
    """

    beta_1: float
    beta_2: float
    tau: float

    def _step(self, delta: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        m, v = memory or (torch.zeros_like(delta), torch.full_like(delta, self.tau**2))
        m = self.beta_1 * m + (1 - self.beta_1) * delta
        v = self.beta_2 * v + (1 - self.beta_2) * delta**2
        return self.lr * m / (v.sqrt() + self.tau), (m, v)


OPTIMIZERS: dict[str, type[ServerOptimizer]] = {"fedavgm": FedAvgM, "fedadam": FedAdam}
