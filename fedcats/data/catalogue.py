"""Every source by its name, and the public data sets among them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedcats.data.download import OnBytes
from fedcats.data.downloaded import oxford_pets_source, petimages_source
from fedcats.data.drawings.source import synthetic_source
from fedcats.data.hub import hub_source
from fedcats.data.sources import Source, folder_source
from fedcats.errors import UserError

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
