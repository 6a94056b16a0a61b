"""Where images come from: a list of items with labels, and a way to read each.

A source lists and reads; nothing is decoded before `fedcats.core.data.cache.prepare`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fedcats.core.data.decoding import BadImage, decode
from fedcats.core.errors import UserError
from fedcats.core.seeding import derive_seed

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
"""File names that promise an image; what the file really is, its content decides."""

MAX_FILE_BYTES = 200_000_000
"""Files larger than this are not read at all."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")
_NOT_OF_THE_DATA = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class Item:
    """One labelled image: its posix path relative to the source's root, and its class number."""

    path: str
    label: int


@dataclass(frozen=True)
class Source:
    """Labelled images in a train and a test part, not yet read.

    Attributes
    ----------
    name
        Short name for reports, such as ``synthetic`` or ``folder``.
    note
        What a reader of the results must know, such as that these are drawings; may be empty.
    classes
        Names of the classes; an item's label is the position here.
    train, test
        The items.
    read
        From an item's path to the bytes of its file. Raises `BadImage` when it cannot be read.
    fingerprint
        Stands for the content of all items where that follows from parameters; None means that
        the files have to be read to know it.
    rejected
        (path, reason) of what lies among the items and is not usable, found without reading it.
    ignored
        Paths of files that do not look like images at all, neither by name nor by content.
    """

    name: str
    note: str
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    read: Callable[[str], bytes] = field(repr=False, compare=False)
    fingerprint: str | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def image(self, item: Item) -> Image.Image:
        """Read and decode one item, as RGB; raises `BadImage`."""
        return decode(self.read(item.path))


def folder_source(root: str | Path, test_fraction: float, seed: int) -> Source:
    """Photos in a folder: ``train/<class>`` and ``test/<class>``, or only ``<class>``.

    Classes and files come in the order of torchvision's ImageFolder: by name, upper case first,
    with the files of folders inside a class folder included.

    Parameters
    ----------
    root
        The folder.
    test_fraction
        Share of each class that becomes the test part, above 0 and below 1; at least one image
        goes to each side. Only used where there are no ``train`` and ``test`` folders.
    seed
        Decides that split.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        When the folder does not exist or does not hold two or more classes with images in
        both parts.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root={root}: the folder {what}")
    root = root.resolve()
    listing = _Listing(root)
    if (root / "train").is_dir() and (root / "test").is_dir():
        classes, train, test = _given_split(listing)
    elif _looks_half_split(root):
        present, missing = ("train", "test") if (root / "train").is_dir() else ("test", "train")
        raise UserError(
            f"data.root={root}: there is a folder {present!r} but no {missing!r}; "
            f"allowed are train/<class> and test/<class>, or only <class> folders"
        )
    else:
        classes, train, test = _seeded_split(listing, test_fraction, seed)
    return Source(
        name="folder",
        note="",
        classes=classes,
        train=train,
        test=test,
        read=FolderReader(root),
        rejected=tuple(listing.rejected),
        ignored=tuple(listing.ignored),
    )


def part_source(root: str | Path, part: str, classes: tuple[str, ...] | None = None) -> Source:
    """Photos of one part alone: a site's for training, or a server's for testing.

    Parameters
    ----------
    root
        The folder: ``part/<class>`` where there is a folder ``part``, else ``<class>``.
    part
        ``train`` or ``test``; the other one stays empty.
    classes
        The classes in the order of their labels, where others decide them: a site may lack some,
        and has none beside them. None takes those of the folder.

    Returns
    -------
    Source
        Its paths begin with ``part`` where that folder is.

    Raises
    ------
    UserError
        When the folder does not exist, holds no images, or holds other classes.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root={root}: the folder {what}")
    root = root.resolve()
    listing = _Listing(root)
    prefix = part if (root / part).is_dir() else ""
    found = listing.classes(prefix)
    if classes is None:
        classes = found
        _check_classes(classes, root / prefix)
    for name in found:
        if name not in classes:
            raise UserError(
                f"data.root={root}: class {name!r} is not one of the federation's: "
                f"allowed are {', '.join(classes)}"
            )
    items = tuple(
        Item(path, label)
        for label, name in enumerate(classes)
        if name in found
        for path in listing.images(f"{prefix}/{name}" if prefix else name)
    )
    if not items:
        raise UserError(
            f"data.root={root}: no images in {part}/<class> or <class> folders "
            f"(classes: {', '.join(classes)})"
        )
    return Source(
        name="folder",
        note="",
        classes=classes,
        train=items if part == "train" else (),
        test=items if part == "test" else (),
        read=FolderReader(root),
        rejected=tuple(listing.rejected),
        ignored=tuple(listing.ignored),
    )


def _looks_half_split(root: Path) -> bool:
    """Whether one of train and test is there and has folders in it, as classes would not."""
    return any(
        (root / part).is_dir() and any(entry.is_dir() for entry in (root / part).iterdir())
        for part in ("train", "test")
    )


