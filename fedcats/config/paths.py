"""Paths as the shell gives them: ``~``, and every character that Hydra's grammar gives a meaning.

``data.root=DIR`` takes each path that exists as it is. What Hydra can read otherwise stays Hydra's:
quotes, ``${oc.env:HOME}``, a sweep over ``a,b``.
"""

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Sweep
from hydra.errors import HydraException

from fedcats.errors import UserError

KEYS = ("data.root", "data.repo", "model.weights", "hydra.run.dir", "hydra.sweep.dir")

_OVERRIDE = re.compile(rf"(\+{{0,2}}({'|'.join(map(re.escape, KEYS))})=)(.*)", re.DOTALL)


def expand(path: str) -> str:
    """The path with ``~`` as the user's home folder."""
    return os.path.expanduser(path)  # noqa: PTH111  (pathlib's raises where there is none)


def needed(key: str, value: object) -> str:
    """The path of a key; UserError when it is empty, which would mean the current folder."""
    if not str(value):
        raise UserError(f"{key}: a value is needed, {key}=...")
    return expand(str(value))


def literal(text: str) -> str:
    """The path as OmegaConf takes it for itself: nothing of it is resolved."""
    if text == "???":  # its sign for a value that is missing
        return "./???"
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quote(text: str) -> str:
    """The text as a quoted string of Hydra's: quotes escaped, and the backslashes before them."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + (m[2] and "\\'"), text) + "'"


def read(override: str) -> str:
    """An override in which a path is written so that Hydra takes it as it is; others unchanged.

    Raises
    ------
    UserError
        When the value of a path's key is empty.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return override
    start, key, raw = match.groups()
    value, understood = _parse(override)
    text = value.text if isinstance(value, QuotedString) else value
    if value is None and understood and key.startswith("hydra."):
        text = ""
    if isinstance(text, str):
        needed(key, text)
        if text == raw and "${" not in raw:
            return override
    if os.path.lexists(expand(raw)):
        return start + quote(literal(raw))
    parts = raw.split(",")
    if len(parts) > 1 and all(os.path.lexists(expand(part)) for part in parts):
        return start + ",".join(quote(literal(part)) for part in parts)
    sweep = isinstance(value, Sweep) and not key.startswith("hydra.")  # these cannot be swept
    if understood and (sweep or value is None or isinstance(text, str)):
        return override
    return start + quote(raw)


def _parse(override: str) -> tuple[Any, bool]:
    """What Hydra makes of it, and whether it makes anything of it."""
    try:
        return OverridesParser.create().parse_override(override)._value, True
    except HydraException:
        return None, False
