"""Every image decoded and resized once, into memory-mapped uint8 arrays that all processes share.

A dataset is a folder: ``train.npy`` and ``test.npy``, each (n, 3, size, size) uint8, and
``index.json`` with the classes, files, labels and the sha256 of each file. The folder's name is a
key of what it holds, so it is never out of date. It is built under another name and renamed when
complete: a process that dies leaves nothing that looks like a dataset.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import PIL
import torch
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fedcats.core.data.decoding import BadImage, decode
from fedcats.core.data.sources import Item, Source
from fedcats.core.errors import RunError, UserError

SPLITS = ("train", "test")
_FORMAT = 1
_T = TypeVar("_T")
_R = TypeVar("_R")


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

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of everything that training sees: files, labels, order, transform."""
        return _sha256_of([self.transform, self.digests, self.labels.tolist()])

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
    rejected
        (path, reason) of each file that could not be used.
    ignored
        Files beside the images that do not look like images.
    """

    path: Path
    name: str
    note: str
    classes: tuple[str, ...]
    size: int
    train: Images
    test: Images
    rejected: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


def prepare(
    source: Source,
    cache_root: Path,
    size: int = 224,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    max_bad_fraction: float = 0.05,
) -> Dataset:
    """Decode a source into the cache, or open it there.

    Each file is decoded (`decode`) and resized as torchvision's ``Resize((size, size))`` does it,
    after which the paper's centre crop changes nothing. Several processes may ask for the same
    source at once; one decodes, the others wait for it.

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
        Largest share of unusable files, 0 to 1, of all files.

    Returns
    -------
    Dataset

    Raises
    ------
    UserError
        When more than `max_bad_fraction` of the files are unusable, or no image of a class is
        left in one of the splits.
    RunError
        When a file changes while it is read, or the cache cannot be written.
    """
    items = {split: getattr(source, split) for split in SPLITS}
    workers = workers or joblib.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        digests = None
        if source.fingerprint is None:
            digests = {split: _digests(source, items[split], pool) for split in SPLITS}
        key = _key(source, items, digests, size)
        folder = cache_root / key
        try:
            cache_root.mkdir(parents=True, exist_ok=True)
            # A lock of the operating system: it goes when its process goes, however that ends.
            with FileLock(cache_root / f"{key}.lock"):
                dataset = _open_if_sound(folder)
                if dataset is None:
                    _build(source, items, digests, size, folder, pool, on_progress)
                    dataset = open_dataset(folder)
        except OSError as error:
            raise RunError(f"the image cache {cache_root} cannot be written: {error}") from None
    _check_usable(dataset, items, max_bad_fraction)
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
        stored = json.loads((path / "index.json").read_text())
        index = stored["index"]
        if stored["sha256"] != _sha256_of(index) or index["format"] != _FORMAT:
            raise ValueError("index.json is damaged")
        images = {split: _open_images(path, split, index) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the decoded data set {path} cannot be used: {error}") from None
    return Dataset(
        path=path,
        name=index["name"],
        note=index["note"],
        classes=tuple(index["classes"]),
        size=index["size"],
        train=images["train"],
        test=images["test"],
        rejected=tuple((file, reason) for file, reason in index["rejected"]),
        ignored=tuple(index["ignored"]),
    )


def _open_images(path: Path, split: str, index: dict[str, Any]) -> Images:
    entry = index[split]
    file = path / f"{split}.npy"
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    expected = (entry["rows_in_file"], 3, index["size"], index["size"])
    if array.shape != expected or array.dtype != np.uint8:
        raise ValueError(f"{file.name} holds {array.dtype} {array.shape}, not uint8 {expected}")
    return Images(
        path=file,
        rows=np.array(entry["rows"], dtype=np.int64),
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


def _build(
    source: Source,
    items: dict[str, tuple[Item, ...]],
    digests: dict[str, list[str]] | None,
    size: int,
    folder: Path,
    pool: ThreadPoolExecutor,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Decode everything into a temporary folder and rename it; the caller holds the lock."""
    temporary = folder.with_name(folder.name + ".part")
    for leftover in (temporary, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    index: dict[str, Any] = {
        "format": _FORMAT,
        "name": source.name,
        "note": source.note,
        "classes": source.classes,
        "size": size,
        "transform": _transform(size),
        "rejected": list(source.rejected),
        "ignored": source.ignored,
    }
    done, total = 0, sum(len(items[split]) for split in SPLITS)
    with warnings.catch_warnings():
        # Pillow warns of what is decided here: bombs are refused, odd metadata does not matter.
        warnings.simplefilter("ignore")
        for split in SPLITS:
            entry: dict[str, Any] = {"files": [], "labels": [], "rows": [], "sha256": []}
            # Rows of unusable files stay empty: holes in the file, which take no space.
            entry["rows_in_file"] = len(items[split])
            decoded = _in_order(pool, lambda item: _decoded(source, item, size), items[split])
            with (temporary / f"{split}.npy").open("wb") as file:
                shape = (len(items[split]), 3, size, size)
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|u1", "fortran_order": False, "shape": shape}
                )
                for row, item in enumerate(items[split]):
                    digest, pixels = next(decoded)
                    if digests is not None and digests[split][row] != digest:
                        raise RunError(f"{item.path} changed while it was being read")
                    if isinstance(pixels, str):
                        index["rejected"].append((item.path, pixels))
                        file.seek(3 * size * size, os.SEEK_CUR)
                    else:
                        file.write(pixels.tobytes())
                        entry["files"].append(item.path)
                        entry["labels"].append(item.label)
                        entry["rows"].append(row)
                        entry["sha256"].append(digest)
                    done += 1
                    if on_progress:
                        on_progress(done, total)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            index[split] = entry
    text = json.dumps({"sha256": _sha256_of(index), "index": index}, indent=1)
    (temporary / "index.json").write_text(text)
    temporary.rename(folder)


