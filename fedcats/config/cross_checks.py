"""What the groups of a configuration ask of each other: one small rule each."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from fedcats.config.schema import HELD_OUT, Config, PhotoData


def faults(config: Config) -> Iterator[str]:
    """For each rule that ``config`` breaks, one line with the key and what is allowed."""
    return (fault for rule in _RULES if (fault := rule(config)))


def _shards(config: Config) -> int | None:
    """None in a real federation, where the sites that take part are the shards."""
    return getattr(config.partition, "num_shards", None)


def _orders(config: Config) -> str | None:
    shards = _shards(config)
    orders: list[tuple[str, Any]] = [("strategy.order", config.strategy.order)]
    orders += [("merge.orders", order) for order in config.merge.orders]
    for key, order in orders:
        if isinstance(order, list) and shards is not None and sorted(order) != [*range(shards)]:
            return f"{key}={order}: a list must name each client 0 .. {shards - 1} once"
    return None


def _attack_needs_clients(config: Config) -> str | None:
    if config.attack.name == "none":
        return None
    if _shards(config) is None or config.mode == "centralized":
        what = "a real federation" if _shards(config) is None else "mode=centralized"
        return f"attack={config.attack.name}: not in {what}; allowed is attack=none"
    return None


def _attackers_exist(config: Config) -> str | None:
    shards, attack = _shards(config), config.attack
    if attack.name == "none" or shards is None:
        return None
    chosen = attack.clients if isinstance(attack.clients, list) else range(attack.clients)
    if chosen and min(chosen) >= 0 and max(chosen) < shards:
        return None
    return (
        f"attack.clients={attack.clients}: allowed is a number of clients from 1 to {shards}, "
        f"or a list of some of 0 .. {shards - 1}"
    )


def _merge_is_one_round(config: Config) -> str | None:
    if config.mode == "merge" and config.rounds > 1:
        return f"rounds={config.rounds}: mode=merge merges once; allowed is 1"
    return None


def _merge_needs_all(config: Config) -> str | None:
    if config.mode == "merge" and config.strategy.fraction < 1:
        return (
            f"strategy.fraction={config.strategy.fraction:g}: mode=merge needs all clients; "
            "allowed is 1"
        )
    return None


def _start_is_first(config: Config) -> str | None:
    merge = config.mode == "merge"
    if config.strategy.start != "first" and (merge or config.choice == "strategy.beta=auto"):
        what = "mode=merge" if merge else "strategy.beta=auto"
        return f"strategy.start={config.strategy.start}: {what} knows only first"
    return None


def _choice_needs_photos(config: Config) -> str | None:
    if config.choice and config.held_out == 0:
        return (
            f"hold_out=0: {config.choice} chooses on held-out training images, never on the "
            f"test images; allowed is a number above 0, or null for {HELD_OUT:g}"
        )
    return None


def _sites_keep_photos(config: Config) -> str | None:
    if _shards(config) is None and (config.held_out or config.mode == "merge"):
        what = config.choice or ("mode=merge" if config.mode == "merge" else "hold_out")
        return (
            f"{what}: not in a real federation, where the server has no training images; "
            "allowed are a number for strategy.beta and hold_out=0"
        )
    return None


def _krum_needs_clients(config: Config) -> str | None:
    shards, strategy = _shards(config), config.strategy
    if "krum" not in strategy.rules or shards is None:
        return None
    need = 2 * strategy.malicious + 3
    asked = max(1, math.floor(strategy.fraction * shards + 0.5))
    if asked >= need:
        return None
    return (
        f"strategy.rules: krum with strategy.malicious={strategy.malicious} needs "
        f"at least {need} clients in a round, there are {asked}"
    )


def _nesterov_needs_momentum(config: Config) -> str | None:
    if config.train.nesterov and config.train.momentum == 0:
        return "train.nesterov=true: needs train.momentum above 0"
    return None


def _limit_or_counts(config: Config) -> str | None:
    data = config.data
    if isinstance(data, PhotoData) and data.limit is not None and data.counts is not None:
        return (
            f"data.limit={data.limit}: only one of data.limit and data.counts can be set; "
            "data.counts=null takes the limit"
        )
    return None


_RULES: tuple[Callable[[Config], str | None], ...] = (
    _orders,
    _attack_needs_clients,
    _attackers_exist,
    _merge_is_one_round,
    _merge_needs_all,
    _start_is_first,
    _choice_needs_photos,
    _sites_keep_photos,
    _krum_needs_clients,
    _nesterov_needs_momentum,
    _limit_or_counts,
)
