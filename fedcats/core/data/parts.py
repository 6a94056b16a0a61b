"""One part of a data set alone: a site has no test photos, a federation's server no others."""

from pathlib import Path

from fedcats.core.data.files import open_files
from fedcats.core.data.sources import (
    Source,
    _by_class,
    _check_classes,
    _folders_in,
    _items,
    _refuse_links,
)
from fedcats.core.errors import UserError


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
    files = open_files(root)
    top = f"{part}/" if _folders_in(files, f"{part}/") else ""
    _refuse_links(files, top)
    found = _folders_in(files, top)
    if classes is None:
        _check_classes(files, found, top)
        classes = tuple(found)
    for name in found:
        if name not in classes:
            raise UserError(
                f"data.root={files.where}: class {name!r} is not one of the federation's: "
                f"allowed are {', '.join(classes)}"
            )
    grouped = dict(zip(found, _by_class(files, top, found), strict=True))
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
