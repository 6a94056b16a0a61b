"""The configuration's schema: one dataclass a group, checked before anything starts.

Defaults live in the YAML files under ``conf/`` and nowhere else; a dataclass says which keys a
file has, their types, and what is allowed. What a component reads is the component's own:
`fedcats.training.recipe.Recipe` is ``train``, a source is ``data``, and so on.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedcats.data.catalogue import SOURCES
from fedcats.data.partition import PARTITIONS
from fedcats.limits import (
    FLOAT32,
    FORMATS,
    WIDTHS,
    Limited,
    checked,
    is_share,
    number,
    one_of,
    optional,
    share,
    share_below_one,
    switch,
)
from fedcats.merging.registry import RULES
from fedcats.merging.rules import Rule
from fedcats.metrics.epsilon import LEAST_NOISE
from fedcats.models.names import WEIGHTS
from fedcats.plugins import is_own
from fedcats.training.attack import ATTACKS, Attack
from fedcats.training.recipe import Recipe

MODES = ("compare", "federated", "centralized", "merge", "explain")
HELD_OUT = 0.2  # hold_out=null means this share where something is chosen
REFERENCES = ("full", "same_steps")
CHOSEN = ("soup", "best")  # need held-out images to choose on
SAVED = ("all", "merged", "none")
MOST_SEEDS = 1000
DRAWN = ("shards", "init", "training")  # anew by each of several seeds, or one of them
MERGES = (*RULES, *CHOSEN, "ensemble")
MODELS = (*RULES, *CHOSEN, "ensemble", "centralized", "same_steps")  # names that stay the package's


@dataclass(frozen=True)
class SitesPartition(Limited):
    """A real federation: each site has its own photos. Set by the ServerApp, not by users."""

    name = "sites"


@dataclass(frozen=True)
class ModelConfig(Limited):
    """``model``: architecture, initial weights, and which part is trained."""

    where = "model."
    name: str
    weights: str = checked(
        f"{' | '.join(WEIGHTS)} | an existing .safetensors or .pth file",
        lambda v: v in WEIGHTS or Path(v).is_file(),
    )
    trainable: str = one_of("all", "classifier", "head")


@dataclass(frozen=True)
class StrategyConfig(Limited):
    """``strategy``: what happens around the merge rules, whose parameters stand beside it."""

    where = "strategy."
    rules: list[str] = checked(
        f"a list of {', '.join(RULES)}, module:name, each once",
        lambda v: _is_list(v, lambda one: one in RULES or is_own_rule(one)),
    )
    order: Any = checked(
        "partition | reversed | shuffled | a list of all clients", lambda v: _is_order(v)
    )
    fraction: float = number(0, 1, above=True)
    on_failure: str = one_of("fail", "survivors")
    min_clients: int = number(1)
    timeout: float = number(0, above=True)
    secure: bool = switch()
    max_norm: float | None = optional(number(0, above=True))
    max_examples: int = number(1)


@dataclass(frozen=True)
class AttackConfig(Attack):
    """``attack``: what some clients do, simulated."""

    name: str = one_of("none", *ATTACKS)
    clients: Any = checked(
        "a number of clients, or a list of them",
        lambda v: _distinct_integers(v) or (type(v) is int and v >= 0),
    )


@dataclass(frozen=True)
class PrivacyConfig(Limited):
    """``privacy``: whether it is measured what the weights give away of the photos."""

    where = "privacy."
    name: str = one_of("none", "measure")
    exposed: int = number(0, 1000)

    @property
    def measures(self) -> bool:
        """Whether models are attacked."""
        return self.name == "measure" or getattr(self, "measure", False)

    @property
    def dp(self) -> "DpConfig | None":
        """How training is private, if it is."""
        return self if isinstance(self, DpConfig) else None


@dataclass(frozen=True)
class DpConfig(PrivacyConfig):
    """``privacy=dp``: training with differential privacy."""

    name: str = one_of("dp")
    measure: bool = switch()
    unit: str = one_of("photo", "client")
    epsilon: Any = optional(
        checked("a number above 0 | inf", lambda v: v == "inf" or (_is_number(v) and v > 0))
    )
    noise: float | None = optional(number(LEAST_NOISE, 1e4))
    clip: float = number(0, FLOAT32, above=True)
    delta: float | None = optional(share())
    centralized: bool = switch()

    @property
    def target(self) -> float | None:
        """The epsilon that the noise is to give; None: none is promised, or the noise is given."""
        return None if self.epsilon is None or math.isinf(float(self.epsilon)) else self.epsilon


@dataclass(frozen=True)
class CentralizedConfig(Limited):
    """``centralized``: the baseline's photos, those of all clients or every one not held out."""

    where = "centralized."
    photos: str = one_of("same", "all")


