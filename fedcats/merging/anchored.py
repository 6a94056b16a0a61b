"""Merges that go from the model that the clients started from, ``w_0``, and say how far."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from fedcats.limits import checked, is_share, optional
from fedcats.merging.rules import Accumulator, FedAvg, Merge, Polyak, Round, Rule

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fedcats.merging.fold import Fold


def _is_step(value: Any) -> bool:
    return value == "auto" or _is_number(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


@dataclass(frozen=True)
class Scale(Rule):
    """A server step: ``w = w_0 + g (w_merged - w_0)``.

    Attributes
    ----------
    g
        1 is the merge itself; ``auto``: the one of ``grid`` that is best on held-out images.
    classifier
        Another g for the part of the model that its last layer belongs to; null: the same.
    beta
        Of the merge: null FedAvg's, a number Polyak's with this beta.
    grid
        What ``auto`` tries.
    """

    where = "strategy.scale."
    name = "scale"
    title = "server step"
    g: Any = checked("a number of at least 0 | auto", _is_step)
    classifier: Any = checked(
        "null, a number of at least 0 | auto", lambda v: v is None or _is_step(v)
    )
    beta: Any = optional(checked("a number from 0 to 1", is_share))
    grid: list[float] = checked(
        "a list of different numbers of at least 0",
        lambda v: bool(v) and len({*v}) == len(v) and all(map(_is_number, v)),
    )

    def __hash__(self) -> int:
        """A list has none of its own."""
        return hash((self.g, self.classifier, self.beta, *self.grid))

    @property
    def label(self) -> str:
        """With what differs from FedAvg's g = 1."""
        base = "FedAvg" if self.beta is None else f"Polyak β = {self.beta:g}"
        part = "" if self.classifier is None else f", classifier {_text(self.classifier)}"
        return f"{base}, step g = {_text(self.g)}{part}"

    @property
    def record(self) -> dict[str, Any]:
        """All but the grid."""
        return {"settings": {k: v for k, v in asdict(self).items() if k != "grid"}}

    @property
    def undecided(self) -> bool:
        """With ``auto``."""
        return "auto" in (self.g, self.classifier)

    @property
    def undecided_key(self) -> str:
        """The first one that is ``auto``."""
        return f"strategy.scale.{'g' if self.g == 'auto' else 'classifier'}=auto"

    def choices(self, betas: Sequence[float]) -> list[Rule]:
        """Each of the grid for what is ``auto``."""
        tried = [self.grid if one == "auto" else [one] for one in (self.g, self.classifier)]
        return [replace(self, g=g, classifier=own) for g, own in itertools.product(*tried)]

    def begin(self, server_round: Round) -> Accumulator:
        """The merge's fold, which is the round's own, and the step behind it."""
        base: Rule = FedAvg() if self.beta is None else Polyak(self.beta)
        return _Step(self, server_round, cast("Fold", server_round.begin(base)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


@dataclass
class _Step(Accumulator):
    rule: Scale
    server_round: Round
    merged: Fold

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        """Nothing: the fold has it from the round."""

    def finish(self) -> Merge:
        from fedcats.merging.fold import rounded

        start, rule, state = self.server_round.start, self.rule, {}
        merged = self.merged.exact()
        if not merged:
            raise ValueError("nothing to merge: no update was added")
        last = [*start][-1].partition(".")[0]
        for name, old in start.items():
            value = merged[name]
            if name in self.server_round.parameters:
                own = rule.classifier is not None and name.partition(".")[0] == last
                value = old.double() + (rule.classifier if own else rule.g) * (value - old.double())
            state[name] = rounded(value, old.dtype)
        return Merge(state)


@dataclass(frozen=True)
class Stock(Rule):
    """Model Stock (Jang et al. 2024, arXiv:2403.19522), tensor by tensor.

    With ``delta_i = w_i - w_0``, K clients and ``c`` the mean cosine of two of them:
    ``w = w_0 + t mean(delta), t = K c / (1 + (K - 1) c)``, cut to [0, 1]. For a tensor that
    started at random ``w_0`` is no anchor: there, and in buffers, it is the plain mean.
    """

    name = "stock"
    title = "Model Stock"

    def begin(self, server_round: Round) -> Accumulator:
        """Two sums of the size of the model."""
        return _Stock(server_round)


@dataclass
class _Stock(Accumulator):
    server_round: Round
    total: dict[str, Tensor] = field(default_factory=dict)
    directions: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        from fedcats.merging.gram import one_thread

        now = self.server_round
        self.count += 1
        for name, old in now.start.items():
            delta = update[name].double() - old.double()
            if name in now.parameters & now.pretrained:
                with one_thread():
                    length = delta.norm().clamp(min=1e-300)
                _add(self.directions, name, delta / length)
            _add(self.total, name, delta)

    def finish(self) -> Merge:
        from fedcats.merging.fold import rounded
        from fedcats.merging.gram import one_thread

        if not self.count:
            raise ValueError("nothing to merge: no update was added")
        state = {}
        for name, old in self.server_round.start.items():
            with one_thread():
                share = stock_share(self.directions.get(name), self.count)
            mean = self.total[name] / self.count
            state[name] = rounded(old.double() + share * mean, old.dtype)
        return Merge(state)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value


def stock_share(directions: Tensor | None, count: int) -> float:
    """t, from the sum of the K unit vectors; 1 without an anchor or with one client."""
    if directions is None or count == 1:
        return 1.0
    cosine = (float((directions**2).sum()) - count) / (count * (count - 1))
    below = 1 + (count - 1) * cosine
    return min(1.0, max(0.0, count * cosine / below)) if below > 0 else 0.0
