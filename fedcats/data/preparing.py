"""Every image decoded and resized once, into uint8 arrays that all processes read.

A dataset is a folder: ``train.npy`` and ``test.npy``, each (n, 3, size, size) uint8, and
``index.json`` with the classes, files, labels, the sha256 of each file and a checksum of each
image's pixels. The folder's name is a key of what it holds, so it is never out of date; `prepare`
reads all of it, and what is damaged is decoded anew. It is built under another name and renamed
when complete: a process that dies leaves nothing that looks like a dataset. An open `Dataset` holds
a shared lock on ``index.json``; see `fedcats.data.upkeep` for how the cache is kept small.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

import joblib

from fedcats.data import upkeep
from fedcats.data.build import FORMAT, Build, in_order, sha256_of, transform_name, unreadable
from fedcats.data.dataset import DamagedData, Dataset, open_dataset
from fedcats.data.decoding import BadImage
from fedcats.data.sources import SPLITS, Item, Source
from fedcats.data.transforms import SIZE
from fedcats.errors import RunError, UserError
from fedcats.locks import locked
from fedcats.text import shown, size_text


def prepare(
    source: Source,
    cache_root: Path,
    size: int = SIZE,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    max_bad_fraction: float | None = 0.05,
    keep_duplicates: bool = False,
    max_bytes: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Decode a source into the cache, or open and check it there.

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
    say
        Called with a line when what is there has to be decoded anew, and for what is dropped.

    Returns
    -------
    Dataset

    Raises
    ------
    UserError
        When more than `max_bad_fraction` of the files are unusable, no image of a class is left
        in one of the splits, or the source asks for more images than there are.
    RunError
        When a file changes while it is read, or the cache cannot be read or written.
    """
    with ThreadPoolExecutor(workers or joblib.cpu_count()) as pool:
        digests = _digests(source, pool) if source.fingerprint is None else None
        key = _key(source, digests, size, keep_duplicates)
        folder = cache_root / key
        upkeep.remove_leftovers(cache_root)
        dataset = _open_if_whole(folder)
        if dataset is None:
            try:
                cache_root.mkdir(parents=True, exist_ok=True)
                with locked(upkeep.lock_of(folder), keep=False):
                    # Perhaps another process has made it meanwhile.
                    dataset = _open_if_whole(folder, say)
                    if dataset is None:
                        build = Build(source, size, keep_duplicates, pool, on_progress)
                        build.into(folder, digests)
                        dataset = open_dataset(folder)
            except OSError as error:
                raise RunError(
                    f"the image cache {cache_root} cannot be written: {error.strerror or error}"
                ) from None
            if max_bytes is not None:
                for gone in upkeep.drop_unused(cache_root, max_bytes):
                    say(
                        f"{size_text(gone.size)} of images decoded before, used longest ago, are "
                        f"dropped, above store.images_gb: {shown(gone.what)}"
                    )
    upkeep.note_use(folder)
    if max_bad_fraction is not None:
        _check_usable(dataset, source, max_bad_fraction)
    return dataset


def _open_if_whole(folder: Path, say: Callable[[str], None] = lambda _: None) -> Dataset | None:
    """None where there is none, or where it has to be decoded anew: says why."""
    try:
        dataset = open_dataset(folder)
        dataset.verify()
    except DamagedData as error:
        if folder.exists():
            say(str(error))
        return None
    return dataset


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
