"""What a sweep varied, and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedcats.report import view

Row = Mapping[str, Any]


MEASURES = ("accuracy", "precision", "recall", "f1", "loss")


FIXED = ("job", "model", *MEASURES, "n", "validation")


REFERENCES = ("centralized", "best_submodel")


def _merged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["model"] not in REFERENCES]


def _parameters(rows: Sequence[Row]) -> list[str]:
    """Names of the parameters; one that only repeats the model (its rule) says nothing new."""
    names = dict.fromkeys(key for row in rows for key in row if key not in FIXED)
    return [
        name
        for name in names
        if any(row.get(name) not in (None, row["model"]) for row in _merged(rows) or rows)
    ]


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a parameter, sorted if they are numbers, else as they come."""
    values = list(dict.fromkeys(row[name] for row in rows if row.get(name) is not None))
    return sorted(values) if _is_numeric(rows, name) else values


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    found = [row[name] for row in rows if row.get(name) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)


def _varied(rows: Sequence[Row]) -> list[str]:
    return [name for name in _parameters(rows) if len(_values(rows, name)) > 1]


def _x(rows: Sequence[Row]) -> str | None:
    """The parameter along x: beta if it was varied, else the numeric one with the most values."""
    merged = _merged(rows)
    found = [n for n in _varied(merged) if n != "seed" and _is_numeric(merged, n)]
    return max(found, key=lambda n: (n.endswith("beta"), len(_values(merged, n))), default=None)


def _fits(reference: Row, row: Row, rows: Sequence[Row]) -> bool:
    """Whether the reference holds for the row: equal wherever both have a parameter."""
    return all(
        reference.get(name) is None or row.get(name) is None or reference[name] == row[name]
        for name in _varied(rows)
    )


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1].replace("_", " ")


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _title(value: Any) -> str:
    return view.TITLES.get(str(value), _text(value))


def _name(row: Row, rows: Sequence[Row]) -> str:
    """Call a model by its kind and by what was varied: "Polyak (beta 0.3, num shards 5)"."""
    said = [f"{_short(n)} {_text(row[n])}" for n in _varied(rows) if row.get(n) is not None]
    kind = _title(row["model"])
    return f"{kind} ({', '.join(said)})" if said else kind
