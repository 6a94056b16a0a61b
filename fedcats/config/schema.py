"""The configuration's schema: one dataclass a group, checked before anything starts.

Defaults live in the YAML files under ``conf/`` and nowhere else; a dataclass says which keys a
file has, their types, and what is allowed.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcats.merging.names import ATTACKS, FOLDS, ROBUST, SERVER_OPTIMIZERS, STARTS
from fedcats.models.names import WEIGHTS

MODES = ("compare", "federated", "centralized", "merge")
RULES = (*FOLDS, *SERVER_OPTIMIZERS, *ROBUST)
HELD_OUT = 0.2  # hold_out=null means this share where something is chosen
CHOSEN = ("soup", "best")  # need held-out images to choose on
SAVED = ("all", "merged", "none")
_FLOAT32 = 3.4e38  # larger factors do not fit the weights' type


def _checked(allowed: str, test: Callable[[Any], bool]) -> Any:
    return field(metadata={"allowed": allowed, "test": test})


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Any:
    """A finite number from ``low`` (or above it) to ``high``."""
    text = f"a number {'above' if above else 'from'} {low:g}"
    text += f" to {high:g}" if high < math.inf else ""
    return _checked(
        text,
        lambda v: math.isfinite(v) and (v > low if above else v >= low) and v <= high,
    )


def _share() -> Any:
    return _checked("a number between 0 and 1", lambda v: 0 < v < 1)


def _share_below_one() -> Any:
    return _checked("a number from 0 to below 1", lambda v: 0 <= v < 1)


def _choice(*values: str) -> Any:
    return _checked(" | ".join(values), lambda v: v in values)


def _optional(checked: Any) -> Any:
    test = checked.metadata["test"]
    return _checked(f"null or {checked.metadata['allowed']}", lambda v: v is None or test(v))


@dataclass(frozen=True)
class SyntheticData:
    """``data=synthetic``: cats and dogs drawn by the package."""

    name: str
    train_per_class: int = _number(1)
    test_per_class: int = _number(1)


def _is_counts(value: Any) -> bool:
    return set(value) == {"train", "test"} and all(
        part and all(type(n) is int and n >= 1 for n in part) for part in value.values()
    )


@dataclass(frozen=True)
class PhotoData:
    """What every source of photos has; see `fedcats.data.folder_source`."""

    name: str
    limit: int | None = _optional(_number(1))
    counts: dict[str, list[int]] | None = _optional(
        _checked("{train: [..], test: [..]}, a number from 1 for each class", _is_counts)
    )
    max_bad_fraction: float = _number(0, 1)
    keep_duplicates: bool = _checked("true | false", lambda v: isinstance(v, bool))


@dataclass(frozen=True, kw_only=True)
class FolderData(PhotoData):
    """``data=folder`` and ``data=kaggle``: photos in a folder or a zip archive."""

    root: str
    test_fraction: float = _share()


@dataclass(frozen=True)
class PetImagesData(PhotoData):
    """``data=petimages``: downloaded."""

    test_fraction: float = _share()


@dataclass(frozen=True, kw_only=True)
class HubData(PhotoData):
    """``data=hub`` and ``data=cats_vs_dogs``: tables of the Hugging Face hub."""

    repo: str
    image: str
    label: str
    train_split: str
    test_split: str | None
    revision: str | None = None
    test_fraction: float = _share()


@dataclass(frozen=True, kw_only=True)
class OxfordPetsData(PhotoData):
    """``data=oxford_pets``: downloaded, or as torchvision has it in ``root``."""

    root: str | None


@dataclass(frozen=True)
class PaperPartition:
    """``partition=paper``: disjoint shards with the same number of images of each class."""

    name: str
    num_shards: int = _number(1)
    per_class: int | None = _optional(_number(1))


@dataclass(frozen=True)
class IidPartition:
    """``partition=iid``: shards of (nearly) equal size, dealt out at random."""

    name: str
    num_shards: int = _number(1)


@dataclass(frozen=True)
class SkewedPartition:
    """``partition=linear``, ``square`` and ``exponential``: shards of different size."""

    name: str
    num_shards: int = _number(1)
    min_size: int = _number(1)


@dataclass(frozen=True)
class DirichletPartition(SkewedPartition):
    """``partition=dirichlet``: each class divided in random proportions."""

    alpha: float = _number(0, above=True)


@dataclass(frozen=True)
class PathologicalPartition(SkewedPartition):
    """``partition=pathological``: a few classes only in each shard."""

    classes_per_shard: int = _number(1)


@dataclass(frozen=True)
class ShardPartition(SkewedPartition):
    """``partition=shard``: pieces of the images sorted by class."""

    pieces_per_shard: int = _number(1)


@dataclass(frozen=True)
class SitesPartition:
    """A real federation: each site has its own photos. Set by the ServerApp, not by users."""

    name: str


@dataclass(frozen=True)
class ModelConfig:
    """``model``: architecture, initial weights, and which part is trained."""

    name: str
    weights: str = _checked(
        f"{' | '.join(WEIGHTS)} | an existing .safetensors or .pth file",
        lambda v: v in WEIGHTS or Path(v).is_file(),
    )
    trainable: str = _choice("all", "classifier", "head")


@dataclass(frozen=True)
class TrainConfig:
    """``train``: the recipe; see `fedcats.training.recipe.Recipe`."""

    epochs: int = _number(1)
    batch_size: int = _number(1)
    lr: float = _number(0, _FLOAT32, above=True)
    momentum: float = _number(0, 1)
    nesterov: bool = _checked("true | false", lambda v: isinstance(v, bool))
    weight_decay: float = _number(0, _FLOAT32)
    step_size: int = _number(0)
    gamma: float = _number(0, 1, above=True)
    drop_last: bool = _checked("true | false", lambda v: isinstance(v, bool))
    proximal_mu: float = _number(0, _FLOAT32)


@dataclass  # frozen, OmegaConf could not merge into it inside another
class FedAvgMConfig:
    """``strategy.fedavgm``: see `fedcats.merging.server_optimizer.FedAvgM`."""

    lr: float = _number(0, above=True)
    momentum: float = _share_below_one()


@dataclass  # frozen, OmegaConf could not merge into it inside another
class FedAdamConfig:
    """``strategy.fedadam``: see `fedcats.merging.server_optimizer.FedAdam`."""

    lr: float = _number(0, above=True)
    beta_1: float = _share_below_one()
    beta_2: float = _share_below_one()
    tau: float = _number(0, above=True)


@dataclass(frozen=True)
class StrategyConfig:
    """``strategy``: the merge rules and what happens around them."""

    fedavgm: FedAvgMConfig
    fedadam: FedAdamConfig
    rules: list[str] = _checked(
        f"a list of {', '.join(RULES)}, each once",
        lambda v: _subset(v, {*RULES}),
    )
    trim: float = _checked("a number from 0 to below 0.5", lambda v: 0 <= v < 0.5)
    malicious: int = _number(0)
    beta: Any = _checked("a number from 0 to 1 | auto", lambda v: v == "auto" or _is_share(v))
    start: str = _choice(*STARTS)
    order: Any = _checked(
        "partition | reversed | shuffled | a list of all clients", lambda v: _is_order(v)
    )
    fraction: float = _number(0, 1, above=True)
    on_failure: str = _choice("fail", "survivors")
    min_clients: int = _number(1)
    timeout: float = _number(0, above=True)
    max_norm: float | None = _optional(_number(0, above=True))


@dataclass(frozen=True)
class AttackConfig:
    """``attack``: what some clients do, simulated; see `fedcats.training.attack`."""

    name: str = _choice("none", *ATTACKS)
    clients: Any = _checked(
        "a number of clients, or a list of them",
        lambda v: _distinct_integers(v) or (type(v) is int and v >= 0),
    )
    factor: float = _number(0, above=True)


@dataclass(frozen=True)
class MergeConfig:
    """``merge``: what ``mode=merge`` evaluates; ``strategy.beta=auto`` takes one of the betas."""

    rules: list[str] = _checked(
        f"a list of {', '.join(FOLDS)}, {', '.join(CHOSEN)}, ensemble, each once",
        lambda v: _subset(v, {*FOLDS, *CHOSEN, "ensemble"}),
    )
    betas: list[float] = _checked(
        "a list of different numbers from 0 to 1",
        lambda v: bool(v) and len({*v}) == len(v) and all(_is_share(one) for one in v),
    )
    orders: list[Any] = _checked(
        "a list of partition, reversed, shuffled, or lists of all clients",
        lambda v: bool(v) and all(_is_order(one) for one in v),
    )


@dataclass(frozen=True)
class RunnerConfig:
    """``runner``: where the clients run."""

    name: str
    workers: int | None = _optional(_number(1))
    threads: int = _number(1, 256)  # starting thousands takes for ever
    device: str = _choice("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RayRunner(RunnerConfig):
    """``runner=ray``: here, or on a cluster that runs already."""

    address: str | None = _optional(
        _checked("host:port", lambda v: re.fullmatch(r"[^:/]+:[0-9]+", v) is not None)
    )


@dataclass(frozen=True)
class FlwrRunner(RunnerConfig):
    """``runner=flwr``: the run is submitted to a SuperLink."""

    superlink: str = _checked("the name of a connection in Flower's config.toml", bool)


@dataclass(frozen=True)
class StoreConfig:
    """``store``: finished updates and decoded images, kept for the next run."""

    enabled: bool
    max_gb: float = _number(0, above=True)
    images_gb: float = _number(0, above=True)
    checkpoint_seconds: float = _number(0)


GROUPS: dict[str, dict[str, type]] = {
    "data": {
        "synthetic": SyntheticData,
        "folder": FolderData,
        "petimages": PetImagesData,
        "hub": HubData,
        "oxford_pets": OxfordPetsData,
    },
    "partition": {
        "paper": PaperPartition,
        "iid": IidPartition,
        "dirichlet": DirichletPartition,
        "pathological": PathologicalPartition,
        "shard": ShardPartition,
        "linear": SkewedPartition,
        "square": SkewedPartition,
        "exponential": SkewedPartition,
        "sites": SitesPartition,
    },
    "runner": {"ray": RayRunner, "local": RunnerConfig, "flwr": FlwrRunner},
}


@dataclass(frozen=True)
class Config:
    """The whole configuration, as plain values."""

    data: Any
    partition: Any
    model: ModelConfig
    train: TrainConfig
    strategy: StrategyConfig
    attack: AttackConfig
    merge: MergeConfig
    runner: Any
    store: StoreConfig
    paper: dict[str, Any]
    mode: str = _choice(*MODES)
    seed: int = _number(0)
    rounds: int = _number(1)
    hold_out: float | None = _optional(_share_below_one())
    save_models: str = _choice(*SAVED)
    verbose: bool = _checked("true | false", lambda v: isinstance(v, bool))

    @property
    def choice(self) -> str | None:
        """What in this configuration chooses, and so needs held-out images."""
        if self.mode == "merge":
            chosen = [rule for rule in CHOSEN if rule in self.merge.rules]
            return f"merge.rules={chosen}" if chosen else None
        auto = self.strategy.beta == "auto" and "polyak" in self.strategy.rules
        return "strategy.beta=auto" if auto and self.mode != "centralized" else None

    @property
    def held_out(self) -> float:
        """Share of each client's images that is kept from training."""
        if self.hold_out is None:
            return HELD_OUT if self.choice else 0.0
        return self.hold_out


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_order(value: Any) -> bool:
    return value in ("partition", "reversed", "shuffled") or _distinct_integers(value)


def _subset(values: list[str], allowed: set[str]) -> bool:
    return bool(values) and len({*values}) == len(values) and {*values} <= allowed


def _distinct_integers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(type(v) is int for v in value)
        and len({*value}) == len(value)
    )
