"""The checked configuration: each group against its schema, then what groups ask of each other."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fedcats.config import paths
from fedcats.config.schema import GROUPS, HELD_OUT, Config, PhotoData
from fedcats.errors import UserError


def load(raw: DictConfig) -> Config:
    """The checked configuration.

    Raises
    ------
    UserError
        Naming the key, its value and what is allowed.
    """
    try:
        return _load(raw)
    except OmegaConfBaseException as error:  # such as ${..} without that key
        raise UserError(_one_line(error, "")) from error


def _load(raw: DictConfig) -> Config:
    values: dict[str, Any] = {}
    known = {item.name for item in fields(Config)}
    for key in map(str, raw):
        if key not in known:
            raise UserError(f"{key}: no such key; see fedcats --cfg job for all keys")
    if lacking := sorted(known - {*map(str, raw)}):  # with a --config-name of the user's own
        raise UserError(f"{lacking[0]}: not in the configuration")
    for item in fields(Config):
        node = raw[item.name]
        if item.name in GROUPS:
            options = GROUPS[item.name]
            schema = options.get(str(node.get("name")))
            if schema is None:
                raise UserError(
                    f"{item.name}.name={node.get('name')}: allowed are {', '.join(options)}"
                )
            values[item.name] = _load_group(schema, node, item.name)
        elif isinstance(item.type, type) and hasattr(item.type, "__dataclass_fields__"):
            values[item.name] = _load_group(item.type, node, item.name)
        else:
            values[item.name] = OmegaConf.to_object(node) if item.name == "paper" else node
    if isinstance(values["save_models"], bool):  # as it was before there was more to say
        values["save_models"] = "all" if values["save_models"] else "none"
    config = Config(**values)
    _check(config, "")
    shards = getattr(config.partition, "num_shards", None)
    orders = [("strategy.order", config.strategy.order)]
    orders += [("merge.orders", order) for order in config.merge.orders]
    for key, order in orders:
        if isinstance(order, list) and shards is not None and sorted(order) != [*range(shards)]:
            raise UserError(f"{key}={order}: a list must name each client 0 .. {shards - 1} once")
    if config.attack.name != "none":
        _check_attack(config, shards)
    if config.mode == "merge" and config.rounds > 1:
        raise UserError(f"rounds={config.rounds}: mode=merge merges once; allowed is 1")
    if config.mode == "merge" and config.strategy.fraction < 1:
        raise UserError(
            f"strategy.fraction={config.strategy.fraction:g}: mode=merge needs all clients; "
            "allowed is 1"
        )
    if config.strategy.start != "first" and (
        config.mode == "merge" or config.choice == "strategy.beta=auto"
    ):
        what = "mode=merge" if config.mode == "merge" else "strategy.beta=auto"
        raise UserError(f"strategy.start={config.strategy.start}: {what} knows only first")
    if config.choice and config.held_out == 0:
        raise UserError(
            f"hold_out=0: {config.choice} chooses on held-out training images, never on the "
            f"test images; allowed is a number above 0, or null for {HELD_OUT:g}"
        )
    if shards is None and (config.held_out or config.mode == "merge"):
        what = config.choice or ("mode=merge" if config.mode == "merge" else "hold_out")
        raise UserError(
            f"{what}: not in a real federation, where the server has no training images; "
            "allowed are a number for strategy.beta and hold_out=0"
        )
    if "krum" in config.strategy.rules and shards is not None:
        need = 2 * config.strategy.malicious + 3
        asked = max(1, math.floor(config.strategy.fraction * shards + 0.5))
        if asked < need:
            raise UserError(
                f"strategy.rules: krum with strategy.malicious={config.strategy.malicious} needs "
                f"at least {need} clients in a round, there are {asked}"
            )
    if config.train.nesterov and config.train.momentum == 0:
        raise UserError("train.nesterov=true: needs train.momentum above 0")
    data = config.data
    if isinstance(data, PhotoData) and data.limit is not None and data.counts is not None:
        raise UserError(
            f"data.limit={data.limit}: only one of data.limit and data.counts can be set; "
            "data.counts=null takes the limit"
        )
    return config


def _check_attack(config: Config, shards: int | None) -> None:
    attack = config.attack
    if shards is None or config.mode == "centralized":
        what = "a real federation" if shards is None else "mode=centralized"
        raise UserError(f"attack={attack.name}: not in {what}; allowed is attack=none")
    chosen = attack.clients if isinstance(attack.clients, list) else range(attack.clients)
    if not chosen or min(chosen) < 0 or max(chosen) >= shards:
        raise UserError(
            f"attack.clients={attack.clients}: allowed is a number of clients from 1 to {shards}, "
            f"or a list of some of 0 .. {shards - 1}"
        )


def _load_group(schema: type, node: DictConfig, where: str) -> Any:
    try:
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        if isinstance(plain, dict):
            for name, value in plain.items():
                key = where + "." + str(name)
                if key in paths.KEYS and isinstance(value, str):
                    plain[name] = paths.literal(paths.needed(key, value))  # resolved by now
        typed = OmegaConf.merge(OmegaConf.structured(schema), plain)
        result = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, where)) from error
    _check(result, f"{where}.")
    return result


def _check(config: Any, prefix: str) -> None:
    for item in fields(config):
        value = getattr(config, item.name)
        if prefix and is_dataclass(value):
            _check(value, f"{prefix}{item.name}.")
        if "test" in item.metadata:
            try:
                good = bool(item.metadata["test"](value))
                good &= item.type is not int or type(value) is int
            except (TypeError, OSError):  # such as a file's name that is too long
                good = False
            if not good:
                raise UserError(
                    f"{prefix}{item.name}={value}: allowed is {item.metadata['allowed']}"
                )


def _one_line(error: Exception, where: str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    text = lines[0] if lines else type(error).__name__
    key = f"{key}" if f"{key}".startswith(f"{where}.") or not where else f"{where}.{key}"
    if getattr(error, "full_key", None) is None and not where:
        return text
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: a value is needed, {key}=..."
    return f"{key}: {text}"
