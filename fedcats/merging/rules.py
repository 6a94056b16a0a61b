"""What a rule is: its name, its title, the parameters that it reads, and how it begins a merge.

Nothing here imports PyTorch, so that the command line can read the rules' limits; neither do, at
their beginnings, the other modules of rules (`fedcats.merging.registry`). What the folds and the
robust rules compute is in `fedcats.merging.fold` and ``robust``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcats.limits import Limited, checked, is_share, number, one_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fedcats.tensors import State


class Merge(NamedTuple):
    """A merged model.

    Attributes
    ----------
    state
        Its tensors by state-dict key.
    steps
        Of the `Fold` that it is; empty where it is none.
    key
        Says then what it is, with all that it depends on beside the updates; empty where only its
        digest does.
    chosen
        What the merge chose by itself, and on what; may be empty.
    """

    state: State
    steps: Sequence[float] = ()
    key: str = ""
    chosen: str = ""


UPDATE = "update"
"""In `Rule.needs`: the trained model itself."""


PARTS_OF_PHOTOS = ("sums", "gram", "inputs", "fisher")
"""Kinds of parts there that are worked out from a client's photos, not from its update."""


def in_a_round(fraction: float, clients: int) -> int:
    """How many of the clients take part in a round: the nearest number, 1 or more."""
    return max(1, math.floor(fraction * clients + 0.5))


class Accumulator(ABC):
    """A merge under way: each update of the round in order, then the result."""

    @abstractmethod
    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        """Take in one more update.

        Parameters
        ----------
        update
            Tensors by state-dict key, checked: those of the round's start have the same keys,
            shapes and dtypes.
        examples
            Number of images that the client trained on, at least 1.
        file
            The same tensors as a safetensors file, which outlasts the merge.
        """

    @abstractmethod
    def finish(self) -> Merge:
        """The merge, with the dtypes of the updates; ValueError where there is none."""


@dataclass
class Round:
    """A round of the federation, as rules see it.

    Attributes
    ----------
    start
        The model that the clients started from: trained tensors by state-dict key.
    parameters
        State-dict keys that are no buffers (such as batch norm's statistics).
    memory
        What rules keep from round to round, by rule.
    pretrained
        State-dict keys of which ``start`` means something: they did not start at random.
    parts
        What the client whose update is being added gave beside it, by the names in `Rule.needs`.
    """

    start: Mapping[str, Tensor]
    parameters: frozenset[str] = frozenset()
    memory: dict[Rule, Any] = field(default_factory=dict)
    pretrained: frozenset[str] = frozenset()
    parts: Mapping[str, State] = field(default_factory=dict)
    _begun: dict[Rule, Accumulator] = field(default_factory=dict)

    def begin(self, rule: Rule) -> Accumulator:
        """The rule's accumulator; equal rules share one."""
        if rule not in self._begun:
            self._begun[rule] = rule.begin(self)
        return self._begun[rule]

    def add(
        self,
        update: Mapping[str, Tensor],
        examples: int,
        file: Path,
        parts: Mapping[str, State] = MappingProxyType({}),
    ) -> None:
        """One more update for every rule that was begun; see `Accumulator.add`."""
        self.parts = parts
        for accumulator in self._begun.values():
            accumulator.add(update, examples, file)


