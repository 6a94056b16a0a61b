"""What was found when every file was looked at: the unusable, the doubled, the suspicious."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fedcats.results import Audit
from fedcats.text import shown

NEAR = 4
"""Two images are near-duplicates when at most so many of the 64 bits of their hashes differ."""

MAX_NEAR_LISTED = 1000


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that look alike but are different files.

    Attributes
    ----------
    first, second
        Their files.
    distance
        Bits in which their perceptual hashes differ, 0 to `NEAR`.
    across
        Whether one is a training and the other a test image.
    """

    first: str
    second: str
    distance: int
    across: bool


@dataclass(frozen=True)
class AuditReport:
    """The check of all files of a source, done while they are decoded.

    Attributes
    ----------
    checked
        How many files were looked at.
    quarantined
        (file, reason) of each that cannot be used and was left out.
    ignored
        Files beside the images that do not look like images.
    in_test_too
        (training file, test file) with the same content.
    removed
        Whether these training files were left out, as is the default.
    duplicates
        Groups of files with the same content in the same part.
    contradictions
        Groups of files with the same content but different classes.
    near_duplicates
        Pairs that look alike, those across train and test first; at most `MAX_NEAR_LISTED`.
    near_duplicates_found
        How many such pairs there are.
    """

    checked: int
    quarantined: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    in_test_too: tuple[tuple[str, str], ...]
    removed: bool
    duplicates: tuple[tuple[str, ...], ...]
    contradictions: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[NearDuplicate, ...]
    near_duplicates_found: int

    def as_dict(self) -> Audit:
        """Return what JSON can hold, lists for tuples; `from_dict` reads it."""
        return cast(Audit, json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AuditReport":
        """Rebuild a report from what `as_dict` gave."""
        pairs = ("quarantined", "in_test_too", "duplicates", "contradictions")
        return cls(
            **{
                **values,
                **{name: tuple(tuple(entry) for entry in values[name]) for name in pairs},
                "ignored": tuple(values["ignored"]),
                "near_duplicates": tuple(NearDuplicate(**e) for e in values["near_duplicates"]),
            }
        )

    def lines(self) -> list[str]:
        """Say in a few lines what a user should know; empty when there is nothing to tell."""
        across = sum(pair.across for pair in self.near_duplicates)
        verb = "left out of training" if self.removed else "kept in training"
        findings = [
            (self.quarantined, "cannot be used and are left out", _with_reason),
            (self.ignored, "do not look like images and are ignored", str),
            (self.in_test_too, f"of train are in test too, {verb}", lambda pair: pair[0]),
            (self.contradictions, "are in more than one class (groups)", _group),
            (self.duplicates, "are there more than once (groups)", _group),
        ]
        lines = [
            f"{len(entries)} files {what}: {_some(show(entry) for entry in entries)}"  # type: ignore[operator]
            for entries, what, show in findings
            if entries
        ]
        if self.near_duplicates_found:
            lines.append(
                f"{self.near_duplicates_found} pairs of images look alike, "
                f"{across} of those listed across train and test: "
                + _some(f"{pair.first} and {pair.second}" for pair in self.near_duplicates)
            )
        return [shown(line) for line in lines]


def _with_reason(entry: tuple[str, str]) -> str:
    return f"{entry[0]} ({entry[1]})"


def _group(entry: tuple[str, ...]) -> str:
    return " = ".join(entry)


def _some(texts: Iterable[str]) -> str:
    shown = list(texts)
    return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")


@dataclass
class Seen:
    """One usable image, as the search for duplicates needs it."""

    split: str
    path: str
    label: int
    digest: str
    look: int | None  # perceptual hash, 64 bits


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits that hardly change when an image is scaled, recompressed or brightened."""
    import imagehash  # brings scipy, and is needed only when files are decoded

    bits = np.packbits(imagehash.phash(image).hash.flatten())
    return int.from_bytes(bits.tobytes(), "big")


def find_duplicates(
    images: Sequence[Seen],
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Group images with the same content: those in one part, and those with different labels.

    Returns
    -------
    (duplicates, contradictions)
        Groups of files, in the order of `images`.
    """
    in_part: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    anywhere: dict[str, list[Seen]] = defaultdict(list)
    for image in images:
        in_part[image.split, image.digest].append(image)
        anywhere[image.digest].append(image)
    duplicates = [_paths(group) for group in in_part.values() if len(group) > 1]
    contradictions = [
        _paths(group) for group in anywhere.values() if len({image.label for image in group}) > 1
    ]
    return tuple(duplicates), tuple(contradictions)


def _paths(group: Sequence[Seen]) -> tuple[str, ...]:
    return tuple(image.path for image in group)


def find_near_duplicates(images: Sequence[Seen]) -> tuple[tuple[NearDuplicate, ...], int]:
    """Find pairs whose perceptual hashes differ in at most `NEAR` bits, exact copies left out.

    Returns
    -------
    (pairs, number)
        At most `MAX_NEAR_LISTED` pairs, those across train and test first, then by distance; and
        how many there are.
    """
    images = [image for image in images if image.look is not None]
    looks = np.array([image.look for image in images], dtype=np.uint64)
    contents = np.unique([image.digest for image in images], return_inverse=True)[1]
    in_test = np.array([image.split == "test" for image in images], dtype=bool)
    pairs: list[NearDuplicate] = []
    found = 0
    for start in range(0, len(images), 512):  # blocks of rows: all pairs at once are too many
        rows, columns = slice(start, start + 512), slice(start, None)
        distances = np.bitwise_count(looks[rows, None] ^ looks[None, columns])
        near = np.triu(distances <= NEAR, 1)
        near &= contents[rows, None] != contents[None, columns]
        across = in_test[rows, None] != in_test[None, columns]
        found += int(np.count_nonzero(near))
        for side in (near & across, near & ~across):
            for row, column in np.argwhere(side)[:MAX_NEAR_LISTED]:
                first, second = images[start + row], images[start + column]
                distance = int(distances[row, column])
                crosses = first.split != second.split
                pairs.append(NearDuplicate(first.path, second.path, distance, crosses))
    pairs.sort(key=lambda pair: (not pair.across, pair.distance, pair.first, pair.second))
    return tuple(pairs[:MAX_NEAR_LISTED]), found


class _Files(Protocol):
    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def digests(self) -> tuple[str, ...]: ...


def shared_between_shards(
    images: _Files, shards: Sequence[ArrayLike | NDArray[np.int64]]
) -> list[tuple[tuple[int, str], ...]]:
    """Find photos that several shards hold, under whatever names.

    Parameters
    ----------
    images
        The training images.
    shards
        Positions in `images`, one array for each shard.

    Returns
    -------
    list of tuple
        For each content in two or more shards, its (shard, file) pairs.
    """
    holders: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for shard, positions in enumerate(shards):
        for position in np.asarray(positions, dtype=np.int64):
            holders[images.digests[position]].append((shard, images.files[position]))
    return [tuple(group) for group in holders.values() if len({shard for shard, _ in group}) > 1]
