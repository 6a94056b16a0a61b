"""What fedcats itself wrote among the user's files: no part of their data.

It is known by what lies beside it, not by a folder's name: a class may be called ``outputs``.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

RUN = frozenset({".hydra", "shards.csv", "multirun.yaml"})
"""One of these is in the folder of each run and of each sweep."""

SHEETS = "who-has-what.svg"
"""Beside contact sheets, from ``fedcats-data show``."""

HOME = "FEDCATS_HOME"
"""Stands for a file in the folder that is in use as such."""

_IN_A_RUN = ("figures", "models", "predictions")
_SHEET = re.compile(r"shard-\d+\.png")
_DRAWN = {".png": ".svg", ".svg": ".png"}  # every figure is written as both


class _Files(Protocol):
    images: list[str]
    folders: set[str]
    rejected: dict[str, str]
    linked_folders: set[str]
    ignored: list[str]


def is_marker(name: str) -> bool:
    """Whether a file or folder of that name shows that fedcats wrote into the folder it is in."""
    return name in RUN or name == SHEETS


def leave_out_written(files: _Files, markers: Iterable[str]) -> None:
    """Drop figures and contact sheets, and the folders in which nothing but ours is.

    Parameters
    ----------
    files
        What was listed; changed in place.
    markers
        Paths of the markers (see `is_marker`), and ``<folder>/`` `HOME`.
    """
    found: dict[str, set[str]] = {kind: set() for kind in ("run", SHEETS, HOME)}
    for folder, name in map(_split, markers):
        found["run" if name in RUN else name].add(folder)
    if not any(found.values()):
        return
    sheets = found[SHEETS]
    inside = {_joined(run, part) for run in found["run"] for part in _IN_A_RUN}
    listed = set(files.images)
    files.images = [path for path in files.images if not _is_ours(path, inside, sheets, listed)]
    ours = set().union(inside, *found.values()) - {""}
    leading = {above for folder in ours for above in (folder, *_above(folder))}
    filled = {above for path in files.images for above in _above(path)}
    dropped = (leading & files.folders) - filled

    def stay(paths: Iterable[str]) -> list[str]:
        return [path for path in paths if dropped.isdisjoint((path, *_above(path)))]

    files.folders = set(stay(files.folders))
    files.linked_folders = set(stay(files.linked_folders))
    files.ignored = stay(files.ignored)
    files.rejected = {path: files.rejected[path] for path in stay(files.rejected)}


def _is_ours(path: str, figures: set[str], sheets: set[str], listed: set[str]) -> bool:
    folder, name = _split(path)
    if folder in sheets and _SHEET.fullmatch(name):
        return True
    stem, ending = path[:-4], path[-4:]
    return folder in figures | sheets and stem + _DRAWN.get(ending, "?") in listed


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _above(path: str) -> Iterator[str]:
    """Every folder that a path is in, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
