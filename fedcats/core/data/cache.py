"""Every image decoded and resized once, into memory-mapped uint8 arrays that all processes share.

A dataset is a folder: ``train.npy`` and ``test.npy``, each (n, 3, size, size) uint8, and
``index.json`` with the classes, files, labels and the sha256 of each file. The folder's name is a
key of what it holds, so it is never out of date. It is built under another name and renamed when
complete: a process that dies leaves nothing that looks like a dataset. An open `Dataset` holds a
shared lock on ``index.json``; see `fedcats.core.data.upkeep` for how the cache is kept small.
"""

import fcntl
import hashlib
import json
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedcats.core.data import upkeep
from fedcats.core.data.audit import AuditReport
from fedcats.core.data.build import FORMAT, Build, in_order, sha256_of, transform_name, unreadable
from fedcats.core.data.decoding import BadImage
from fedcats.core.data.files import shown
from fedcats.core.data.sources import SPLITS, Item, Source
from fedcats.core.data.transforms import normalise
from fedcats.errors import RunError, UserError
from fedcats.locks import locked


@dataclass(frozen=True)
class Images:
    """Images of one split, read from the memory map when asked for.

    Attributes
    ----------
    path
        The ``.npy`` file, (rows, 3, size, size) uint8.
    rows
        (n,), int64: the row in that file of each image of this view.
    labels
        (n,), int64.
    files
        Names of the files, relative to the source's root.
    digests
        sha256 of each file, in hex.
    transform
        What was done to each file on its way into the array.
    """

    path: Path
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    files: tuple[str, ...]
    digests: tuple[str, ...]
    transform: str

    def __len__(self) -> int:
        """Count the images of this view."""
        return len(self.rows)

    def subset(self, indices: ArrayLike) -> "Images":
        """Return a view of the images at these positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Images(
            path=self.path,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            files=tuple(self.files[i] for i in chosen),
            digests=tuple(self.digests[i] for i in chosen),
            transform=self.transform,
        )

    def pixels(self, indices: ArrayLike | torch.Tensor) -> torch.Tensor:
        """Read images.

        Parameters
        ----------
        indices
            (b,), positions in this view.

        Returns
        -------
        torch.Tensor
            (b, 3, size, size), uint8, a copy.
        """
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        return torch.from_numpy(self._array[rows])

    def input(self, indices: ArrayLike | torch.Tensor, device: torch.device) -> torch.Tensor:
        """Images as models get them for a test: without augmentation.

        Parameters
        ----------
        indices
            (b,), positions in this view.

        Returns
        -------
        torch.Tensor
            (b, 3, size, size), float32, normalised, on the device; on a CPU in channels-last
            layout, in which convolutions are faster.
        """
        x = normalise(self.pixels(indices).to(device))
        return x.contiguous(memory_format=torch.channels_last) if device.type == "cpu" else x

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of everything that training sees: files, labels, order, transform."""
        return sha256_of([self.transform, self.digests, self.labels.tolist()])

    @cached_property
    def _array(self) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return array

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory map behind: pickled, it would be a copy of all pixels."""
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


@dataclass(frozen=True)
class Dataset:
    """A decoded data set: a folder in the cache.

    Attributes
    ----------
    path
        The folder; `open_dataset` opens it in another process.
    name, note
        From the source.
    classes
        Names of the classes, by label.
    size
        Height and width of the images in pixels.
    train, test
        The images.
    audit
        What was found when the files were looked at.
    """

    path: Path
    name: str
    note: str
    classes: tuple[str, ...]
    size: int
    train: Images
    test: Images
    audit: AuditReport


def prepare(
    source: Source,
    cache_root: Path,
    size: int = 224,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    max_bad_fraction: float | None = 0.05,
    keep_duplicates: bool = False,
    max_bytes: int | None = None,
) -> Dataset:
    """Decode a source into the cache, or open it there.

    Each file is decoded (`decode`) and resized as torchvision's ``Resize((size, size))`` does it,
    after which the paper's centre crop changes nothing. Several processes may ask for the same
    source at once; one decodes, the others wait for it. What is there is opened without writing.

    Parameters
    ----------
    source
        What to decode.
    cache_root
        Folder that holds all decoded data sets; made when missing.
    size
        Height and width in pixels.
    workers
        Threads that decode; by default one for each CPU that this process may use.
    on_progress
        Called with (images done, images in all) while decoding, from this thread.
    max_bad_fraction
        Largest share of unusable files, 0 to 1, of all files; None only looks at them.
    keep_duplicates
        Keep training images that are, byte for byte, in the test part too.
    max_bytes
        When the cache grows beyond it, the data sets used longest ago are dropped, but none that
        a living process has open. None: no limit.

    Returns
    -------
    Dataset

    Raises
    ------
    UserError
        When more than `max_bad_fraction` of the files are unusable, no image of a class is left
        in one of the splits, or the source asks for more images than there are.
    RunError
        When a file changes while it is read, or the cache cannot be written.
    """
    with ThreadPoolExecutor(workers or joblib.cpu_count()) as pool:
        digests = _digests(source, pool) if source.fingerprint is None else None
        key = _key(source, digests, size, keep_duplicates)
        folder = cache_root / key
        upkeep.remove_leftovers(cache_root)
        dataset = _open_if_sound(folder)
        if dataset is None:
            try:
                cache_root.mkdir(parents=True, exist_ok=True)
                with locked(upkeep.lock_of(folder)):
                    dataset = _open_if_sound(folder)  # another process has made it meanwhile
                    if dataset is None:
                        build = Build(source, size, keep_duplicates, pool, on_progress)
                        build.into(folder, digests)
                        dataset = open_dataset(folder)
            except OSError as error:
                raise RunError(
                    f"the image cache {cache_root} cannot be written: {error.strerror or error}"
                ) from None
            if max_bytes is not None:
                upkeep.drop_unused(cache_root, max_bytes)
    upkeep.note_use(folder)
    if max_bad_fraction is not None:
        _check_usable(dataset, source, max_bad_fraction)
    return dataset


def open_dataset(path: str | Path) -> Dataset:
    """Open a decoded data set, given only its folder.

    Parameters
    ----------
    path
        A `Dataset.path`.

    Returns
    -------
    Dataset

    Raises
    ------
    RunError
        When the folder is missing, incomplete or damaged.
    """
    path = Path(path)
    try:
        descriptor = os.open(path / "index.json", os.O_RDONLY)
    except OSError as error:
        raise RunError(f"the decoded data set {path} cannot be used: {error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with os.fdopen(os.dup(descriptor)) as file:
            stored = json.load(file)
        index = stored["index"]
        if stored["sha256"] != sha256_of(index) or index["format"] != FORMAT:
            raise ValueError("index.json is damaged")
        images = {split: _open_images(path, split, index) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.close(descriptor)
        raise RunError(f"the decoded data set {path} cannot be used: {error}") from None
    dataset = Dataset(
        path=path,
        name=index["name"],
        note=index["note"],
        classes=tuple(index["classes"]),
        size=index["size"],
        train=images["train"],
        test=images["test"],
        audit=AuditReport.from_dict(index["audit"]),
    )
    weakref.finalize(dataset, os.close, descriptor)  # it is locked until then
    return dataset


def _open_images(path: Path, split: str, index: dict[str, Any]) -> Images:
    entry = index[split]
    file = path / f"{split}.npy"
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    expected = (len(entry["files"]), 3, index["size"], index["size"])
    if array.shape != expected or array.dtype != np.uint8:
        raise ValueError(f"{file.name} holds {array.dtype} {array.shape}, not uint8 {expected}")
    return Images(
        path=file,
        rows=np.arange(len(array)),
        labels=np.array(entry["labels"], dtype=np.int64),
        files=tuple(entry["files"]),
        digests=tuple(entry["sha256"]),
        transform=index["transform"],
    )


def _open_if_sound(folder: Path) -> Dataset | None:
    try:
        return open_dataset(folder)
    except RunError:
        return None


def _digests(source: Source, pool: ThreadPoolExecutor) -> dict[str, str]:
    """sha256 of each file, by path."""

    def digest(item: Item) -> str:
        try:
            return hashlib.sha256(source.read(item.path)).hexdigest()
        except BadImage as bad:
            return unreadable(bad)

    items = [*source.train, *source.test]
    return {
        item.path: digest for item, digest in zip(items, in_order(pool, digest, items), strict=True)
    }


def _check_usable(dataset: Dataset, source: Source, max_bad_fraction: float) -> None:
    bad = dataset.audit.quarantined
    total = dataset.audit.checked
    if len(bad) > max_bad_fraction * total:
        first = "; ".join(f"{shown(path)} ({reason})" for path, reason in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{len(bad)} of {total} files cannot be used, more than data.max_bad_fraction="
            f"{max_bad_fraction} allows: {first}{more}"
        )
    for split in SPLITS:
        present = set(getattr(dataset, split).labels.tolist())
        listed = {item.label for item in getattr(source, split)}  # a site may lack some
        for label, name in enumerate(dataset.classes):
            if label in listed - present:
                removed = len(dataset.audit.in_test_too) if dataset.audit.removed else 0
                why = f"; {removed} training images are in test too and were left out"
                paths = {item.path for item in getattr(source, split) if item.label == label}
                of_it = [f"{shown(path)} ({reason})" for path, reason in bad if path in paths]
                raise UserError(
                    f"no usable image of class {name!r} is left in {split}"
                    f"{why if removed else ''}{f'; {of_it[0]}' if of_it else ''}"
                )


def _key(source: Source, digests: dict[str, str] | None, size: int, keep_duplicates: bool) -> str:
    """Name of the folder: a digest of all that decides what it holds."""
    return sha256_of(
        [
            FORMAT,
            transform_name(size),
            (source.name, source.note, source.classes),
            {split: [astuple(item) for item in getattr(source, split)] for split in SPLITS},
            digests or source.fingerprint,
            (source.rejected, source.ignored),
            source.take and astuple(source.take),
            keep_duplicates,
        ]
    )[:32]
