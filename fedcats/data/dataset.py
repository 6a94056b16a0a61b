"""A decoded data set: images in memory-mapped arrays, with labels and names."""

import fcntl
import json
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedcats.data.audit import AuditReport
from fedcats.data.build import FORMAT, sha256_of
from fedcats.data.sources import SPLITS
from fedcats.data.transforms import normalise
from fedcats.errors import RunError


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
