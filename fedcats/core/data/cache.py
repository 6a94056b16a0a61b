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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import joblib
import numpy as np
import PIL
import torch
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fedcats.core.data.audit import (
    AuditReport,
    Seen,
    find_duplicates,
    find_near_duplicates,
    perceptual_hash,
)
from fedcats.core.data.decoding import BadImage, decode
from fedcats.core.data.sources import SPLITS, Item, Source
from fedcats.core.data.transforms import normalise
from fedcats.core.errors import RunError, UserError

_FORMAT = 2
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
    max_bad_fraction: float = 0.05,
    keep_duplicates: bool = False,
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
    keep_duplicates
        Keep training images that are, byte for byte, in the test part too.

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
        try:
            cache_root.mkdir(parents=True, exist_ok=True)
            # A lock of the operating system: it goes when its process goes, however that ends.
            with FileLock(cache_root / f"{key}.lock"):
                dataset = _open_if_sound(folder)
                if dataset is None:
                    build = _Build(source, size, keep_duplicates, pool, on_progress)
                    build.into(folder, digests)
                    dataset = open_dataset(folder)
        except OSError as error:
            raise RunError(f"the image cache {cache_root} cannot be written: {error}") from None
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
        audit=AuditReport.from_dict(index["audit"]),
    )


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


@dataclass(frozen=True)
class _Decoded:
    """What became of one item: pixels (3, size, size), or why there are none."""

    item: Item
    digest: str
    pixels: NDArray[np.uint8] | None
    look: int | None
    reason: str = ""


