"""A decoded data set: images in arrays on the disk, with labels and names."""

import fcntl
import json
import os
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedcats.data.audit import AuditReport
from fedcats.data.build import FORMAT, checksum, sha256_of
from fedcats.data.sources import SPLITS
from fedcats.data.transforms import normalise
from fedcats.errors import RunError
from fedcats.text import shown

_AT_ONCE = 64  # images read at one time when all are checked


class DamagedData(RunError):
    """A decoded data set is not there, or not as it was written."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; a run begins by decoding it anew")

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray sends it to another process."""
        return RunError, (str(self),)


@dataclass(frozen=True)
class Images:
    """Images of one split, read when asked for, and checked each time.

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
    size
        Height and width in pixels.
    offset
        Bytes before the first image in that file.
    checksums
        `fedcats.data.build.checksum` of each image's pixels.
    """

    path: Path
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    files: tuple[str, ...]
    digests: tuple[str, ...]
    transform: str
    size: int
    offset: int
    checksums: tuple[str, ...]

    def __len__(self) -> int:
        """Count the images of this view."""
        return len(self.rows)

    def subset(self, indices: ArrayLike) -> "Images":
        """Return a view of the images at these positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            files=tuple(self.files[i] for i in chosen),
            digests=tuple(self.digests[i] for i in chosen),
            checksums=tuple(self.checksums[i] for i in chosen),
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

        Raises
        ------
        DamagedData
            When the file has other pixels than those that were decoded into it.
        RunError
            When it cannot be read.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        pixels = np.empty((len(chosen), 3, self.size, self.size), dtype=np.uint8)
        try:
            # Not mapped into memory: where a disk fails or a file is cut, that ends the process.
            with self.path.open("rb", buffering=0) as file:
                for image, i in zip(pixels, chosen.tolist(), strict=True):
                    file.seek(self.offset + int(self.rows[i]) * image.nbytes)
                    file.readinto(image.data)
                    if checksum(image.data) != self.checksums[i]:
                        raise DamagedData(
                            f"the decoded data set {self.path.parent} is damaged: "
                            f"{self.path.name}, {shown(self.files[i])}"
                        )
        except OSError as error:
            raise RunError(f"the decoded images {self.path} cannot be read: {error}") from None
        return torch.from_numpy(pixels)

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

    def verify(self) -> None:
        """Read all images, at some 3 GB/s; DamagedData unless they are those that were decoded."""
        for images in (self.train, self.test):
            for start in range(0, len(images), _AT_ONCE):
                images.pixels(range(start, min(start + _AT_ONCE, len(images))))


def open_dataset(path: str | Path) -> Dataset:
    """Open a decoded data set, given only its folder; its images are checked as they are read.

    Parameters
    ----------
    path
        A `Dataset.path`.

    Returns
    -------
    Dataset

    Raises
    ------
    DamagedData
        When the folder is missing, incomplete or damaged, or an earlier version's, without
        checksums.
    RunError
        When it cannot be read, which may be for a moment only.
    """
    path = Path(path)
    try:
        descriptor = os.open(path / "index.json", os.O_RDONLY)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with os.fdopen(os.dup(descriptor)) as file:
            stored = json.load(file)
        index = stored["index"]
        if stored["sha256"] != sha256_of(index) or index["format"] != FORMAT:
            raise ValueError("index.json is damaged")
        if "xxh3" not in index["train"]:
            raise ValueError("an earlier version made it, without checksums of the images")
        if index["key"] != path.name:
            raise ValueError(f"it is a copy of {index['key']}")
        images = {split: _open_images(path, split, index) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.close(descriptor)
        raise _unusable(path, error) from None
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
    number, size, offset = len(entry["files"]), index["size"], entry["offset"]
    there, expected = file.stat().st_size, offset + number * 3 * size**2
    if there != expected:
        raise ValueError(f"{file.name} has {there:,} bytes, not {expected:,}")
    return Images(
        path=file,
        rows=np.arange(number),
        labels=np.array(entry["labels"], dtype=np.int64),
        files=tuple(entry["files"]),
        digests=tuple(entry["sha256"]),
        transform=index["transform"],
        size=size,
        offset=offset,
        checksums=tuple(entry["xxh3"]),
    )


def _unusable(path: Path, error: Exception) -> RunError:
    # Only what is gone or has another content is damaged: the rest may be different in a moment.
    lost = not isinstance(error, OSError) or isinstance(
        error, FileNotFoundError | NotADirectoryError
    )
    kind = DamagedData if lost else RunError
    return kind(f"the decoded data set {path} cannot be used: {error}")
