"""Tables of the Hugging Face hub as a source."""

import logging
import re
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcats.data.decoding import BadImage
from fedcats.data.files import MAX_FILES, FolderFiles
from fedcats.data.layouts import class_names
from fedcats.data.sources import Source, arrange
from fedcats.errors import UserError, first_line

Counts = Mapping[str, Sequence[int]]


def hub_source(
    repo: str,
    image: str,
    label: str,
    train_split: str,
    test_split: str | None,
    test_fraction: float,
    seed: int,
    limit: int | None = None,
    counts: Counts | None = None,
    revision: str | None = None,
) -> Source:
    """Return a data set of the Hugging Face hub, or a folder in the hub's layout.

    The library `datasets` downloads it (with progress, and resumed) and runs no code from it.

    Parameters
    ----------
    repo
        Such as ``microsoft/cats_vs_dogs``, or a folder.
    image, label
        Names of the two columns.
    train_split, test_split
        Names of the parts; without a test part the training part is divided.
    test_fraction, seed, limit, counts
        As in `folder_source`.
    revision
        A commit, tag or branch of the hub's; None takes the newest. Which commit it was stands in
        the source's note.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        When it cannot be loaded, or has no such column.
    """
    if not repo.strip():
        raise UserError("data.repo=: is empty; allowed is a data set of the hub, or a folder")
    local = Path(repo).expanduser()
    if local.is_dir() and revision:
        raise UserError(f"data.revision={revision}: not of a folder; allowed is null")
    tables = _Tables(str(local.resolve()) if local.is_dir() else repo, image, revision)
    parts = [_hub_part(tables, split, label) for split in (train_split, test_split) if split]
    classes = parts[0].classes
    if any(part.classes != classes for part in parts):
        raise UserError(f"data.repo={repo}: {train_split} and {test_split} have other classes")
    if len(classes) < 2:
        raise UserError(f"data.repo={repo}: fewer than two classes in the column {label!r}")
    return arrange(
        Source(
            name="hub",
            note=local.resolve().name if local.is_dir() else tables.commit() or repo,
            classes=classes,
            train=(),
            test=(),
            read=tables.read,
            rejected=tuple(entry for part in parts for entry in part.rejected),
        ),
        parts[0].by_class,
        parts[1].by_class if test_split else None,
        seed=seed,
        test_fraction=test_fraction,
        limit=limit,
        counts=counts,
    )


class _Tables:
    """The splits of a hub data set; reads an image from a path such as ``train/000012``."""

    def __init__(self, repo: str, image: str, revision: str | None) -> None:
        self.repo = repo
        self.image = image
        self.revision = revision
        self.splits: dict[str, Any] = {}
        self._lock = threading.Lock()  # nobody promises that the tables can be read by several

    def load(self, split: str) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError("data=hub needs the package datasets: pip install datasets") from None
        quiet = logging.getLogger("huggingface_hub")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # no line for each of its attempts
        try:
            table = datasets.load_dataset(self.repo, split=split, revision=self.revision)
            if self.image not in table.column_names:
                raise UserError(
                    f"data.image={self.image}: {self.repo} has the columns "
                    f"{', '.join(table.column_names)}"
                )
            if len(table) > MAX_FILES:  # a table of a few kilobytes may say that it has any number
                raise UserError(
                    f"data.repo={self.repo}: the split {split!r} has {len(table):,} rows; allowed "
                    f"are {MAX_FILES:,}"
                )
            self.splits[split] = table.cast_column(self.image, datasets.Image(decode=False))
            self._refuse_strangers(split)
        except UserError:
            raise
        except Exception as error:  # of many kinds, from three libraries
            reason = first_line(error)
            raise UserError(
                f"data.repo={self.repo}: the split {split!r} cannot be loaded ({reason}); copy "
                "the data set to a folder and name that: data.repo=FOLDER"
            ) from None
        finally:
            quiet.setLevel(level)
        return self.splits[split]

    def commit(self) -> str:
        """The repository with the commit that was loaded, ``owner/name@..``; empty if unknown."""
        address = re.compile(rf"hf://datasets/({re.escape(self.repo)}@[0-9a-f]{{40}})/")
        for table in self.splits.values():
            for found in map(address.match, table.info.download_checksums or ()):
                if found:
                    return found[1]
        return ""

    def _refuse_strangers(self, split: str) -> None:
        """Of a folder's files take none that `FolderFiles` would not, such as our own figures."""
        folder = Path(self.repo)
        if not folder.is_dir():
            return
        listed = set(FolderFiles(folder).images)
        chunks = self.splits[split].data[self.image].chunks
        paths = (path for chunk in chunks for path in chunk.field("path").to_pylist())
        for path in filter(None, paths):
            if Path(path).is_relative_to(folder) and (
                (name := Path(path).relative_to(folder).as_posix()) not in listed
            ):
                raise UserError(
                    f"data.repo={self.repo}: {name} is no photo of a data set, but would be taken "
                    f"for one; use data=folder data.root={self.repo}, or move it elsewhere"
                )

    def read(self, path: str) -> bytes:
        split, _, row = path.partition("/")
        with self._lock:
            value = self.splits[split][int(row)][self.image]
        if not value or (value["bytes"] is None and value["path"] is None):
            raise BadImage("no image in the table")
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class _HubPart:
    classes: tuple[str, ...]
    by_class: list[list[str]]
    rejected: list[tuple[str, str]]


def _hub_part(tables: _Tables, split: str, label: str) -> _HubPart:
    table = tables.load(split)
    if label not in table.column_names:
        raise UserError(
            f"data.label={label}: {tables.repo} has the columns {', '.join(table.column_names)}"
        )
    values = table[label][:]
    names = getattr(table.features[label], "names", None)
    if names is None:
        classes = tuple(sorted({str(value) for value in values if value is not None}))
        number: Mapping[Any, int] = {name: i for i, name in enumerate(classes)}
        values = [None if value is None else str(value) for value in values]
    else:
        classes = tuple(names)
        number = {i: i for i in range(len(names))}
    by_class: dict[int, list[str]] = defaultdict(list)
    rejected = []
    for row, value in enumerate(values):
        path = f"{split}/{row:06d}"
        if value in number:
            by_class[number[value]].append(path)
        else:
            rejected.append((path, "no label"))
    return _HubPart(
        class_names(classes, "data.label"), [by_class[i] for i in range(len(classes))], rejected
    )