def _given_split(
    listing: "_Listing",
) -> tuple[tuple[str, ...], tuple[Item, ...], tuple[Item, ...]]:
    classes = listing.classes("train")
    _check_classes(classes, listing.root / "train")
    in_test = listing.classes("test")
    for name in in_test:
        if name not in classes:
            raise UserError(
                f"data.root={listing.root}: class {name!r} is in test but not in train; "
                f"train has {', '.join(classes)}"
            )
    for name in classes:
        if name not in in_test:
            raise UserError(f"data.root={listing.root}: class {name!r} is in train but not in test")
    parts = []
    for part in ("train", "test"):
        items = []
        for label, name in enumerate(classes):
            paths = listing.images(f"{part}/{name}")
            if not paths:
                raise UserError(
                    f"data.root={listing.root}: the class folder {part}/{name} has no images"
                )
            items += [Item(path, label) for path in paths]
        parts.append(tuple(items))
    return classes, parts[0], parts[1]


def _seeded_split(
    listing: "_Listing", test_fraction: float, seed: int
) -> tuple[tuple[str, ...], tuple[Item, ...], tuple[Item, ...]]:
    classes = listing.classes("")
    _check_classes(classes, listing.root)
    by_class = [listing.images(name) for name in classes]
    for name, paths in zip(classes, by_class, strict=True):
        if not paths:
            raise UserError(f"data.root={listing.root}: the class folder {name} has no images")
        if len(paths) < 2:
            raise UserError(
                f"data.root={listing.root}: class {name!r} has one image; "
                "a split into train and test needs at least two of each class"
            )
    train, test = stratified_split(by_class, test_fraction, seed)
    return classes, train, test


def stratified_split(
    by_class: list[list[str]], test_fraction: float, seed: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split the paths of each class into train and test, at least one image on each side.

    Parameters
    ----------
    by_class
        For each class, its paths (two or more).
    test_fraction
        Share of each class for the test part, above 0 and below 1, rounded.
    seed
        Decides the choice.

    Returns
    -------
    (train, test)
        Items, by class and in the order given.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"data.test_fraction={test_fraction}: must be above 0 and below 1")
    train: list[Item] = []
    test: list[Item] = []
    for label, paths in enumerate(by_class):
        rng = np.random.default_rng(derive_seed(seed, "split", label))
        num_test = min(max(round(test_fraction * len(paths)), 1), len(paths) - 1)
        chosen = set(rng.permutation(len(paths))[:num_test].tolist())
        for position, path in enumerate(paths):
            (test if position in chosen else train).append(Item(path, label))
    return tuple(train), tuple(test)


def _check_classes(classes: tuple[str, ...], where: Path) -> None:
    if not classes:
        raise UserError(
            f"data.root: no class folders in {where}; allowed are train/<class> and "
            "test/<class>, or only <class> folders"
        )
    if len(classes) == 1:
        raise UserError(
            f"data.root: only one class folder, {classes[0]!r}, in {where}; at least two are needed"
        )


@dataclass(frozen=True)
class FolderReader:
    """Reads a file below `root`, by its relative path."""

    root: Path

    def __call__(self, path: str) -> bytes:
        """Return the bytes of the file, or raise `BadImage`."""
        try:
            with (self.root / path).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise BadImage(f"larger than {MAX_FILE_BYTES} bytes")
        return content


class _Listing:
    """Lists class folders and images below `root`, and notes what it leaves out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rejected: list[tuple[str, str]] = []
        self.ignored: list[str] = []

    def classes(self, part: str) -> tuple[str, ...]:
        """Names of the class folders in `part`, sorted."""
        folders = [path for path in self._entries(self.root / part) if path.is_dir()]
        for path in (self.root / part, *folders):
            if self._leaves(path):
                raise UserError(
                    f"data.root={self.root}: the folder {self._name(path)} is a link that leaves "
                    "it; copy it there, or name the real folder"
                )
        return tuple(path.name for path in folders)

    def images(self, folder: str) -> list[str]:
        """Paths of the images in `folder` and the folders in it, relative to the root."""
        paths: list[str] = []
        below: list[Path] = []
        for path in self._entries(self.root / folder):
            name = self._name(path)
            if self._leaves(path):
                self.rejected.append((name, "link that leaves the folder"))
            elif path.is_symlink() and not path.is_file():
                self.rejected.append((name, "link to something that is no file"))
            elif path.is_dir():
                below.append(path)
            elif not path.is_file():  # reading from a named pipe would wait for ever
                self.rejected.append((name, "not a regular file"))
            elif _looks_like_an_image(path):
                paths.append(name)
            else:
                self.ignored.append(name)
        for path in below:
            paths += self.images(self._name(path))
        return paths

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _leaves(self, path: Path) -> bool:
        return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.root)

    def _entries(self, folder: Path) -> list[Path]:
        """What lies in `folder`, by name, without hidden files and those of file managers."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(f"data.root: {folder} cannot be listed: {error.strerror}") from None
        return [
            path
            for path in entries
            if not path.name.startswith(".") and path.name.lower() not in _NOT_OF_THE_DATA
        ]


def _looks_like_an_image(path: Path) -> bool:
    """By its name, else by how it begins."""
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(_SIGNATURES)
    except OSError:
        return False
