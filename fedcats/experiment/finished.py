"""Finished runs: their results, and which of them lie below a folder. Nothing heavy is imported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcats.errors import UserError

if TYPE_CHECKING:
    from fedcats.results import Results

_NEEDED = {"schema", "config", "models", "data"}


def read_results(folder: Path) -> Results:
    """Read ``results.json`` of a run folder, also of one that an earlier version wrote.

    Raises
    ------
    UserError
        When the folder has none, or one of something else.
    """
    path = folder / "results.json"
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not a run folder, it has no results.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or not found.keys() >= _NEEDED:
        raise UserError(f"{path}: not of fedcats")
    results: Results = found  # type: ignore[assignment]
    return results


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the folders below ``root`` that hold a ``results.json``, in order of their names.

    Folders of one of several seeds are part of their run.
    """
    found = {path.parent for path in root.rglob("results.json")}
    return (one for one in sorted(found) if one.parent not in found)
