"""Where images come from: a list of items with labels, and a way to read each.

A source lists and reads; nothing is decoded before `fedcats.data.preparing.prepare`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fedcats.data.decoding import decode
from fedcats.data.files import open_files
from fedcats.data.layouts import (
    by_class,
    check_classes,
    class_names,
    find_layout,
    folders_in,
    part_folder,
    refuse_links,
)
from fedcats.errors import UserError
from fedcats.seeding import derive_seed
from fedcats.text import shown

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Item:
    """One labelled image: its posix path relative to the source's root, and its class number."""

    path: str
    label: int


@dataclass(frozen=True)
class Take:
    """How many usable images of each class to take from a split, the first ones in order.

    Attributes
    ----------
    train, test
        Numbers by label.
    exact
        Whether fewer are an error.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    exact: bool


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
    take
        When set, not all items are wanted.
    own_drawings
        The images are made by fedcats and need no search for duplicates.
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
    take: Take | None = None
    own_drawings: bool = False

    def image(self, item: Item) -> Image.Image:
        """Read and decode one item, as RGB; raises `BadImage`."""
        return decode(self.read(item.path))


def folder_source(
    root: str | Path,
    test_fraction: float,
    seed: int,
    limit: int | None = None,
    counts: Mapping[str, Sequence[int]] | None = None,
) -> Source:
    """Photos in a folder or a zip archive, in one of the layouts that people have.

    These are ``train/<class>`` and ``test/<class>``, also under other usual names of the two parts
    (``Training``, ``test_set``; ``val`` where there is no test part); only ``<class>`` folders,
    such as Microsoft's PetImages; or files that begin with their class, such as ``cat.0.jpg`` in
    Kaggle's train.zip. Folders around all that are passed through. Classes and files come in the
    order of torchvision's ImageFolder: by name, upper case first, with the files of folders inside
    a class folder included.

    Parameters
    ----------
    root
        The folder or archive.
    test_fraction
        Share of each class that becomes the test part, above 0 and below 1; at least one image
        goes to each side. Not used where the layout has a test part, or with `counts`.
    seed
        Decides that split, and the choice when there is a limit.
    limit
        Largest number of images of each class in each part, chosen at random.
    counts
        ``{"train": [..], "test": [..]}``: the exact number of usable images of each class.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        When the folder does not exist or does not hold two or more classes with images in
        both parts.
    """
    files = open_files(root)
    layout = find_layout(files)
    return arrange(
        Source(
            name="folder",
            note=layout.note,
            classes=layout.classes,
            train=(),
            test=(),
            read=files.read,
            fingerprint=files.fingerprint,
            rejected=tuple(
                (path, why) for path, why in sorted(files.rejected.items()) if layout.holds(path)
            ),
            ignored=tuple(path for path in sorted(files.ignored) if layout.holds(path)),
        ),
        layout.train,
        layout.test,
        seed=seed,
        test_fraction=test_fraction,
        limit=limit,
        counts=counts,
    )


def part_source(root: str | Path, part: str, classes: tuple[str, ...] | None = None) -> Source:
    """Photos of one part alone: a site's for training, or a server's for testing.

    Parameters
    ----------
    root
        The folder: ``part/<class>`` where there is a folder ``part`` (or with another usual name
        of it), else ``<class>``.
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
    files = open_files(root)
    top = part_folder(files, part)
    refuse_links(files, top)
    found = folders_in(files, top)
    if classes is None:
        check_classes(files, found, top)
        classes = class_names(found)
    for name in map(shown, found):
        if name not in classes:
            raise UserError(
                f"data.root={files.where}: class {name!r} is not one of the federation's: "
                f"allowed are {', '.join(classes)}"
            )
    grouped = dict(zip(map(shown, found), by_class(files, top, found), strict=True))
    items = _items([grouped.get(name, []) for name in classes])
    if not items:
        raise UserError(
            f"data.root={files.where}: no images in {part}/<class> or <class> folders "
            f"(classes: {', '.join(classes)})"
        )
    return Source(
        name="folder",
        note="",
        classes=classes,
        train=items if part == "train" else (),
        test=items if part == "test" else (),
        read=files.read,
        fingerprint=files.fingerprint,
        rejected=tuple((path, why) for path, why in sorted(files.rejected.items())),
        ignored=tuple(sorted(files.ignored)),
    )


