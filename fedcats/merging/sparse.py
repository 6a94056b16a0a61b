"""Merges of updates that take fewer bytes (`fedcats.merging.encodings`): nothing else is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedcats.limits import share
from fedcats.merging.rules import Accumulator, FedAvg, Merge, Round, WithSettings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fedcats.merging.fold import Fold


class Encoded(WithSettings):
    """FedAvg of what can be read back out of an encoding."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The encoding, instead of the update."""
        return (self.name,)

    def begin(self, server_round: Round) -> Accumulator:
        """A fold over the differences from the start."""
        from fedcats.merging.fold import Fold

        return _Mean(self.needs[0], server_round, Fold(FedAvg()))


@dataclass
class _Mean(Accumulator):
    part: str
    server_round: Round
    fold: Fold

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        from fedcats.merging.encodings import decode

        now = self.server_round
        self.fold.add(decode(self.part, now.parts[self.part], now.start, now.parameters), examples)

    def finish(self) -> Merge:
        from fedcats.merging.fold import rounded

        self.fold.result()  # ValueError where there is none
        start, delta = self.server_round.start, self.fold.exact()
        return Merge({k: rounded(v.double() + delta[k], v.dtype) for k, v in start.items()})


@dataclass(frozen=True)
class Half(Encoded):
    """Differences from the start in 16 bits, rounded up or down at random, right on average."""

    name = "fp16"
    title = "FedAvg in fp16"


@dataclass(frozen=True)
class Int8(Encoded):
    """Differences in 8 bits: 127 steps to the largest of its tensor, rounded at random."""

    name = "int8"
    title = "FedAvg in int8"


@dataclass(frozen=True)
class Dare(Encoded):
    """DARE (Yu et al. 2024, arXiv:2311.03099): most differences left out at random.

    The others are divided by the share that is kept, so that the mean stays right. Which ones,
    a seed of the client says, which the server knows.

    Attributes
    ----------
    drop
        Share that is left out.
    """

    where = "strategy.dare."
    name = "dare"
    title = "DARE"
    detail = " p = {drop:g}"
    drop: float = share()

    @property
    def needs(self) -> tuple[str, ...]:
        """The values that are kept."""
        return (f"dare:{self.drop:g}",)


@dataclass(frozen=True)
class Ties(Encoded):
    """TIES (Yadav et al. 2023, arXiv:2306.01708): trim, elect a sign, mean of those that agree.

    Attributes
    ----------
    keep
        Share of a client's differences that is kept, the largest ones of the model.
    """

    where = "strategy.ties."
    name = "ties"
    title = "TIES"
    detail = " {keep:g} kept"
    keep: float = share()

    @property
    def needs(self) -> tuple[str, ...]:
        """Which are kept, and their values."""
        return (f"ties:{self.keep:g}",)

    def begin(self, server_round: Round) -> Accumulator:
        """Two sums and two counts of the size of the model, however many clients."""
        return _Ties(self.needs[0], server_round)


@dataclass
class _Ties(Accumulator):
    part: str
    server_round: Round
    sums: dict[str, Tensor] = field(default_factory=dict)  # of positive, of negative differences
    counts: dict[str, Tensor] = field(default_factory=dict)
    clients: int = 0

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        import torch

        from fedcats.merging.encodings import decode

        now = self.server_round
        self.clients += 1
        for name, delta in decode(
            self.part, now.parts[self.part], now.start, now.parameters
        ).items():
            if name not in self.sums:
                shape = (2, *delta.shape)
                self.sums[name] = torch.zeros(shape, dtype=torch.float64)
                self.counts[name] = torch.zeros(shape, dtype=torch.int32)
            for side, sign in enumerate((1, -1)):
                self.sums[name][side] += (sign * delta).clamp(min=0)
                self.counts[name][side] += sign * delta > 0

    def finish(self) -> Merge:
        from fedcats.merging.fold import rounded

        if not self.clients:
            raise ValueError("nothing to merge: no update was added")
        state = {}
        for name, old in self.server_round.start.items():
            (up, down), (ups, downs) = self.sums[name], self.counts[name]
            if name in self.server_round.parameters:
                mean = (up / ups.clamp(min=1)).where(up >= down, -down / downs.clamp(min=1))
            else:
                mean = (up - down) / self.clients
            state[name] = rounded(old.double() + mean, old.dtype)
        return Merge(state)