@dataclass(frozen=True)
class MergeConfig(Limited):
    """``merge``: what ``mode=merge`` evaluates; ``strategy.beta=auto`` takes one of the betas."""

    where = "merge."
    rules: list[str] = checked(
        f"a list of {', '.join(MERGES)}, module:name, each once",
        lambda v: _is_list(v, lambda one: one in MERGES or is_own_rule(one)),
    )
    betas: list[float] = checked(
        "a list of different numbers from 0 to 1",
        lambda v: bool(v) and len({*v}) == len(v) and all(is_share(one) for one in v),
    )
    orders: list[Any] = checked(
        "a list of partition, reversed, shuffled, or lists of all clients",
        lambda v: bool(v) and all(_is_order(one) for one in v),
    )


@dataclass(frozen=True)
class ExplainConfig(Limited):
    """``explain``: how much of what ``mode=explain`` looks at."""

    where = "explain."
    betas: list[float] | None = optional(
        checked(
            "a list of different numbers from 0 to 1",
            lambda v: bool(v) and len({*v}) == len(v) and all(is_share(one) for one in v),
        )
    )
    orders: int = number(0, 100_000)
    points: int = checked("0, or a number from 3 to 1001", lambda v: v == 0 or 3 <= v <= 1001)
    clients: int = number(1)
    coalitions: int = number(0, 1_000_000)
    precision: str = one_of("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class RunnerConfig(Limited):
    """``runner``: where the clients run."""

    where = "runner."
    name: str
    workers: int | None = optional(number(1))
    threads: int = number(1, 256)  # starting thousands takes for ever
    device: str = one_of("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RayRunner(RunnerConfig):
    """``runner=ray``: here, or on a cluster that runs already."""

    address: str | None = optional(
        checked("host:port", lambda v: re.fullmatch(r"[^:/]+:[0-9]+", v) is not None)
    )


@dataclass(frozen=True)
class FlwrRunner(RunnerConfig):
    """``runner=flwr``: the run is submitted to a SuperLink."""

    superlink: str = checked("the name of a connection in Flower's config.toml", bool)


@dataclass(frozen=True)
class StoreConfig(Limited):
    """``store``: finished updates and decoded images, kept for the next run."""

    where = "store."
    enabled: bool
    max_gb: float = number(0, above=True)
    images_gb: float = number(0, above=True)
    checkpoint_seconds: float = number(0)


GROUPS: dict[str, dict[str, type]] = {
    "data": {**SOURCES},
    "partition": {**PARTITIONS, "sites": SitesPartition},
    "privacy": {"none": PrivacyConfig, "measure": PrivacyConfig, "dp": DpConfig},
    "runner": {"ray": RayRunner, "local": RunnerConfig, "flwr": FlwrRunner},
}


@dataclass(frozen=True)
class Draws:
    """The seed of each kind of random draw of one experiment; all are ``seed`` in a single run.

    Attributes
    ----------
    own
        The experiment's, among ``seeds``.
    data
        Drawings, the split into training and test photos, `data.limit`.
    shards
        Who has which photos, which are held out, who attacks, takes part, and in which order.
    init
        Weights that start at random.
    training
        Order of the photos, flips, dropout.
    """

    own: int
    data: int
    shards: int
    init: int
    training: int


@dataclass(frozen=True)
class Config(Limited):
    """The whole configuration.

    Attributes
    ----------
    available
        Rules by name, with their parameters: all of the package, and those of the user's own that
        are named. They are made of ``strategy``.
    replicate
        Which of ``seeds`` this experiment has; None: the first.
    """

    data: Any
    partition: Any
    model: ModelConfig
    train: Recipe
    strategy: StrategyConfig
    attack: AttackConfig
    privacy: PrivacyConfig
    centralized: CentralizedConfig
    merge: MergeConfig
    explain: ExplainConfig
    runner: Any
    store: StoreConfig
    paper: dict[str, Any]
    mode: str = one_of(*MODES)
    seed: int = number(0)
    seeds: Any = optional(
        checked(
            f"a number from 1 to {MOST_SEEDS}, or a list of so many different whole numbers from 0",
            lambda v: (
                0 < (len(v) if isinstance(v, list) else v) <= MOST_SEEDS
                and (type(v) is int or (_distinct_integers(v) and min(v) >= 0))
            ),
        )
    )
    vary: str = one_of("all", *DRAWN)
    margin: float = number(0, 100, above=True)
    rounds: int = number(1)
    reference: list[str] = checked(
        "[full] | [full, same_steps]",
        lambda v: isinstance(v, list) and v in ([REFERENCES[0]], [*REFERENCES]),
    )
    hold_out: float | None = optional(share_below_one())
    validate: bool = switch()
    save_models: str = one_of(*SAVED)
    verbose: bool = switch()
    gallery: int = number(0, 100)
    figures: list[str] = checked(
        f"a list of some of {', '.join(FORMATS)}",
        lambda v: _is_list(v, lambda one: one in FORMATS) or v == [],
    )
    figure_width: float | None = optional(number(*WIDTHS))
    tracking: str = one_of("none", "tensorboard", "mlflow", "wandb")
    available: Mapping[str, Rule] = field(default_factory=dict)
    replicate: int | None = None

    @property
    def replicates(self) -> list[int]:
        """The seeds of the experiments of this run, in order."""
        if isinstance(self.seeds, list):
            return self.seeds
        return [self.seed + i for i in range(self.seeds or 1)]

    @property
    def draws(self) -> Draws:
        """The seeds of this experiment."""
        own = self.replicates[0] if self.replicate is None else self.replicate
        varied = DRAWN if self.vary == "all" else (self.vary,)
        draws = Draws(own, *[self.seed] * 4)
        return replace(draws, **dict.fromkeys(varied, own))

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules of ``strategy.rules``, by name."""
        return {name: self.available[name] for name in self.strategy.rules}

    @property
    def merged_by(self) -> list[Rule]:
        """Those of ``merge.rules`` that are rules."""
        return [self.available[name] for name in self.merge.rules if name in self.available]

    @property
    def grid(self) -> list[Rule]:
        """The folds of ``merge.rules``, with each of ``merge.betas``."""
        folds = [rule for rule in self.merged_by if rule.is_fold]
        return [one for rule in folds for one in rule.choices(self.merge.betas)]

    def needs(self, rule: str = "") -> tuple[str, ...]:
        """What each client has to give for this rule, or for all that this run merges by."""
        rules = self.merged_by if self.mode == "merge" else [*self.rules.values()]
        asked = [self.available[rule]] if rule else rules
        return tuple(dict.fromkeys(need for one in asked for need in one.needs))

    @property
    def has_same_steps(self) -> bool:
        """Whether there is to be a second model in one place, with as many steps as a client."""
        return "same_steps" in self.reference and self.mode in ("compare", "merge")

    @property
    def choice(self) -> str | None:
        """What in this configuration chooses, and so needs held-out images."""
        if self.mode == "merge":
            chosen = [rule for rule in CHOSEN if rule in self.merge.rules]
            auto = [
                one.undecided_key for one in self.merged_by if one.undecided and not one.is_fold
            ]
            return f"merge.rules={chosen}" if chosen else next(iter(auto), None)
        auto = [rule.undecided_key for rule in self.rules.values() if rule.undecided]
        return next(iter(auto), None) if self.mode != "centralized" else None

    @property
    def merges(self) -> bool:
        """Whether the rules of ``strategy.rules`` merge."""
        return self.mode in ("compare", "federated", "explain")

    @property
    def held_out(self) -> float:
        """Share of each client's images that is kept from training."""
        if self.hold_out is None:
            return HELD_OUT if self.choice else 0.0
        return self.hold_out


def is_own_rule(name: Any) -> bool:
    """Whether a name stands for a rule of the user's own."""
    return name not in MODELS and is_own("rules", name)


def _is_list(values: Any, allowed: Callable[[Any], bool]) -> bool:
    return bool(values) and len({*values}) == len(values) and all(map(allowed, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_order(value: Any) -> bool:
    return value in ("partition", "reversed", "shuffled") or _distinct_integers(value)


def _distinct_integers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(type(v) is int for v in value)
        and len({*value}) == len(value)
    )