def _decoded(source: Source, item: Item, size: int) -> tuple[str, NDArray[np.uint8] | str]:
    """Return the sha256 of an item's file and (3, size, size) pixels, or why there are none."""
    try:
        content = source.read(item.path)
    except BadImage as bad:
        return _unreadable(bad), str(bad)
    digest = hashlib.sha256(content).hexdigest()
    try:
        image = decode(content).resize((size, size), Image.Resampling.BILINEAR)
    except BadImage as bad:
        return digest, str(bad)
    return digest, np.asarray(image).transpose(2, 0, 1)


def _digests(source: Source, items: Sequence[Item], pool: ThreadPoolExecutor) -> list[str]:
    def digest(item: Item) -> str:
        try:
            return hashlib.sha256(source.read(item.path)).hexdigest()
        except BadImage as bad:
            return _unreadable(bad)

    return list(_in_order(pool, digest, items))


def _unreadable(bad: BadImage) -> str:
    """Stand in for the sha256 of a file that cannot be read."""
    return f"unreadable: {bad}"


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[_T], _R], items: Iterable[_T]
) -> Iterator[_R]:
    """Map over the pool, in order, a few items ahead of the reader: results are large."""
    ahead: list[Any] = []
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) >= 32:
            yield ahead.pop(0).result()
    for future in ahead:
        yield future.result()


def _check_usable(
    dataset: Dataset, items: dict[str, tuple[Item, ...]], max_bad_fraction: float
) -> None:
    bad = len(dataset.rejected)
    total = bad + len(dataset.train) + len(dataset.test)
    if bad > max_bad_fraction * total:
        shown = "; ".join(f"{path} ({reason})" for path, reason in dataset.rejected[:3])
        more = f"; and {bad - 3} more" if bad > 3 else ""
        raise UserError(
            f"{bad} of {total} files cannot be used, more than data.max_bad_fraction="
            f"{max_bad_fraction} allows: {shown}{more}"
        )
    for split in SPLITS:
        present = set(getattr(dataset, split).labels.tolist())
        listed = {item.label for item in items[split]}  # a site may lack a class, or a part
        for label, name in enumerate(dataset.classes):
            if label in listed - present:
                raise UserError(f"no usable image of class {name!r} is left in {split}")


def _transform(size: int) -> str:
    """Name everything that stands between the files and the pixels."""
    return f"upright, RGB, bilinear to {size} x {size}, Pillow {PIL.__version__}"


def _key(
    source: Source,
    items: dict[str, tuple[Item, ...]],
    digests: dict[str, list[str]] | None,
    size: int,
) -> str:
    content = digests if digests is not None else source.fingerprint
    names = {split: [(item.path, item.label) for item in items[split]] for split in SPLITS}
    return _sha256_of(
        [
            _FORMAT,
            _transform(size),
            (source.name, source.note, source.classes),
            names,
            content,
            (source.rejected, source.ignored),
        ]
    )[:32]


def _sha256_of(value: Any) -> str:
    """Digest of a value's JSON; tuples count as lists."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
