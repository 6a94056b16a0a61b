"""What a Python program asks for, as the configuration that the command line would compose.

A configuration is a plain dict here, as ``results.json`` records it; names of the user's own
functions are registered with `fedcats.plugins`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedcats import plugins
from fedcats.config import paths
from fedcats.config.compose import as_dict, compose_config, conf_dir
from fedcats.config.hints import hint
from fedcats.config.schema import MODELS
from fedcats.errors import UserError
from fedcats.merging.registry import RULES

Function = Callable[..., Any]
Settings = Mapping[str, Any]


def composed(
    parts: Sequence[tuple[str, str, str | Function, Settings]], given: Settings, *options: str
) -> dict[str, Any]:
    """Compose what was asked for.

    Parameters
    ----------
    parts
        For a group its name, the kind of what a user may bring (`fedcats.plugins.KINDS`), the
        option or the user's function, and its settings.
    given
        Values by dotted key; None is the default.
    options
        More options of groups, such as ``runner=local``.

    Raises
    ------
    UserError
        For unknown options and keys.
    """
    own = {group: not isinstance(what, str) for group, _, what, _ in parts}
    chosen = [f"{group}={'own' if own[group] else what}" for group, _, what, _ in parts]
    config = as_dict(compose_config([*options, *chosen]))
    for group, kind, what, settings in parts:
        if not isinstance(what, str):
            config[group]["name"] = name_of(kind, what)
        for key, value in settings.items():
            set_key(config, f"{group}.{key}", value, new=own[group])
    for key, value in given.items():
        if value is not None:
            set_key(config, key, value)
    return config


def set_key(config: dict[str, Any], key: str, value: Any, *, new: bool = False) -> None:
    """Set a value by its dotted key, which must be there unless it may be ``new``."""
    *groups, name = key.split(".")
    node: Any = config
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (name not in node and not new):
        meant = hint(key, conf_dir()) or "see docs/configuration.md for all keys"
        raise UserError(f"{key}: no such key; {meant}")
    node[name] = str(value) if isinstance(value, Path) else value


def set_rules(config: dict[str, Any], rules: Sequence[tuple[str | Function, Settings]]) -> None:
    """Merge by these rules, each a name or a user's function, class or object, with parameters."""
    names: list[str] = []
    strategy = config["strategy"]
    for old in strategy["rules"]:
        if old not in RULES:
            strategy.pop(plugins.short_name(old), None)
    for rule, parameters in rules:
        if isinstance(rule, str):
            name = rule
            where = RULES[name].where if name in RULES else f"strategy.{plugins.short_name(name)}."
        else:
            name = name_of("rules", rule)
            where = f"strategy.{plugins.short_name(name)}."
        if name not in RULES and (short := plugins.short_name(name)) in strategy:
            raise UserError(f"{short}: is a key of strategy; give the rule another name")
        if name not in RULES and parameters:
            strategy[plugins.short_name(name)] = {}
        for key, value in parameters.items():
            set_key(config, where + key, value, new=name not in RULES)
        names.append(name)
    if len({*names}) < len(names):
        raise UserError(f"{', '.join(names)}: each rule once; merge again for another parameter")
    strategy["rules"] = names


def name_of(kind: str, thing: Any) -> str:
    """What a configuration calls something of the user's: where it can be imported, by that."""
    module, own = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")
    if module != "__main__" and getattr(sys.modules.get(module), own, None) is thing:
        return f"{module}:{own}"
    name = own.rpartition(".")[2] or type(thing).__name__
    name = name if name.isidentifier() else "own"  # a lambda
    if name in MODELS:
        raise UserError(f"{name}: is a rule of fedcats; give the function another name")
    plugins.register(kind, name, thing)
    return name


def raw(config: Mapping[str, Any]) -> DictConfig:
    """As Hydra composes it: paths are taken as they are."""
    found = copy.deepcopy(dict(config))
    for key in paths.KEYS:
        group, _, name = key.partition(".")
        if isinstance(found.get(group), dict) and isinstance(found[group].get(name), str):
            found[group][name] = paths.literal(found[group][name])
    return OmegaConf.create(found)