@dataclass
class _Build:
    """Decodes a source into a folder, and takes notes for the audit."""

    source: Source
    size: int
    keep_duplicates: bool
    pool: ThreadPoolExecutor
    on_progress: Callable[[int, int], None] | None
    seen: list[Seen] = field(default_factory=list)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    in_test_too: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    total: int = 0

    def into(self, folder: Path, digests: dict[str, str] | None) -> None:
        """Write everything into a temporary folder and rename it; the caller holds the lock.

        Parameters
        ----------
        folder
            Must not be there when this returns before its time.
        digests
            By path, what the files held when the key was made; None when nothing was read for it.
        """
        temporary = folder.with_name(folder.name + ".part")
        for leftover in (temporary, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        self.quarantined.extend(self.source.rejected)
        self.total = sum(sum(self._wanted(split).values()) for split in SPLITS)
        index: dict[str, Any] = {
            "format": _FORMAT,
            "name": self.source.name,
            "note": self.source.note,
            "classes": self.source.classes,
            "size": self.size,
            "transform": _transform(self.size),
        }
        with warnings.catch_warnings():
            # Pillow warns of what is decided here: bombs are refused, odd metadata is harmless.
            warnings.simplefilter("ignore")
            for split in ("test", "train"):  # what the test part holds is left out of the other
                index[split] = self._write(split, temporary / f"{split}.npy", digests)
        index["audit"] = self._audit().as_dict()
        text = json.dumps({"sha256": _sha256_of(index), "index": index}, indent=1)
        (temporary / "index.json").write_text(text)
        temporary.rename(folder)

    def _write(self, split: str, path: Path, digests: dict[str, str] | None) -> dict[str, Any]:
        """Write the usable images of a split; return its part of the index."""
        start = len(self.seen)
        in_test = {image.digest: image.path for image in reversed(self.seen)}
        missing = self._wanted(split)

        def candidates() -> Iterator[Item]:
            return (item for item in getattr(self.source, split) if missing[item.label])

        with path.open("wb") as file:
            _write_header(file, 0, self.size)
            for one in _in_order(self.pool, self._decode, candidates()):
                if not missing[one.item.label]:
                    continue  # was under way when the last one that was wanted came in
                if digests and digests[one.item.path] != one.digest:
                    raise RunError(f"{one.item.path} changed while it was being read")
                if self._accept(one, in_test):
                    file.write(one.pixels.tobytes())  # type: ignore[union-attr]
                    self.seen.append(
                        Seen(split, one.item.path, one.item.label, one.digest, one.look)
                    )
                    missing[one.item.label] -= 1
                self.done += 1
                if self.on_progress:
                    self.on_progress(min(self.done, self.total), self.total)
            kept = self.seen[start:]
            file.seek(0)
            _write_header(file, len(kept), self.size)
            file.flush()
            os.fsync(file.fileno())
        self._check_exact(split, kept)
        return {
            "files": [image.path for image in kept],
            "labels": [image.label for image in kept],
            "sha256": [image.digest for image in kept],
        }

    def _decode(self, item: Item) -> _Decoded:
        try:
            content = self.source.read(item.path)
        except BadImage as bad:
            return _Decoded(item, _unreadable(bad), None, None, str(bad))
        digest = hashlib.sha256(content).hexdigest()
        try:
            image = decode(content).resize((self.size, self.size), Image.Resampling.BILINEAR)
        except BadImage as bad:
            return _Decoded(item, digest, None, None, str(bad))
        look = None if self.source.own_drawings else perceptual_hash(image)
        return _Decoded(item, digest, np.asarray(image).transpose(2, 0, 1), look)

    def _accept(self, one: _Decoded, in_test: dict[str, str]) -> bool:
        """Decide whether an image is kept, and note why not."""
        if one.pixels is None:
            self.quarantined.append((one.item.path, one.reason))
            return False
        twin = in_test.get(one.digest)
        if twin is not None:
            self.in_test_too.append((one.item.path, twin))
        return twin is None or self.keep_duplicates

    def _wanted(self, split: str) -> dict[int, int]:
        """How many images to keep, by label."""
        listed = Counter(item.label for item in getattr(self.source, split))
        if self.source.take is None:
            return dict(listed)
        take = getattr(self.source.take, split)
        return {label: min(listed[label], take[label]) for label in listed}

    def _check_exact(self, split: str, kept: Sequence[Seen]) -> None:
        if self.source.take is None or not self.source.take.exact:
            return
        found = Counter(image.label for image in kept)
        for label, wanted in enumerate(getattr(self.source.take, split)):
            if found[label] < wanted:
                raise UserError(
                    f"data.counts: {wanted} images of class {self.source.classes[label]!r} are "
                    f"wanted for {split}, but there are only {found[label]} usable ones"
                )

    def _audit(self) -> AuditReport:
        duplicates, contradictions = find_duplicates(self.seen)
        near, number = find_near_duplicates(self.seen)
        removed = 0 if self.keep_duplicates else len(self.in_test_too)
        return AuditReport(
            checked=len(self.seen) + len(self.quarantined) + removed,
            quarantined=tuple(sorted(self.quarantined)),
            ignored=self.source.ignored,
            in_test_too=tuple(self.in_test_too),
            removed=not self.keep_duplicates,
            duplicates=duplicates,
            contradictions=contradictions,
            near_duplicates=near,
            near_duplicates_found=number,
        )


def _write_header(file: BinaryIO, images: int, size: int) -> None:
    """Write the header of an .npy file, which is equally long for any number of images."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (images, 3, size, size)}
    )


def _digests(source: Source, pool: ThreadPoolExecutor) -> dict[str, str]:
    """sha256 of each file, by path."""

    def digest(item: Item) -> str:
        try:
            return hashlib.sha256(source.read(item.path)).hexdigest()
        except BadImage as bad:
            return _unreadable(bad)

    items = [*source.train, *source.test]
    return {
        item.path: digest
        for item, digest in zip(items, _in_order(pool, digest, items), strict=True)
    }


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


def _check_usable(dataset: Dataset, source: Source, max_bad_fraction: float) -> None:
    bad = dataset.audit.quarantined
    total = dataset.audit.checked
    if len(bad) > max_bad_fraction * total:
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{len(bad)} of {total} files cannot be used, more than data.max_bad_fraction="
            f"{max_bad_fraction} allows: {shown}{more}"
        )
    for split in SPLITS:
        present = set(getattr(dataset, split).labels.tolist())
        listed = {item.label for item in getattr(source, split)}  # a site may lack some
        for label, name in enumerate(dataset.classes):
            if label in listed - present:
                removed = len(dataset.audit.in_test_too) if dataset.audit.removed else 0
                why = f"; {removed} training images are in test too and were left out"
                raise UserError(
                    f"no usable image of class {name!r} is left in {split}{why if removed else ''}"
                )


def _transform(size: int) -> str:
    """Name everything that stands between the files and the pixels."""
    return f"upright, RGB, bilinear to {size} x {size}, Pillow {PIL.__version__}"


def _key(source: Source, digests: dict[str, str] | None, size: int, keep_duplicates: bool) -> str:
    """Name of the folder: a digest of all that decides what it holds."""
    return _sha256_of(
        [
            _FORMAT,
            _transform(size),
            (source.name, source.note, source.classes),
            {split: [astuple(item) for item in getattr(source, split)] for split in SPLITS},
            digests or source.fingerprint,
            (source.rejected, source.ignored),
            source.take and astuple(source.take),
            keep_duplicates,
        ]
    )[:32]


def _sha256_of(value: Any) -> str:
    """Digest of a value's JSON; tuples count as lists."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
