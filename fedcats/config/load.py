"""The checked configuration: each group against its schema, then what groups ask of each other."""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fedcats.config import paths
from fedcats.config.cross_checks import faults
from fedcats.config.schema import GROUPS, Config
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
    for fault in faults(config):
        raise UserError(fault)
    return config


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
