"""The checked configuration: each group against its schema, then what groups ask of each other."""

import itertools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fedcats import plugins
from fedcats.config import paths
from fedcats.config.compose import conf_dir
from fedcats.config.cross_checks import faults
from fedcats.config.hints import hint
from fedcats.config.schema import GROUPS, Config, StrategyConfig, is_own_rule
from fedcats.data.catalogue import OwnData
from fedcats.data.partition import OwnPartition
from fedcats.errors import UserError
from fedcats.merging.own import own_rule
from fedcats.merging.registry import RULES
from fedcats.merging.rules import Rule

_OWN: dict[str, tuple[str, Any]] = {
    "data": ("sources", OwnData),
    "partition": ("partitions", OwnPartition),
}


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
    known = {item.name for item in fields(Config)} - {"available", "replicate"}
    for key in map(str, raw):
        if key not in known:
            meant = hint(key, conf_dir()) or "see fedcats --cfg job for all keys"
            raise UserError(f"{key}: no such key; {meant}")
    if lacking := sorted(known - {*map(str, raw)}):  # with a --config-name of the user's own
        raise UserError(f"{lacking[0]}: not in the configuration")
    for item in fields(Config):
        if item.name not in known:
            continue
        node = raw[item.name]
        if item.name in GROUPS:
            values[item.name] = _load_option(item.name, node)
        elif item.name == "strategy":
            loaded = _load_strategy(_plain(node, "strategy"), _plain(raw["merge"], "merge"))
            values["strategy"], values["available"] = loaded
        elif isinstance(item.type, type) and hasattr(item.type, "__dataclass_fields__"):
            values[item.name] = _load_group(item.type, _plain(node, item.name), item.name)
        else:
            values[item.name] = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
    if isinstance(values["save_models"], bool):  # as it was before there was more to say
        values["save_models"] = "all" if values["save_models"] else "none"
    config = Config(**values)
    for fault in faults(config):
        raise UserError(fault)
    return config


def _plain(node: Any, where: str) -> dict[str, Any]:
    """A group as plain values, paths as the shell gives them."""
    if not isinstance(node, DictConfig):
        raise UserError(f"{where}={node}: allowed is a group, see fedcats --help")
    try:
        plain: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, where)) from error
    for name, value in plain.items():
        key = f"{where}.{name}"
        if key in paths.KEYS and isinstance(value, str):
            plain[name] = paths.needed(key, value)
    return {str(name): value for name, value in plain.items()}


def _load_option(group: str, node: Any) -> Any:
    """A group that has a schema for each ``name``, or something of the user's own."""
    plain, options = _plain(node, group), GROUPS[group]
    name = str(plain.get("name"))
    if name in options:
        if "name" not in {item.name for item in fields(options[name])}:
            del plain["name"]
        return _load_group(options[name], plain, group)
    kind, own = _OWN.get(group, ("", None))
    if own is None or not plugins.is_own(kind, name):
        more = ", module:name" if own else ""
        raise UserError(f"{group}.name={name}: allowed are {', '.join(options)}{more}")
    del plain["name"]
    thing = plugins.find(kind, f"{group}.name", name)
    ours = {item.name for item in fields(own)} & {*plain} - {"parameters", "thing"}
    given = {key: plain.pop(key) for key in ours}
    parameters = plugins.without_unknown_nulls(thing, plain)
    return own(name=name, thing=thing, parameters=parameters, **given)


def _load_strategy(
    plain: dict[str, Any], merge: Mapping[str, Any]
) -> tuple[StrategyConfig, dict[str, Rule]]:
    """The group, and the rules of the package and of the user's own with their parameters."""
    available: dict[str, Rule] = {}
    for name, schema in RULES.items():
        names = {item.name for item in fields(schema)} & {*plain}  # type: ignore[arg-type]
        nested = schema.where != StrategyConfig.where
        given = plain.pop(name, {}) if nested else {key: plain.pop(key) for key in names}
        available[name] = _load_group(schema, given, schema.where.rstrip("."))
    lists = [one for one in (plain.get("rules"), merge.get("rules")) if isinstance(one, list)]
    taken: dict[str, Any] = {}
    for name in dict.fromkeys(one for one in itertools.chain(*lists) if isinstance(one, str)):
        if is_own_rule(name):
            short = plugins.short_name(name)
            if isinstance(plain.get(short), dict):
                taken[short] = plain[short]
            thing = plugins.find("rules", "strategy.rules", name)
            available[name] = own_rule(name, thing, taken.get(short, {}))
    rest = {key: value for key, value in plain.items() if key not in taken}
    return _load_group(StrategyConfig, rest, "strategy"), available


def _load_group(schema: type, plain: Any, where: str) -> Any:
    """An object of the schema; UserError for keys, types and values that it does not allow."""
    if not isinstance(plain, dict):
        raise UserError(f"{where}={plain}: allowed is a group of keys")
    kept = {
        key: paths.literal(value)
        if f"{where}.{key}" in paths.KEYS and isinstance(value, str)
        else value
        for key, value in plain.items()
    }
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), kept))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, where)) from error


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