def arrange(
    source: Source,
    train: Sequence[Sequence[str]],
    test: Sequence[Sequence[str]] | None,
    *,
    seed: int,
    test_fraction: float,
    limit: int | None,
    counts: Mapping[str, Sequence[int]] | None,
) -> Source:
    """Give a source its items: split into two parts where there is only one, and limited.

    Parameters
    ----------
    source
        With its classes, but without items.
    train, test
        For each class, its paths. Without a test part the training part is divided.
    seed, test_fraction, limit, counts
        As in `folder_source`.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        When a class has too few images, or a number is not allowed.
    """
    take = _taken(source.classes, limit, counts)
    if test is not None:
        parts = _items(train), _items(test)
    else:
        for name, paths in zip(source.classes, train, strict=True):
            if len(paths) < 2:
                raise UserError(
                    f"data={source.name}: class {name!r} has {'one image' if paths else 'none'}; "
                    "a split into train and test needs at least two images of each class"
                )
        parts = stratified_split(train, _fractions(test_fraction, source.classes, take), seed)
    return choose(replace(source, train=parts[0], test=parts[1]), take, seed)


def _items(by_class: Sequence[Sequence[str]]) -> tuple[Item, ...]:
    return tuple(Item(path, label) for label, paths in enumerate(by_class) for path in paths)


def stratified_split(
    by_class: Sequence[Sequence[str]], fractions: Sequence[float], seed: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split the paths of each class into train and test, at least one image on each side.

    Parameters
    ----------
    by_class
        For each class, its paths (two or more).
    fractions
        For each class, the share that becomes the test part, rounded to whole images.
    seed
        Decides the choice.

    Returns
    -------
    (train, test)
        Items, by class and in the order given.
    """
    train: list[Item] = []
    test: list[Item] = []
    for label, (paths, fraction) in enumerate(zip(by_class, fractions, strict=True)):
        rng = np.random.default_rng(derive_seed(seed, "split", label))
        num_test = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
        chosen = set(rng.permutation(len(paths))[:num_test].tolist())
        for position, path in enumerate(paths):
            (test if position in chosen else train).append(Item(path, label))
    return tuple(train), tuple(test)


def _fractions(test_fraction: float, classes: Sequence[str], take: Take | None) -> list[float]:
    """Share of the test part for each class: as asked for, or so that the counts fit."""
    if not 0 < test_fraction < 1:
        raise UserError(f"data.test_fraction={test_fraction}: must be above 0 and below 1")
    if take is None or not take.exact:
        return [test_fraction] * len(classes)
    return [test / (train + test) for train, test in zip(take.train, take.test, strict=True)]


def _taken(
    classes: Sequence[str], limit: int | None, counts: Mapping[str, Sequence[int]] | None
) -> Take | None:
    """Check `limit` and `counts` and return what they ask for."""
    if limit is not None and counts is not None:
        raise UserError("data.limit and data.counts: only one of them can be set")
    if limit is not None:
        if limit < 1:
            raise UserError(f"data.limit={limit}: must be at least 1, or null")
        return Take((limit,) * len(classes), (limit,) * len(classes), exact=False)
    if counts is None:
        return None
    fits = set(counts) == set(SPLITS) and all(
        len(numbers) == len(classes) and all(type(n) is int and n >= 1 for n in numbers)
        for numbers in counts.values()
    )
    if not fits:
        shown = {split: list(numbers) for split, numbers in counts.items()}
        raise UserError(
            f"data.counts={shown}: allowed is train and test, each with {len(classes)} numbers "
            f"from 1, for the classes {', '.join(classes)}"
        )
    return Take(tuple(counts["train"]), tuple(counts["test"]), exact=True)


def choose(source: Source, take: Take | None, seed: int) -> Source:
    """Return the source with its items in random order, of which the first usable ones count.

    Unusable files are found only when they are decoded; then the next one takes their place, which
    is why more items are listed than wanted.
    """
    if take is None:
        return source
    shuffled = {}
    for split in SPLITS:
        items: list[Item] = []
        by_label: list[list[Item]] = [[] for _ in source.classes]
        for item in getattr(source, split):
            by_label[item.label].append(item)
        for label, of_class in enumerate(by_label):
            rng = np.random.default_rng(derive_seed(seed, "choice", split, label))
            items += [of_class[i] for i in rng.permutation(len(of_class))]
        shuffled[split] = tuple(items)
    return replace(source, train=shuffled["train"], test=shuffled["test"], take=take)
