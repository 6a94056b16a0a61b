"""Sources that are downloaded: Microsoft's PetImages, Oxford-IIIT Pet."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

from fedcats.data.download import OnBytes, fetch
from fedcats.data.files import FolderFiles
from fedcats.data.hub import Counts
from fedcats.data.sources import Source, arrange, folder_source
from fedcats.errors import UserError

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