class Rule(Limited, ABC):
    """How the clients' updates become one model.

    A subclass is a frozen dataclass; its fields are the parameters, each with its limits. In the
    configuration they stand under ``where``; those of a user's own under ``strategy.<name>``.

    Attributes
    ----------
    name
        In the configuration, in results and in names of files.
    title, detail
        In tables and figures; the second is formatted with the parameters.
    is_fold
        Whether it has a `step`, so that ``mode=merge`` can merge by it.
    is_robust
        Whether one update, however large, cannot spoil its merge.
    is_last
        Whether its merge is a model that no client can train on from.
    """

    where = "strategy."
    name: str
    title: str
    detail: str = ""
    is_fold: bool = False
    is_robust: bool = False
    is_last: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What a client sends for it: `UPDATE`, or parts that it works out beside its training.

        Their names are those of `fedcats.training.parts`; `Round.parts` has what they hold.
        """
        return (UPDATE,)

    @classmethod
    def reads(cls) -> list[str]:
        """The configuration's keys that it alone reads; of a group the beginning."""
        if cls.where != Rule.where:
            return [cls.where.rstrip(".")]
        return [cls.where + item.name for item in fields(cls)]  # type: ignore[arg-type]

    @property
    def label(self) -> str:
        """The title with the parameters that a reader wants to see."""
        return self.title + self.detail.format(**vars(self))

    @property
    def record(self) -> dict[str, Any]:
        """What ``results.json`` says of its parameters."""
        return {}

    @property
    def undecided(self) -> bool:
        """Whether a parameter is still to be chosen on held-out images, among `choices`."""
        return False

    @property
    def undecided_key(self) -> str:
        """The configuration's key of that parameter, with its value."""
        return "strategy.beta=auto"

    def choices(self, betas: Sequence[float]) -> list[Rule]:
        """What ``mode=merge`` tries: the rule with each of ``merge.betas``, if it reads beta."""
        return [self]

    def refusal(self, clients: int) -> str:
        """Why so many clients are too few; empty if they are not."""
        return ""

    def step(self, i: int, examples: int, total: int) -> float:
        """The fold's step for the i-th update (from 1): ``rule(i, n_i, n_1 + .. + n_i) -> s_i``."""
        raise NotImplementedError

    @abstractmethod
    def begin(self, server_round: Round) -> Accumulator:
        """A new merge, for one round."""


class WithSettings(Rule):
    """A rule whose parameters stand in ``results.json`` under ``settings``."""

    @property
    def record(self) -> dict[str, Any]:
        """Its parameters."""
        found = asdict(self)  # type: ignore[call-overload]
        return {"settings": found} if found else {}


# --- folds ------------------------------------------------------------------------------------


class FoldRule(Rule):
    """A rule that gives the steps of a `fedcats.merging.fold.Fold`: one model's memory."""

    is_fold = True

    def begin(self, server_round: Round) -> Accumulator:
        """The fold, from its first update on, or from the round's start."""
        from fedcats.merging.fold import Fold

        return Fold(self, server_round.start)


