"""Every source by its name, and the public data sets among them."""

import logging
import shutil
import tarfile
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcats.core.data.decoding import BadImage
from fedcats.core.data.download import OnBytes, fetch
from fedcats.core.data.drawings import synthetic_source
from fedcats.core.data.files import FolderFiles, shown
from fedcats.core.data.sources import Source, arrange, folder_source
from fedcats.errors import UserError

Counts = Mapping[str, Sequence[int]]

PETIMAGES_URL = (
    "https://download.microsoft.com/download/3/E/1/"
    "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
)
PETIMAGES_SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"

OXFORD_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
OXFORD_MD5 = {
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
}


def petimages_source(
    test_fraction: float,
    seed: int,
    downloads: Path,
    limit: int | None = None,
    counts: Counts | None = None,
    on_download: OnBytes | None = None,
) -> Source:
    """Microsoft's PetImages, 25,000 photos of Kaggle's competition, downloaded once (787 MB).

    Parameters
    ----------
    downloads
        Folder for the archive.
    on_download
        Called with (bytes there, bytes in all).
    test_fraction, seed, limit, counts
        As in `folder_source`, which also takes an archive that was fetched by other means.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        When it cannot be downloaded.
    """
    instead = (
        "get kagglecatsanddogs_5340.zip elsewhere and use data=kaggle "
        "data.root=kagglecatsanddogs_5340.zip"
    )
    archive = downloads / "kagglecatsanddogs_5340.zip"
    fetch(PETIMAGES_URL, archive, f"sha256:{PETIMAGES_SHA256}", instead, on_download)
    source = folder_source(archive, test_fraction, seed, limit, counts)
    return replace(source, name="petimages", note="Microsoft's PetImages")


def oxford_pets_source(
    root: str | Path | None,
    seed: int,
    downloads: Path,
    limit: int | None = None,
    counts: Counts | None = None,
    on_download: OnBytes | None = None,
) -> Source:
    """Oxford-IIIT Pet by species: 37 breeds as cat and dog, in the data set's own two parts.

    Parameters
    ----------
    root
        Folder that holds ``oxford-iiit-pet``, as `torchvision.datasets.OxfordIIITPet` takes it;
        None downloads it once (792 MB).
    seed, limit, counts
        As in `folder_source`.
    downloads
        Folder for downloads.
    on_download
        Called with (bytes there, bytes in all).

    Returns
    -------
    Source
        Its training part is the data set's ``trainval``.

    Raises
    ------
    UserError
        When the data set cannot be downloaded or is not complete.
    """
    if root is None:
        base = _download_oxford_pets(downloads, on_download)
    else:
        base = Path(root).expanduser() / "oxford-iiit-pet"
    if not (base / "images").is_dir():
        raise UserError(
            f"data.root={root}: has no oxford-iiit-pet/images, which torchvision's OxfordIIITPet "
            "puts there; null downloads the data set"
        )
    by_part = {}
    for part in ("trainval", "test"):
        species: dict[str, list[str]] = {"1": [], "2": []}  # 1 is cat, 2 is dog
        for name, number in _oxford_list(base / "annotations" / f"{part}.txt"):
            species[number].append(f"{name}.jpg")
        by_part[part] = [species["1"], species["2"]]
    files = FolderFiles(base / "images")
    wanted = {path for lists in by_part.values() for paths in lists for path in paths}
    source = arrange(
        Source(
            name="oxford_pets",
            note="Oxford-IIIT Pet by species",
            classes=("cat", "dog"),
            train=(),
            test=(),
            read=files.read,
            rejected=tuple((p, why) for p, why in sorted(files.rejected.items()) if p in wanted),
        ),
        by_part["trainval"],
        by_part["test"],
        seed=seed,
        test_fraction=0.5,  # not used: the data set has a test part
        limit=limit,
        counts=counts,
    )
    bad = {path for path, _ in source.rejected}
    return replace(
        source,
        train=tuple(item for item in source.train if item.path not in bad),
        test=tuple(item for item in source.test if item.path not in bad),
    )


def _oxford_list(path: Path) -> list[tuple[str, str]]:
    """Return (name, species) from lines like ``Abyssinian_100 1 1 1``."""
    entries = []
    try:
        for line in path.read_text().splitlines():
            name, _, species, _ = line.split()
            if "/" in name or species not in ("1", "2"):
                raise ValueError(f"the line {line!r}")
            entries.append((name, species))
    except (OSError, ValueError) as error:
        raise UserError(f"data.root: {path} cannot be used: {error}") from None
    return entries


def _download_oxford_pets(downloads: Path, on_download: OnBytes | None) -> Path:
    base = downloads / "oxford-iiit-pet"
    if base.is_dir():
        return base
    instead = "unpack it elsewhere as torchvision does and name the folder: data.root=FOLDER"
    part = downloads / "oxford-iiit-pet.part"
    shutil.rmtree(part, ignore_errors=True)
    for name, md5 in OXFORD_MD5.items():
        archive = fetch(OXFORD_URL + name, downloads / name, f"md5:{md5}", instead, on_download)
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")  # refuses what would lead out of the folder
    part.rename(base)
    return base


