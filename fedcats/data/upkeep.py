"""What the cache of decoded images holds, and how it is kept small.

A data set that a process has open is locked for as long.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedcats.errors import RunError
from fedcats.locks import locked_now, try_lock

UNREADABLE = "not readable now, or another user's"

_PART = ".part"


@dataclass(frozen=True)
class Decoded:
    """One decoded data set: size in bytes, last use in seconds since the epoch.

    Attributes
    ----------
    images
        How many it has.
    what
        The source and the classes; or "damaged", or `UNREADABLE`.
    """

    path: Path
    size: int
    used: float
    images: int
    what: str


def lock_of(folder: Path) -> Path:
    """File that is locked by who makes or removes a data set."""
    return folder.with_name(f"{folder.name}.lock")


def part_of(folder: Path) -> Path:
    """Where a data set is while it is made or removed."""
    return folder.with_name(folder.name + _PART)


def note_use(folder: Path) -> None:
    """Remember when it was last used, where that may be written."""
    with contextlib.suppress(OSError):
        os.utime(folder / "index.json")


def decoded(cache_root: Path) -> list[Decoded]:
    """Every data set, the one used longest ago first."""
    found = []
    for folder in cache_root.glob("*"):
        with contextlib.suppress(OSError):  # it is being removed
            if folder.is_dir() and folder.suffix != _PART:
                found.append(_looked_at(folder))
    return sorted(found, key=lambda one: (one.used, one.path))


def _looked_at(folder: Path) -> Decoded:
    size = sum(file.stat().st_size for file in folder.iterdir())
    try:
        index = json.loads((folder / "index.json").read_text())["index"]
        images = sum(len(index[split]["files"]) for split in ("train", "test"))
        what = f"{index['name']}: {', '.join(index['classes'])}"
        used = (folder / "index.json").stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError) as error:
        refused = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        what = UNREADABLE if refused else "damaged"
        images, used = 0, folder.stat().st_mtime
    return Decoded(folder, size, used, images, what)


def remove_leftovers(cache_root: Path) -> None:
    """Remove what killed processes were making or removing, where that may be done."""
    for left in (*cache_root.glob(f"*{_PART}"), *cache_root.glob("*.lock")):
        folder = left.with_suffix("")
        with (
            contextlib.suppress(OSError, RunError),
            locked_now(lock_of(folder), keep=False) as mine,
        ):
            if mine:
                shutil.rmtree(part_of(folder), ignore_errors=True)


def drop_unused(cache_root: Path, max_bytes: int = 0) -> list[Decoded]:
    """Drop the data sets used longest ago until all fit into `max_bytes`; return those dropped.

    None that a living process has open, nor any that this user may not remove.
    """
    found = decoded(cache_root)
    excess = sum(one.size for one in found) - max_bytes
    dropped = []
    for one in found:
        if excess > 0 and drop(one.path):
            excess -= one.size
            dropped.append(one)
    return dropped


def drop(folder: Path) -> bool:
    """Remove a data set unless it is in use or another user's; whether it is gone."""
    try:
        with locked_now(lock_of(folder), keep=False) as mine:
            if not mine or not os.access(folder, os.W_OK | os.X_OK):
                return False
            with contextlib.suppress(FileNotFoundError):  # a damaged one
                descriptor = os.open(folder / "index.json", os.O_RDONLY)
                try:
                    if not try_lock(descriptor):
                        return False
                    folder.rename(part_of(folder))
                finally:
                    os.close(descriptor)
            if folder.exists():
                folder.rename(part_of(folder))
            shutil.rmtree(part_of(folder), ignore_errors=True)
            return True
    except (OSError, RunError):
        return False
