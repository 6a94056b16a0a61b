"""What a sweep varied, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from fedcats.report import view
from fedcats.report.view import MEASURES
from fedcats.results.names import IN_ONE_PLACE

Row = Mapping[str, Any]


ATTACKED = tuple(f"{of}{end}" for of in ("auc", "updates_auc") for end in ("", "_low", "_high"))

FIXED = (
    "job",
    "model",
    *MEASURES,
    "n",
    "validation",
    "validation_loss",
    *ATTACKED,
    "bytes",
    "title",
    "chosen",
)

EPSILON = "privacy.epsilon"  # may be infinite, and has a figure of its own


SEEDS = ("seed", "seeds")  # replicates, no settings: nothing is chosen among them

REFERENCES = (*IN_ONE_PLACE, "best_submodel")


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration, and their values."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def merged_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of merged models."""
    return [row for row in rows if row["model"] not in REFERENCES]


def varied_parameters(rows: Sequence[Row]) -> list[str]:
    """Names of the parameters; one that only repeats the model (its rule) says nothing new."""
    names = dict.fromkeys(key for row in rows for key in row if key not in FIXED)
    return [
        name
        for name in names
        if any(row.get(name) not in (None, row["model"]) for row in merged_rows(rows) or rows)
    ]


def distinct_values(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a parameter, sorted if they are numbers, else as they come."""
    values = list(dict.fromkeys(row[name] for row in rows if row.get(name) is not None))
    return sorted(values) if is_numeric(rows, name) else values


def is_numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether all values of a column are numbers."""
    found = [row[name] for row in rows if row.get(name) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)


def varied_names(rows: Sequence[Row]) -> list[str]:
    """Names of the parameters that have more than one value."""
    return [name for name in varied_parameters(rows) if len(distinct_values(rows, name)) > 1]


def means_over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for what differs in the seed only, with the means of its scores."""
    scores = (*MEASURES, "validation", "validation_loss", *ATTACKED, "bytes")
    said = ("title", "chosen")
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        setting = {key: value for key, value in row.items() if key not in (*SEEDS, *scores, *said)}
        alike.setdefault(tuple(setting.items()), []).append(row)
    return [
        dict(setting)
        | {key: fmean(row[key] for row in found) for key in scores if key in found[0]}
        | {key: found[0][key] for key in said if key in found[0]}
        for setting, found in alike.items()
    ]


def x_axis(rows: Sequence[Row]) -> str | None:
    """The parameter along x: beta if it was varied, else the numeric one with the most values."""
    merged = merged_rows(rows)
    found = [n for n in varied_names(merged) if n not in SEEDS and is_numeric(merged, n)]
    return max(
        found, key=lambda n: (n.endswith("beta"), len(distinct_values(merged, n))), default=None
    )


def fits(reference: Row, row: Row, rows: Sequence[Row]) -> bool:
    """Whether the reference holds for the row: equal wherever both have a parameter."""
    return all(
        reference.get(name) is None or row.get(name) is None or reference[name] == row[name]
        for name in varied_names(rows)
    )


def short(name: str) -> str:
    """A key without its group."""
    return name.rsplit(".", 1)[-1].replace("_", " ")


def value_text(value: Any) -> str:
    """A value as it stands in a table."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def title(value: Any) -> str:
    """A rule's title, or the value as it is."""
    return view.TITLES.get(str(value), value_text(value))


def model_name(row: Row, rows: Sequence[Row]) -> str:
    """Call a model by its kind and by what was varied: "Polyak (beta 0.3, num shards 5)"."""
    said = [
        f"{short(n)} {value_text(row[n])}" for n in varied_names(rows) if row.get(n) is not None
    ]
    kind = title(row["model"])
    return f"{kind} ({', '.join(said)})" if said else kind