def hub_source(
    repo: str,
    image: str,
    label: str,
    train_split: str,
    test_split: str | None,
    test_fraction: float,
    seed: int,
    limit: int | None = None,
    counts: Counts | None = None,
) -> Source:
    """Return a data set of the Hugging Face hub, or a folder in the hub's layout.

    The library `datasets` downloads it (with progress, and resumed) and runs no code from it.

    Parameters
    ----------
    repo
        Such as ``microsoft/cats_vs_dogs``, or a folder.
    image, label
        Names of the two columns.
    train_split, test_split
        Names of the parts; without a test part the training part is divided.
    test_fraction, seed, limit, counts
        As in `folder_source`.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        When it cannot be loaded, or has no such column.
    """
    if not repo.strip():
        raise UserError("data.repo=: is empty; allowed is a data set of the hub, or a folder")
    local = Path(repo).expanduser()
    tables = _Tables(str(local.resolve()) if local.is_dir() else repo, image)
    parts = [_hub_part(tables, split, label) for split in (train_split, test_split) if split]
    classes = parts[0].classes
    if any(part.classes != classes for part in parts):
        raise UserError(f"data.repo={repo}: {train_split} and {test_split} have other classes")
    if len(classes) < 2:
        raise UserError(f"data.repo={repo}: fewer than two classes in the column {label!r}")
    return arrange(
        Source(
            name="hub",
            note=local.resolve().name if local.is_dir() else repo,
            classes=classes,
            train=(),
            test=(),
            read=tables.read,
            rejected=tuple(entry for part in parts for entry in part.rejected),
        ),
        parts[0].by_class,
        parts[1].by_class if test_split else None,
        seed=seed,
        test_fraction=test_fraction,
        limit=limit,
        counts=counts,
    )


class _Tables:
    """The splits of a hub data set; reads an image from a path such as ``train/000012``."""

    def __init__(self, repo: str, image: str) -> None:
        self.repo = repo
        self.image = image
        self.splits: dict[str, Any] = {}
        self._lock = threading.Lock()  # nobody promises that the tables can be read by several

    def load(self, split: str) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError("data=hub needs the package datasets: pip install datasets") from None
        quiet = logging.getLogger("huggingface_hub")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # no line for each of its attempts
        try:
            table = datasets.load_dataset(self.repo, split=split)
            if self.image not in table.column_names:
                raise UserError(
                    f"data.image={self.image}: {self.repo} has the columns "
                    f"{', '.join(table.column_names)}"
                )
            self.splits[split] = table.cast_column(self.image, datasets.Image(decode=False))
            self._refuse_strangers(split)
        except UserError:
            raise
        except Exception as error:  # of many kinds, from three libraries
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"data.repo={self.repo}: the split {split!r} cannot be loaded ({reason}); copy "
                "the data set to a folder and name that: data.repo=FOLDER"
            ) from None
        finally:
            quiet.setLevel(level)
        return self.splits[split]

    def _refuse_strangers(self, split: str) -> None:
        """Of a folder's files take none that `FolderFiles` would not, such as our own figures."""
        folder = Path(self.repo)
        if not folder.is_dir():
            return
        listed = set(FolderFiles(folder).images)
        chunks = self.splits[split].data[self.image].chunks
        paths = (path for chunk in chunks for path in chunk.field("path").to_pylist())
        for path in filter(None, paths):
            if Path(path).is_relative_to(folder) and (
                (name := Path(path).relative_to(folder).as_posix()) not in listed
            ):
                raise UserError(
                    f"data.repo={self.repo}: {name} is no photo of a data set, but would be taken "
                    f"for one; use data=folder data.root={self.repo}, or move it elsewhere"
                )

    def read(self, path: str) -> bytes:
        split, _, row = path.partition("/")
        with self._lock:
            value = self.splits[split][int(row)][self.image]
        if not value or (value["bytes"] is None and value["path"] is None):
            raise BadImage("no image in the table")
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class _HubPart:
    classes: tuple[str, ...]
    by_class: list[list[str]]
    rejected: list[tuple[str, str]]


def _hub_part(tables: _Tables, split: str, label: str) -> _HubPart:
    table = tables.load(split)
    if label not in table.column_names:
        raise UserError(
            f"data.label={label}: {tables.repo} has the columns {', '.join(table.column_names)}"
        )
    values = table[label][:]
    names = getattr(table.features[label], "names", None)
    if names is None:
        classes = tuple(sorted({str(value) for value in values if value is not None}))
        number: Mapping[Any, int] = {name: i for i, name in enumerate(classes)}
        values = [None if value is None else str(value) for value in values]
    else:
        classes = tuple(names)
        number = {i: i for i in range(len(names))}
    by_class: dict[int, list[str]] = defaultdict(list)
    rejected = []
    for row, value in enumerate(values):
        path = f"{split}/{row:06d}"
        if value in number:
            by_class[number[value]].append(path)
        else:
            rejected.append((path, "no label"))
    return _HubPart(
        tuple(map(shown, classes)), [by_class[i] for i in range(len(classes))], rejected
    )


SOURCES: dict[str, Callable[..., Source]] = {
    "synthetic": synthetic_source,
    "folder": folder_source,
    "petimages": petimages_source,
    "oxford_pets": oxford_pets_source,
    "hub": hub_source,
}
"""Every source, by the name that ``data.name`` has."""

_DOWNLOADED = ("petimages", "oxford_pets")


def make_source(
    name: str, *, seed: int, downloads: Path, on_download: OnBytes | None = None, **params: Any
) -> Source:
    """Return the source called `name`.

    Parameters
    ----------
    name
        One of `SOURCES`.
    seed
        Decides drawings, splits and choices.
    downloads
        Folder for what has to be downloaded.
    on_download
        Called with (bytes there, bytes in all).
    **params
        What the source takes beyond these.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        For an unknown name, and what the source raises.
    """
    if name not in SOURCES:
        raise UserError(f"data.name={name}: must be one of {', '.join(SOURCES)}")
    if name in _DOWNLOADED:
        params |= {"downloads": downloads, "on_download": on_download}
    return SOURCES[name](seed=seed, **params)
