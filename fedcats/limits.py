"""What a value may be, said once, where it is declared: in Hydra's schema, and in Python."""

import math
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, ClassVar

from fedcats.errors import UserError

FLOAT32 = 3.4e38  # larger factors do not fit the weights' type
FORMATS = ("png", "svg", "pdf")
"""Of the files of figures."""
WIDTHS = (5, 100)
"""How wide such a file may be, inches."""


class Limited:
    """A dataclass that refuses values beyond its fields' limits with a `UserError`.

    Attributes
    ----------
    where
        Its key in the configuration with a dot behind it; empty at the top.
    """

    where: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            if "test" not in item.metadata:
                continue
            value = getattr(self, item.name)
            try:
                good = bool(item.metadata["test"](value))
                good &= item.type not in (int, "int") or type(value) is int
            except (TypeError, OSError):  # such as a file's name that is too long
                good = False
            if not good:
                allowed = item.metadata["allowed"]
                raise UserError(f"{self.where}{item.name}={value}: allowed is {allowed}")


def checked(allowed: str, test: Callable[[Any], bool], **options: Any) -> Any:
    """A field with a test, and what is allowed in words; options as in `dataclasses.field`."""
    return field(metadata={"allowed": allowed, "test": test}, **options)


def number(low: float, high: float = math.inf, *, above: bool = False, **options: Any) -> Any:
    """A finite number from ``low`` (or above it) to ``high``."""
    text = f"a number {'above' if above else 'from'} {low:g}"
    text += f" to {high:g}" if high < math.inf else ""
    return checked(
        text,
        lambda v: math.isfinite(v) and (v > low if above else v >= low) and v <= high,
        **options,
    )


def share() -> Any:
    """A number between 0 and 1, without both."""
    return checked("a number between 0 and 1", lambda v: 0 < v < 1)


def share_below_one() -> Any:
    """A number from 0 to below 1."""
    return checked("a number from 0 to below 1", lambda v: 0 <= v < 1)


def one_of(*values: str, **options: Any) -> Any:
    """One of some words."""
    return checked(" | ".join(values), lambda v: v in values, **options)


def switch(**options: Any) -> Any:
    """True or false."""
    return checked("true | false", lambda v: isinstance(v, bool), **options)


def optional(limited: Any, **options: Any) -> Any:
    """None too."""
    test = limited.metadata["test"]
    return checked(
        f"null or {limited.metadata['allowed']}", lambda v: v is None or test(v), **options
    )


def is_share(value: Any) -> bool:
    """Whether it is a number from 0 to 1."""
    return type(value) in (int, float) and 0 <= value <= 1
