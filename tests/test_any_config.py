"""A thousand random configurations: each is accepted, or refused in one line."""

import random
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedcats.config import Config, compose_config, conf_dir, load
from fedcats.core.errors import UserError
from fedcats.core.robust import Robust
from fedcats.core.server_optimizer import ServerOptimizer
from fedcats.core.training import Recipe
from fedcats.experiment import deal_out, make_merge

GROUPS = {
    path.name: sorted(file.stem for file in path.glob("*.yaml"))
    for path in conf_dir().iterdir()
    if path.is_dir() and path.name != "hydra"
}
NASTY = [
    *("0", "1", "2", "3", "10", "11", "-1", "0.5", "1.0", "1.5", "-0.1", "1e-9", "1e30", "nan"),
    *("inf", "-inf", "null", "true", "false", "''", "text", "a b", "ä", "[]", "[0]", "[0,1,2]"),
    *("[1,1]", "[[1]]", "{}", "{a: 1}", "{train: [3,4], test: [1,1]}", "{train: [], test: []}"),
    *("{train: null}", "9" * 30, "0x10", "1_000", "${seed}", "${nothing}", "???", "'${'", "*"),
    *(
        "[polyak]",
        "[krum,median]",
        "[fedavgm,fedadam]",
        "partition",
        "reversed",
        "auto",
        "fail",
        "survivors",
        "cpu",
    ),
    *("photos", "../x", "/dev/null", "model.pth", "[polyak,[fedavg]]", "[null]", "[nan]"),
]


def all_keys() -> list[str]:
    """Every key of every option, such as ``partition.alpha``, and some that do not exist."""
    found = {"data", "nothing", "train.nothing", "train.epochs.deeper", "data.counts.train"}
    for file in conf_dir().rglob("*.yaml"):
        group = "" if file.parent == conf_dir() else f"{file.parent.name}."
        for key, value in (OmegaConf.to_container(OmegaConf.load(file)) or {}).items():
            if key not in ("defaults", "hydra") and "hydra" not in group:
                nested = [f".{name}" for name in value] if isinstance(value, dict) else [""]
                prefix = "" if group == "experiment." else group
                found |= {f"{prefix}{key}{name}" for name in nested}
    return sorted(found)


def draw(chance: random.Random, keys: list[str]) -> list[str]:
    overrides = [
        f"{group}={chance.choice(options)}"
        for group, options in sorted(GROUPS.items())
        if chance.random() < 0.3
    ]
    if chance.random() < 0.7:
        overrides.append("++data.root=photos")
    for _ in range(chance.choice([0, 0, 1, 2, 3])):
        prefix = chance.choice(["", "", "", "", "", "+", "++", "~"])
        overrides.append(f"{prefix}{chance.choice(keys)}={chance.choice(NASTY)}")
    return overrides


def build(config: Config) -> None:
    """All that a run makes of its configuration before it reads an image."""
    recipe = Recipe(**asdict(config.train))
    assert recipe.lr_at(0) > 0
    beta = 0.5 if config.strategy.beta == "auto" else float(config.strategy.beta)
    for name in config.strategy.rules:
        rule = make_merge(config, name, beta, frozenset())
        if isinstance(rule, Robust):
            assert rule.label
        elif isinstance(rule, ServerOptimizer):
            assert rule.lr > 0
        else:
            assert 0 <= rule(2, 3, 6) <= 1
    if config.partition.name != "sites" and config.partition.num_shards <= 1000:
        labels = np.repeat([0, 1], [60, 70])
        shards = deal_out(config, SimpleNamespace(train=SimpleNamespace(labels=labels)))  # type: ignore[arg-type]
        assert len(shards) == config.partition.num_shards
        together = np.concatenate(shards)
        assert len(np.unique(together)) == len(together)


@pytest.mark.parametrize("seed", range(10))
def test_none_of_a_thousand_ends_in_a_traceback(seed: int) -> None:
    chance = random.Random(seed)
    keys = all_keys()
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(100):
        overrides = draw(chance, keys)
        try:
            build(load(compose_config(overrides)))
            outcomes["accepted"] += 1
        except UserError as error:
            assert str(error).strip()
            assert "\n" not in str(error), overrides
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{overrides}: {type(error).__name__}: {error}") from error
    assert min(outcomes.values()) >= 5, outcomes
