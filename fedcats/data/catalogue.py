"""Every source by its name, with its parameters; what opens it is imported when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from fedcats.errors import UserError
from fedcats.limits import Limited, checked, number, optional, share, switch
from fedcats.plugins import blamed, check_call

if TYPE_CHECKING:
    from fedcats.data.download import OnBytes
    from fedcats.data.sources import Source


class Data(Limited):
    """A source of images with its parameters.

    Attributes
    ----------
    name
        In the configuration.
    function
        What opens it, ``module:name``.
    downloaded
        Whether that takes a folder for downloads.
    stream
        What its seed is derived for.
    positive
        Of two classes, the one whose precision and recall are given; None: the second.
    """

    where = "data."
    name: str
    function: str
    downloaded = False
    stream = "split"
    positive: str | int | None

    @property
    def settings(self) -> dict[str, Any]:
        """What the function takes beside a seed."""
        found: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        del found["positive"]  # asked of the scores
        return found

    def open(self, seed: int, downloads: Path, on_download: OnBytes | None = None) -> Source:
        """The source.

        Parameters
        ----------
        seed
            Decides drawings, splits and choices.
        downloads
            Folder for what has to be downloaded.
        on_download
            Called with (bytes there, bytes in all).

        Raises
        ------
        UserError
            When it cannot be had.
        """
        where = {"downloads": downloads, "on_download": on_download} if self.downloaded else {}
        source: Source = resolve_name(self.function)(seed=seed, **where, **self.settings)
        return source


def _positive() -> Any:
    """The name of a class, which may look like a number; no part of what decides about photos."""
    named = checked("the name of one of two classes", lambda v: type(v) in (str, int))
    return optional(named, default=None, repr=False)


def _is_counts(value: Any) -> bool:
    return set(value) == {"train", "test"} and all(
        part and all(type(n) is int and n >= 1 for n in part) for part in value.values()
    )


@dataclass(frozen=True, kw_only=True)
class Synthetic(Data):
    """``data=synthetic``: cats and dogs drawn by the package."""

    name = "synthetic"
    function = "fedcats.data.drawings.source:synthetic_source"
    stream = "drawings"
    train_per_class: int = number(1)
    test_per_class: int = number(1)
    positive: str | int | None = _positive()


@dataclass(frozen=True, kw_only=True)
class Photos(Data):
    """What every source of photos has; see `fedcats.data.sources.folder_source` and `prepare`."""

    limit: int | None = optional(number(1), default=None)
    counts: dict[str, list[int]] | None = optional(
        checked("{train: [..], test: [..]}, a number from 1 for each class", _is_counts),
        default=None,
    )
    max_bad_fraction: float = number(0, 1, default=0.05)
    keep_duplicates: bool = switch(default=False)
    positive: str | int | None = _positive()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.counts is not None:
            raise UserError(
                f"data.limit={self.limit}: only one of data.limit and data.counts can be set; "
                "data.counts=null takes the limit"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Without what is of the decoding."""
        decoding = ("max_bad_fraction", "keep_duplicates")
        return {key: value for key, value in super().settings.items() if key not in decoding}


@dataclass(frozen=True, kw_only=True)
class Folder(Photos):
    """``data=folder`` and ``data=kaggle``: photos in a folder or a zip archive."""

    name = "folder"
    function = "fedcats.data.sources:folder_source"
    root: str
    test_fraction: float = share()


@dataclass(frozen=True, kw_only=True)
class PetImages(Photos):
    """``data=petimages``: downloaded."""

    name = "petimages"
    function = "fedcats.data.downloaded:petimages_source"
    downloaded = True
    test_fraction: float = share()


@dataclass(frozen=True, kw_only=True)
class Hub(Photos):
    """``data=hub`` and ``data=cats_vs_dogs``: tables of the Hugging Face hub."""

    name = "hub"
    function = "fedcats.data.hub:hub_source"
    repo: str
    image: str
    label: str
    train_split: str
    test_split: str | None
    revision: str | None = None
    test_fraction: float = share()


@dataclass(frozen=True, kw_only=True)
class OxfordPets(Photos):
    """``data=oxford_pets``: downloaded, or as torchvision has it in ``root``."""

    name = "oxford_pets"
    function = "fedcats.data.downloaded:oxford_pets_source"
    downloaded = True
    root: str | None


SOURCES: dict[str, Any] = {  # classes of Data
    source.name: source for source in (Synthetic, Folder, PetImages, OxfordPets, Hub)
}
"""Every source of the package, by the name that ``data.name`` has."""


@dataclass(frozen=True, kw_only=True)
class OwnData(Photos):
    """A user's own: ``thing(seed, **parameters) -> Source``, which is checked."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    thing: Callable[..., Any] = field(repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What the function takes beside a seed."""
        return {**self.parameters}

    @property
    def what(self) -> str:
        """What it is called in errors."""
        return f"data.name={self.name}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_call(self.what, self.thing, 0, **self.parameters)

    def open(self, seed: int, downloads: Path, on_download: OnBytes | None = None) -> Source:
        """What the function gives; its files are read, to know what is in them."""
        from fedcats.data.sources import SPLITS, Source

        with blamed(self.what):
            source = self.thing(seed, **self.parameters)
        if not isinstance(source, Source):
            kind = type(source).__name__
            raise UserError(f"{self.what}: gives a {kind}; allowed is a fedcats.data.Source")
        labels = {*range(len(source.classes))}
        for split in SPLITS:
            found = {item.label for item in getattr(source, split)}
            if found != labels or len(labels) < 2:
                raise UserError(
                    f"{self.what}: the {split} items have the labels {sorted(found)}; allowed are "
                    f"all from 0 to {len(labels) - 1}, positions in two classes or more"
                )
        read = source.read

        def guarded(path: str) -> bytes:
            with blamed(self.what):
                return bytes(read(path))

        return replace(source, read=guarded, fingerprint=None)
