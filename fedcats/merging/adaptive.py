"""Rules with an optimizer over the rounds; its step is in `fedcats.merging.server_optimizer`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedcats.limits import number, share_below_one
from fedcats.merging.rules import Accumulator, Round, Rule

if TYPE_CHECKING:
    from torch import Tensor


class ServerOptimizer(Rule):
    """FedAvg's mean of a round as one step of an optimizer over the rounds.

    The server takes ``delta = mean - w``, what FedAvg would add to the model ``w`` that the clients
    started from, as a gradient, and keeps a memory from round to round. Keys that are no
    parameters are averaged only.
    """

    lr: float

    @property
    def record(self) -> dict[str, Any]:
        """All of them."""
        return {"optimizer": asdict(self)}  # type: ignore[call-overload]

    @abstractmethod
    def move(self, delta: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What is added to a parameter, and its new memory; ``memory`` is empty at first."""

    def begin(self, server_round: Round) -> Accumulator:
        """FedAvg's fold, and behind it the step."""
        from fedcats.merging.server_optimizer import ServerStep

        return ServerStep(self, server_round)


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """FedAvg with server momentum (Hsu et al. 2019, arXiv:1909.06335).

    ``v <- momentum * v + delta; w <- w + lr * v`` from ``v = 0``.
    """

    where = "strategy.fedavgm."
    name = "fedavgm"
    title = "FedAvgM"
    detail = " η = {lr:g}, β = {momentum:g}"
    lr: float = number(0, above=True)
    momentum: float = share_below_one()

    def move(self, delta: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See above."""
        v = self.momentum * memory[0] + delta if memory else delta
        return self.lr * v, (v,)


@dataclass(frozen=True)
class FedAdam(ServerOptimizer):
    """FedAdam (Reddi et al. 2020, arXiv:2003.00295, Algorithm 2).

    ``m <- beta_1 * m + (1 - beta_1) * delta; v <- beta_2 * v + (1 - beta_2) * delta^2;
    w <- w + lr * m / (sqrt(v) + tau)`` from ``m = 0, v = tau^2``.

    Flower 1.41 differs from the paper in two things: there ``v`` starts at 0, and the learning rate
    has Adam's bias correction, with the number of the next round instead of the present one's.
    """

    where = "strategy.fedadam."
    name = "fedadam"
    title = "FedAdam"
    detail = " η = {lr:g}"
    lr: float = number(0, above=True)
    beta_1: float = share_below_one()
    beta_2: float = share_below_one()
    tau: float = number(0, above=True)

    def move(self, delta: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See above."""
        m, v = memory or (delta.new_zeros(delta.shape), delta.new_full(delta.shape, self.tau**2))
        m = self.beta_1 * m + (1 - self.beta_1) * delta
        v = self.beta_2 * v + (1 - self.beta_2) * delta**2
        return self.lr * m / (v.sqrt() + self.tau), (m, v)