@dataclass(frozen=True)
class Polyak(FoldRule):
    """Sequential Polyak average: the paper's listing, ``w = beta * w_i + (1 - beta) * w``.

    Attributes
    ----------
    beta
        In [0, 1]; ``auto`` where it is to be chosen on held-out images.
    start
        What ``w`` is before the first update: ``first``, as in the paper, that update itself, so
        that nothing is left of the model that the clients started from; ``global``, that model,
        of which ``(1 - beta) ** n`` is left after n clients.
    """

    name = "polyak"
    title = "Polyak"
    beta: Any = checked("a number from 0 to 1 | auto", lambda v: v == "auto" or is_share(v))
    start: str = one_of("first", "global", default="first")

    @property
    def label(self) -> str:
        """With beta, of which a search may have found many digits."""
        return f"{self.title} β = {self.beta if self.undecided else f'{self.beta:.6g}'}"

    @property
    def record(self) -> dict[str, Any]:
        """Its beta."""
        return {"beta": self.beta}

    @property
    def undecided(self) -> bool:
        """With ``auto``."""
        return bool(self.beta == "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.undecided:
            object.__setattr__(self, "beta", float(self.beta))  # 1 and 1.0 are one rule

    def choices(self, betas: Sequence[float]) -> list[Rule]:
        """One for each beta."""
        return [replace(self, beta=beta) for beta in betas]

    def step(self, i: int, examples: int, total: int) -> float:
        """Beta, but 1 for the first update where that is the start."""
        step: float = 1.0 if i == 1 and self.start == "first" else self.beta
        return step


@dataclass(frozen=True)
class FedAvg(FoldRule):
    """The mean weighted by each client's number of examples."""

    name = "fedavg"
    title = "FedAvg"

    def step(self, i: int, examples: int, total: int) -> float:
        """The client's share of the examples so far."""
        return examples / total


@dataclass(frozen=True)
class Uniform(FoldRule):
    """Plain mean, whatever the number of examples (Polyak with ``beta = 1 / i``)."""

    name = "uniform"
    title = "plain mean"

    def step(self, i: int, examples: int, total: int) -> float:
        """The client's share of the clients so far."""
        return 1.0 / i


# --- robust rules -----------------------------------------------------------------------------


class GatherRule(Rule):
    """A rule that needs all updates at one time, and finds them in files."""

    @abstractmethod
    def merge(self, files: Sequence[Path], examples: Sequence[int], server_round: Round) -> Merge:
        """Merge the updates in these safetensors files, in the order of the merge."""

    def begin(self, server_round: Round) -> Accumulator:
        """Nothing but a list of files."""
        return _Gathered(self, server_round)


@dataclass
class _Gathered(Accumulator):
    rule: GatherRule
    server_round: Round
    files: list[Path] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        self.files.append(file)
        self.examples.append(examples)

    def finish(self) -> Merge:
        if not self.files:
            raise ValueError("nothing to merge: no update was added")
        return self.rule.merge(self.files, self.examples, self.server_round)


@dataclass(frozen=True)
class Median(GatherRule):
    """Of each weight the median: the mean of the middle one or two values."""

    is_robust = True
    name = "median"
    title = "coordinate median"

    def merge(self, files: Sequence[Path], examples: Sequence[int], server_round: Round) -> Merge:
        """All but the middle ones are cut away."""
        from fedcats.merging.robust import trimmed_mean

        return Merge(trimmed_mean(files, (len(files) - 1) // 2), key="median")


@dataclass(frozen=True)
class TrimmedMean(GatherRule):
    """Of each weight the mean without its smallest and largest values.

    Attributes
    ----------
    trim
        Share of the values that is left out at either end.
    """

    is_robust = True
    name = "trimmed_mean"
    title = "trimmed mean"
    trim: float = checked("a number from 0 to below 0.5", lambda v: 0 <= v < 0.5)

    def merge(self, files: Sequence[Path], examples: Sequence[int], server_round: Round) -> Merge:
        """So many at either end, rounded down."""
        from fedcats.merging.robust import trimmed_mean

        cut = self.cut(len(files))
        key = f"{self.title} {self.trim:g}"
        if cut != int(self.trim * len(files)):  # what versions before had under that key
            key += f", {cut} at either end"
        return Merge(trimmed_mean(files, cut), key=key)

    def cut(self, clients: int) -> int:
        """Values left out at either end: of 100 with 0.29 they are 29, which 28.999.. means."""
        return min(int(self.trim * clients + 1e-9), (clients - 1) // 2)


@dataclass(frozen=True)
class Krum(GatherRule):
    """The update that is nearest to its neighbours (Blanchard et al. 2017).

    Attributes
    ----------
    malicious
        How many bad clients it expects.
    """

    is_robust = True
    name = "krum"
    title = "Krum"
    malicious: int = number(0)

    def refusal(self, clients: int) -> str:
        """Krum's promise needs ``2 * malicious + 3`` clients."""
        need = 2 * self.malicious + 3
        if clients >= need:
            return ""
        return (
            f"krum with strategy.malicious={self.malicious} needs at least {need} clients in a "
            f"round, there are {clients}"
        )

    def merge(self, files: Sequence[Path], examples: Sequence[int], server_round: Round) -> Merge:
        """A fold that takes the chosen update and nothing else."""
        from fedcats.merging.robust import nearest, whole

        if why := self.refusal(len(files)):
            raise ValueError(why)
        chosen = nearest(files, self.malicious)
        steps = [1.0, *(float(i == chosen) for i in range(1, len(files)))]
        return Merge(whole(files[chosen]), steps)
