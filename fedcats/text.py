"""Text from outside, made safe: for a line on a terminal or a page, and for a table's cell.

Names of files and classes are anybody's: they may hold escape codes, line ends, controls that
turn the direction of what follows, bytes that are no UTF-8, or a spreadsheet's formula.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_LINE = 2000
"""Characters of a message in one line; of a longer one the middle is left out."""

_NO_TEXT = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, line and paragraph ends
_JOINERS = "\u200c\u200d"  # of Persian words, of emoji: they hide nothing

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))
_QUOTED = re.compile('[,"\r\n]')
_FORMULA = re.compile("(^|;)('*\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n])")
_GUARDED = re.compile("(^|[;\t])'('*\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n])")


def size_text(size: float) -> str:
    """A number of bytes: "228 MB", "0.25 MB" as "250 kB", 999,999 bytes as "1 MB"."""
    unit, factor = next((one for one in _UNITS if float(f"{size / one[1]:.3g}") >= 1), _UNITS[-1])
    return f"{size / factor:.3g} {unit}"


def shown(text: str) -> str:
    """Text of one line in which nothing is a control; those are escaped, as ``\\x1b``.

    Shown text is shown as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        ascii(one)[1:-1] if unicodedata.category(one) in _NO_TEXT and one not in _JOINERS else one
        for one in text
    )


def lines_shown(text: str) -> str:
    """As `shown`, of text that may have several lines."""
    return "\n".join(map(shown, text.split("\n")))


def one_line(message: object) -> str:
    """A message as one line of bearable length, `shown`."""
    text = shown(" ".join(str(message).split()))
    if len(text) > MAX_LINE:
        text = f"{text[: MAX_LINE * 3 // 4]} … {text[-MAX_LINE // 4 :]}"
    return text


def cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula, for a cell of a CSV file.

    Where it could begin one, also behind a ``;``, a ``'`` comes before it;
    `from_cell` takes it away.
    """
    return _FORMULA.sub(r"\1'\2", text)


def from_cell(text: str) -> str:
    """The text that `cell` was given."""
    return _GUARDED.sub(r"\1\2", text)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table, in UTF-8 but for the bytes of names that are not; texts as `cell` has them."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in rows:
            file.write(",".join(map(_field, row)) + "\n")


def _field(value: object) -> str:
    text = cell(value) if isinstance(value, str) else "" if value is None else str(value)
    # Not the csv module: with this end of lines it leaves a carriage return unquoted.
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
