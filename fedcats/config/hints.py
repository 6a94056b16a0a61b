"""What somebody may have meant by a key or an option that there is not."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_CLOSE = 0.7
_MANY = 4  # options; of more some are named


def hint(key: str, conf: Path) -> str:
    """What to say behind "no such key"; empty where nothing is close.

    Parameters
    ----------
    key
        As it was given, without ``+`` or ``~``.
    conf
        The folder of the configuration.
    """
    known = _keys(conf)
    if key in known:
        group, options = key.partition(".")[0], known[key]
        some = f"{', '.join(options[:_MANY])}{', ..' if options[_MANY:] else ''}"
        return f"only with {group}={some}" if options else ""
    name = key.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == name]
    same.sort(key=lambda one: one.count("."))
    near = same or difflib.get_close_matches(key, known, 3, _CLOSE)
    near = near or [
        one
        for one in known
        if difflib.get_close_matches(name, [one.rpartition(".")[2]], 1, _CLOSE + 0.1)
    ]
    return f"did you mean {' or '.join(near[:3])}?" if near else ""


def option_hint(group: str, option: str) -> str:
    """What to say behind the options of a group; a model is no option but a name."""
    return f"; any torchvision classifier by model.name={option}" if group == "model" else ""


def _keys(conf: Path) -> dict[str, list[str]]:
    """Every key, with those options of its group that have it; none where all have it."""
    found: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for path in sorted(conf.glob("*/*.yaml")):
        group = path.parent.name
        if "@package" in path.read_text(encoding="utf-8").partition("\n")[0] or group == "paper":
            continue
        counts[group] = counts.get(group, 0) + 1
        for key in _flat(OmegaConf.to_container(OmegaConf.load(path)), f"{group}."):
            found.setdefault(key, []).append(path.stem)
    found = {
        key: [] if len(options) == counts[key.partition(".")[0]] else options
        for key, options in found.items()
    }
    top = OmegaConf.to_container(OmegaConf.load(conf / "config.yaml"))
    return found | {
        key: [] for key in _flat(top) if key.partition(".")[0] not in ("defaults", "hydra")
    }


def _flat(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if key != "defaults":
            yield f"{prefix}{key}"
        yield from _flat(value, f"{prefix}{key}.")
