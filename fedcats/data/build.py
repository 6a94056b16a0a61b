"""Decode a source into a folder of the cache, and take notes of what is found on the way."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import PIL
import xxhash
from numpy.typing import NDArray

from fedcats.data.audit import (
    AuditReport,
    Seen,
    find_duplicates,
    find_near_duplicates,
    perceptual_hash,
)
from fedcats.data.decoding import SCALED, BadImage, decode_square
from fedcats.data.sources import SPLITS, Item, Source
from fedcats.data.upkeep import part_of
from fedcats.errors import RunError, UserError

FORMAT = 3
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class _Decoded:
    """What became of one item: pixels (3, size, size), or why there are none."""

    item: Item
    digest: str
    pixels: NDArray[np.uint8] | None
    look: int | None
    reason: str = ""
    scaled: bool = False


@dataclass
class Build:
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
    scaled: bool = False

    def into(self, folder: Path, digests: dict[str, str] | None) -> None:
        """Write everything into a temporary folder and rename it; the caller holds the lock.

        When that fails, nothing is left behind.

        Parameters
        ----------
        folder
            Must not be there when this returns before its time.
        digests
            By path, what the files held when the key was made; None when nothing was read for it.
        """
        temporary = part_of(folder)
        for leftover in (temporary, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            self._fill(temporary, folder.name, digests)
            temporary.rename(folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                need = self.total * 3 * self.size**2
                error.strerror = f"{error.strerror} ({self.total} images take {need / 1e6:,.0f} MB)"
            raise

    def _fill(self, folder: Path, key: str, digests: dict[str, str] | None) -> None:
        self.quarantined.extend(self.source.rejected)
        self.total = sum(sum(self._wanted(split).values()) for split in SPLITS)
        index: dict[str, Any] = {
            "format": FORMAT,
            "name": self.source.name,
            "note": self.source.note,
            "classes": self.source.classes,
            "size": self.size,
            "key": key,
        }
        with warnings.catch_warnings():
            # Pillow warns of what is decided here: bombs are refused, odd metadata is harmless.
            warnings.simplefilter("ignore")
            for split in ("test", "train"):  # what the test part holds is left out of the other
                index[split] = self._write(split, folder / f"{split}.npy", digests)
        # Images that were black before they were scaled are other images in the store's keys too.
        index["transform"] = transform_name(self.size) + (", grey scaled" if self.scaled else "")
        index["audit"] = self._audit().as_dict()
        text = json.dumps({"sha256": sha256_of(index), "index": index}, indent=1)
        (folder / "index.json").write_text(text)

    def _write(self, split: str, path: Path, digests: dict[str, str] | None) -> dict[str, Any]:
        """Write the usable images of a split; return its part of the index."""
        start = len(self.seen)
        in_test = {image.digest: image.path for image in reversed(self.seen)}
        missing = self._wanted(split)
        checksums: list[str] = []

        def candidates() -> Iterator[Item]:
            return (item for item in getattr(self.source, split) if missing[item.label])

        with path.open("wb") as file:
            _write_header(file, 0, self.size)
            for one in in_order(self.pool, self._decode, candidates()):
                if not missing[one.item.label]:
                    continue  # was under way when the last one that was wanted came in
                if digests and digests[one.item.path] != one.digest:
                    raise RunError(f"{one.item.path} changed while it was being read")
                if self._accept(one, in_test):
                    pixels = one.pixels.tobytes()  # type: ignore[union-attr]
                    file.write(pixels)
                    checksums.append(checksum(pixels))
                    self.seen.append(
                        Seen(split, one.item.path, one.item.label, one.digest, one.look)
                    )
                    self.scaled |= one.scaled
                    missing[one.item.label] -= 1
                self.done += 1
                if self.on_progress:
                    self.on_progress(min(self.done, self.total), self.total)
            kept = self.seen[start:]
            file.seek(0)
            _write_header(file, len(kept), self.size)
            offset = file.tell()
            file.flush()
            os.fsync(file.fileno())
        self._check_exact(split, kept)
        return {
            "files": [image.path for image in kept],
            "labels": [image.label for image in kept],
            "sha256": [image.digest for image in kept],
            "offset": offset,
            "xxh3": checksums,
        }

    def _decode(self, item: Item) -> _Decoded:
        try:
            content = self.source.read(item.path)
        except BadImage as bad:
            return _Decoded(item, unreadable(bad), None, None, str(bad))
        digest = hashlib.sha256(content).hexdigest()
        try:
            image = decode_square(content, self.size)
        except BadImage as bad:
            return _Decoded(item, digest, None, None, str(bad))
        look = None if self.source.own_drawings else perceptual_hash(image)
        pixels = np.asarray(image).transpose(2, 0, 1)
        return _Decoded(item, digest, pixels, look, scaled=SCALED in image.info)

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


def checksum(pixels: bytes | memoryview) -> str:
    """XXH3 of an image's bytes, 64 bits in hex: against accidents, at the speed of memory."""
    return xxhash.xxh3_64_hexdigest(pixels)


def in_order(
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


def unreadable(bad: BadImage) -> str:
    """Stand in for the sha256 of a file that cannot be read."""
    return f"unreadable: {bad}"


def transform_name(size: int) -> str:
    """Name everything that stands between the files and the pixels."""
    return f"upright, RGB, bilinear to {size} x {size}, Pillow {PIL.__version__}"


def sha256_of(value: Any) -> str:
    """Digest of a value's JSON; tuples count as lists."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
