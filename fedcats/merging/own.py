"""Rules of a user's own: functions, classes and objects outside fedcats; see `fedcats.plugins`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcats.errors import UserError
from fedcats.merging.rules import Accumulator, GatherRule, Merge, Round, Rule
from fedcats.plugins import blamed, check_call, short_name

if TYPE_CHECKING:
    from torch import Tensor


def own_rule(name: str, thing: Any, parameters: Mapping[str, Any]) -> Rule:
    """What a user wrote, as a rule.

    Parameters
    ----------
    name
        In the configuration.
    thing
        A function ``(updates, examples, start, **parameters) -> merged``, a subclass of `Rule`, or
        an object of one.
    parameters
        ``strategy.<the name behind the colon>`` of the configuration.

    Raises
    ------
    UserError
        When it is none of these, or does not take the parameters.
    """
    what = f"strategy.rules={name}"
    title = short_name(name)
    if isinstance(thing, type) and issubclass(thing, Rule):
        check_call(what, thing, **parameters)
        with blamed(what):
            return Own(name, title, thing(**parameters))
    if isinstance(thing, Rule) and not parameters:
        return Own(name, title, thing)
    if callable(thing) and not isinstance(thing, type | Rule):
        check_call(what, thing, [], [], {}, **parameters)
        return Own(name, title, _Function(thing, parameters))
    raise UserError(
        f"{what}: is {'an object with' if parameters else 'no rule, but'} "
        f"{parameters or type(thing).__name__}; allowed are a function (updates, examples, start), "
        "a subclass of fedcats.merging.rules.Rule, or an object of one, which has its parameters"
    )


@dataclass(frozen=True)
class Own(Rule):
    """A user's rule: what goes wrong in it is said with its place, what it gives is checked."""

    name: str
    title: str
    rule: Rule = field(compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_fold", self.rule.is_fold)

    @property
    def needs(self) -> tuple[str, ...]:
        """Its own."""
        return self.rule.needs

    @property
    def what(self) -> str:
        """What it is called in errors."""
        return f"strategy.rules={self.name}"

    @property
    def label(self) -> str:
        """Its own, if it has a title."""
        return self.rule.label if hasattr(self.rule, "title") else self.title

    def step(self, i: int, examples: int, total: int) -> float:
        """Its own, if that is a number."""
        with blamed(self.what):
            step = float(self.rule.step(i, examples, total))
        if not math.isfinite(step):
            raise UserError(f"{self.what}: its step for the update {i} is {step}")
        return step

    def begin(self, server_round: Round) -> Accumulator:
        """Its own, guarded."""
        with blamed(self.what):
            return _Guarded(self.what, self.rule.begin(server_round), server_round.start)


@dataclass
class _Guarded(Accumulator):
    what: str
    inner: Accumulator
    start: Mapping[str, Tensor]

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        with blamed(self.what):
            self.inner.add(update, examples, file)

    def finish(self) -> Merge:
        import torch

        from fedcats.merging.fold import Fold, check_update

        with blamed(self.what):
            merge = self.inner.finish()
        state = merge.state if isinstance(merge, Merge) else merge
        if not isinstance(state, Mapping) or not all(
            isinstance(value, torch.Tensor) for value in state.values()
        ):
            kind = type(state).__name__
            raise UserError(f"{self.what}: it gives a {kind}, not a dict of tensors by their keys")
        try:
            check_update(state, self.start)
        except ValueError as error:
            raise UserError(f"{self.what}: of what it gives, {error}") from error
        # Predictions are kept by the steps: only a real fold's say all.
        steps = merge.steps if isinstance(self.inner, Fold) else ()
        return Merge({name: state[name] for name in self.start}, steps)


@dataclass(frozen=True)
class _Function(GatherRule):
    function: Callable[..., Any]
    parameters: Mapping[str, Any]

    def merge(self, files: Sequence[Path], examples: Sequence[int], server_round: Round) -> Merge:
        start = {name: value.clone() for name, value in server_round.start.items()}
        updates = [_Stored(file) for file in files]
        return Merge(self.function(updates, list(examples), start, **self.parameters))


class _Stored(Mapping[str, "Tensor"]):
    """An update in its file: each tensor is read when it is asked for."""

    def __init__(self, file: Path) -> None:
        import safetensors

        self._file = safetensors.safe_open(file, framework="pt")
        self._names: list[str] = list(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
