"""What the groups of a configuration ask of each other: one small rule each."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from fedcats.config.schema import HELD_OUT, Config
from fedcats.merging.rules import PARTS_OF_PHOTOS, in_a_round


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
    if config.mode in ("merge", "explain") and config.rounds > 1:
        return f"rounds={config.rounds}: mode={config.mode} merges once; allowed is 1"
    return None


def _merge_needs_all(config: Config) -> str | None:
    if config.mode == "merge" and config.strategy.fraction < 1:
        return (
            f"strategy.fraction={config.strategy.fraction:g}: mode=merge needs all clients; "
            "allowed is 1"
        )
    return None


def _first_is_whole(config: Config) -> str | None:
    """What ``mode=merge`` and ``strategy.beta=auto`` merge begins with the first model."""
    undecided = [rule for rule in config.rules.values() if rule.undecided and rule.is_fold]
    tried = config.grid if config.mode == "merge" else undecided if config.choice else []
    for rule in tried:
        if rule.choices(config.merge.betas)[0].step(1, 1, 1) != 1.0:
            what = "mode=merge" if config.mode == "merge" else rule.undecided_key
            key = "strategy.start=global" if rule.name == "polyak" else f"merge.rules: {rule.name}"
            return f"{key}: {what} knows only first, a first step of 1"
    return None


def _choice_needs_photos(config: Config) -> str | None:
    if config.choice and config.held_out == 0:
        return (
            f"hold_out=0: {config.choice} chooses on held-out training images, never on the "
            f"test images; allowed is a number above 0, or null for {HELD_OUT:g}"
        )
    return None


def _validation_needs_photos(config: Config) -> str | None:
    if not config.validate or config.held_out:
        return None
    if _shards(config) is None:
        return (
            "validate=true: not in a real federation, where nothing is held out of the sites' "
            "photos; allowed is false"
        )
    return (
        "validate=true: no photos are held out of training; allowed is a hold_out above 0, such "
        f"as hold_out={HELD_OUT:g}, or validate=false"
    )


def _sites_keep_photos(config: Config) -> str | None:
    stored = config.mode in ("merge", "explain")
    if _shards(config) is None and (config.held_out or stored):
        what = config.choice or (f"mode={config.mode}" if stored else "hold_out")
        return (
            f"{what}: not in a real federation, where the server has no training images; "
            "allowed are a number instead of auto, and hold_out=0"
        )
    return None


def _privacy_needs_photos(config: Config) -> str | None:
    if not config.privacy.measures:
        return None
    if _shards(config) is None:
        what = "a real federation, where the server has no training images"
    elif config.mode == "merge":
        what = "mode=merge"
    else:
        return None
    key = "privacy.measure=true" if config.privacy.dp else "privacy=measure"
    allowed = "privacy.measure=false" if config.privacy.dp else "privacy=none"
    return f"{key}: not in {what}; allowed is {allowed}"


def _dp_is_the_only_look(config: Config) -> str | None:
    """Whatever looks at the photos beside the training has no part in epsilon."""
    if config.privacy.dp is None:
        return None
    if _shards(config) is None:
        return (
            "privacy=dp: not in a real federation, where the server gives the seed that the noise "
            "is drawn from, and could take it away; allowed is privacy=none"
        )
    if config.choice and config.mode != "centralized":
        return (
            f"{config.choice}: chooses on held-out photos of the clients, which epsilon does not "
            "count; with privacy=dp allowed is a number instead of auto, or rules that choose "
            "nothing"
        )
    rules = config.merged_by if config.mode == "merge" else [*config.rules.values()]
    if config.mode == "centralized":
        rules = []
    for rule in rules:
        if looks := [one for one in rule.needs if one.partition(":")[0] in PARTS_OF_PHOTOS]:
            key = "merge.rules" if config.mode == "merge" else "strategy.rules"
            return (
                f"{key}: {rule.name} merges by what clients work out from their photos without "
                f"noise ({looks[0].partition(':')[0]}), which epsilon does not count; with "
                "privacy=dp allowed are rules that need the updates only, such as fedavg, polyak"
            )
    return None


def _dp_is_one_promise(config: Config) -> str | None:
    dp = config.privacy.dp
    if dp is None:
        return None
    if (dp.epsilon is None) == (dp.noise is None):
        return (
            f"privacy.epsilon={dp.epsilon}, privacy.noise={dp.noise}: one follows from the other; "
            "allowed is one of them, and null for the other"
        )
    if config.mode == "centralized" and not dp.centralized:
        return (
            "privacy.centralized=false: with mode=centralized nothing would be private; allowed "
            "is true"
        )
    if missing := [name for name in ("opacus", "dp_accounting") if find_spec(name) is None]:
        return (
            f"privacy=dp: {' and '.join(missing)} not installed; allowed is privacy=none, or "
            "pip install 'fedcats[privacy]'"
        )
    return None


def _secure_sum(config: Config) -> str | None:
    if not config.strategy.secure or config.mode == "centralized":
        return None
    rules = list(config.rules.values())
    shards = _shards(config)
    asked = 3 if shards is None else in_a_round(config.strategy.fraction, shards)
    if len(rules) > 1:
        why = "each further rule would be a further sum of the same updates; allowed is one rule"
    elif config.mode == "merge" or config.choice:
        why = f"{config.choice or 'mode=merge'} needs the single updates"
    elif config.strategy.max_norm is not None:
        why = "strategy.max_norm needs the single updates; allowed is null"
    else:
        from fedcats.merging.secure import refusal

        why = refusal(rules[0], asked)
    return f"strategy.secure=true: {why}" if why else None


def _rules_have_clients(config: Config) -> str | None:
    shards = _shards(config)
    if shards is None or config.mode == "centralized":
        return None
    asked = in_a_round(config.strategy.fraction, shards)
    merge = config.mode == "merge"
    refused = (one.refusal(asked) for one in (config.merged_by if merge else config.rules.values()))
    key = "merge.rules" if merge else "strategy.rules"
    return next((f"{key}: {why}" for why in refused if why), None)


def _head_is_last(config: Config) -> str | None:
    last = [name for name, rule in config.rules.items() if rule.is_last]
    if last and config.rounds > 1 and config.mode in ("compare", "federated"):
        return (
            f"rounds={config.rounds}: {last[0]} gives a head, from which no client trains on; "
            "allowed is 1"
        )
    return None


def _orders_have_a_beta(config: Config) -> str | None:
    rule = config.rules.get("polyak", config.available.get("polyak"))
    if config.mode != "explain" or config.explain.betas or not config.explain.orders:
        return None
    if rule is not None and rule.undecided and "polyak" not in config.rules:
        return (
            "explain.betas=null: strategy.beta=auto decides nothing without polyak among "
            "strategy.rules; allowed are numbers, or explain.orders=0"
        )
    return None


def _nesterov_needs_momentum(config: Config) -> str | None:
    if config.train.nesterov and config.train.momentum == 0:
        return "train.nesterov=true: needs train.momentum above 0"
    return None


def _seeds_compare(config: Config) -> str | None:
    if config.seeds is None:
        return f"vary={config.vary}: needs seeds" if config.vary != "all" else None
    if config.mode != "compare":
        return f"seeds={config.seeds}: mode={config.mode} compares nothing; allowed is mode=compare"
    if config.runner.name == "flwr":
        return f"seeds={config.seeds}: not with runner=flwr; allowed are ray, local"
    return None


_RULES: tuple[Callable[[Config], str | None], ...] = (
    _orders,
    _attack_needs_clients,
    _attackers_exist,
    _merge_is_one_round,
    _merge_needs_all,
    _head_is_last,
    _first_is_whole,
    _choice_needs_photos,
    _sites_keep_photos,
    _validation_needs_photos,
    _privacy_needs_photos,
    _dp_is_one_promise,
    _dp_is_the_only_look,
    _secure_sum,
    _rules_have_clients,
    _orders_have_a_beta,
    _nesterov_needs_momentum,
    _seeds_compare,
)
