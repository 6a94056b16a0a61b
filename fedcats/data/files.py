"""The files of a folder or of a zip archive, listed and read without trusting either.

Nothing is unpacked: members of an archive are read where they are, so that no name and no link in
it can reach a place outside.
"""

import functools
import hashlib
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

from fedcats.data.decoding import BadImage
from fedcats.data.kinds import EXTENSIONS, START_BYTES, kind_of
from fedcats.data.written import HOME, is_marker, leave_out_written
from fedcats.errors import UserError, first_line
from fedcats.home import home

MAX_FILE_BYTES = 200_000_000
"""Files larger than this are not read."""

MAX_ARCHIVE_FILES = 1_000_000
MAX_ARCHIVE_BYTES = 100_000_000_000
"""Archives that claim to hold more than this are refused."""

# Beside what begins with a dot: what file managers, network storage and file systems leave behind.
_NOT_OF_THE_DATA = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "__macosx"),
        *("lost+found", "lost.dir", "system volume information", "__pycache__"),
        *("$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", "network trash folder"),
        *("@eadir", "#snapshot", "@recently-snapshot"),
    )
)
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates, line and paragraph separators
_LEAVES = "link that leaves the folder"
_TOO_LARGE = f"larger than {MAX_FILE_BYTES} bytes"


class Files(Protocol):
    """Files below a root, by posix path relative to it.

    Attributes
    ----------
    where
        The folder or archive, for messages.
    images
        Files that look like images, by their name or by how they begin; sorted as torchvision's
        ImageFolder sorts them, by folder and then by name.
    folders
        Every folder, empty ones too, but none that only fedcats wrote into.
    rejected
        What is not usable, and why, found without reading it.
    linked_folders
        Those of the rejected that are links to folders elsewhere.
    ignored
        Files that do not look like images.
    fingerprint
        Stands for the content of all files; None where they have to be read to know it.
    """

    where: Path
    images: list[str]
    folders: set[str]
    rejected: dict[str, str]
    linked_folders: set[str]
    ignored: list[str]
    fingerprint: str | None

    def read(self, path: str) -> bytes:
        """Return the content of a file, or raise `BadImage`."""


def shown(name: str) -> str:
    """Return a name as text of one line: what is no UTF-8, line ends and the like are escaped."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _NO_TEXT else c for c in name)


def open_files(root: str | Path) -> Files:
    """List a folder, or a zip archive.

    Raises
    ------
    UserError
        When `root` is neither.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        return FolderFiles(root)
    if not root.exists():
        raise UserError(f"data.root={root}: does not exist")
    if not zipfile.is_zipfile(root):
        raise UserError(f"data.root={root}: is neither a folder nor a zip archive")
    return ZipFiles(root)


class FolderFiles:
    """The files of a folder; see `Files`."""

    def __init__(self, root: Path) -> None:
        self.where = root.resolve()
        self.images: list[str] = []
        self.folders: set[str] = set()
        self.rejected: dict[str, str] = {}
        self.linked_folders: set[str] = set()
        self.ignored: list[str] = []
        self.fingerprint: str | None = None
        self._home = home().resolve()
        self._markers: list[str] = []
        self._list(self.where)
        leave_out_written(self, self._markers)
        self.images.sort(key=_folder_then_name)

    def read(self, path: str) -> bytes:
        """Return the content of a file, or raise `BadImage`."""
        try:
            with (self.where / path).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise BadImage(_TOO_LARGE)
        return content

    def _list(self, folder: Path) -> None:
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(f"data.root: {folder} cannot be listed: {error.strerror}") from None
        for path in entries:
            name = path.relative_to(self.where).as_posix()
            if is_marker(path.name):
                self._markers.append(name)
            if _is_hidden(path.name):
                continue
            if path == self._home:
                self._markers.append(f"{name}/{HOME}")
                continue
            if path.is_symlink() and not self._stays_inside(path):
                self.rejected[name] = _LEAVES
                if path.is_dir():
                    self.linked_folders.add(name)
            elif path.is_symlink() and not path.is_file():
                self.rejected[name] = "link to something that is no file"
            elif path.is_dir():
                self.folders.add(name)
                self._list(path)
            elif not path.is_file():  # reading from a named pipe would wait for ever
                self.rejected[name] = "not a regular file"
            elif _looks_like_an_image(name, functools.partial(_start_of, path)):
                self.images.append(name)
            else:
                self.ignored.append(name)

    def _stays_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.where)


class ZipFiles:
    """The members of a zip archive; see `Files`."""

    def __init__(self, path: Path) -> None:
        self.where = path.resolve()
        self.images: list[str] = []
        self.folders: set[str] = set()
        self.rejected: dict[str, str] = {}
        self.linked_folders: set[str] = set()
        self.ignored: list[str] = []
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._markers: list[str] = []
        try:
            self._archive = zipfile.ZipFile(path)
            with path.open("rb") as file:
                self.fingerprint: str | None = (
                    f"zip {hashlib.file_digest(file, 'sha256').hexdigest()}"
                )
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise UserError(f"data.root={path}: the archive cannot be read: {error}") from None
        members = self._archive.infolist()
        claimed = sum(member.file_size for member in members)
        if len(members) > MAX_ARCHIVE_FILES or claimed > MAX_ARCHIVE_BYTES:
            raise UserError(
                f"data.root={path}: the archive claims {len(members)} files of {claimed} bytes in "
                f"all; allowed are {MAX_ARCHIVE_FILES} files and {MAX_ARCHIVE_BYTES} bytes"
            )
        for member in members:
            self._add(member)
        leave_out_written(self, self._markers)
        self.images.sort(key=_folder_then_name)

    def read(self, path: str) -> bytes:
        """Return the content of a member, or raise `BadImage`."""
        return self._read(self._members[path], MAX_FILE_BYTES + 1)

    def _read(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        try:
            with self._archive.open(member) as file:
                content = file.read(limit)
        except Exception as error:  # a hostile archive can raise nearly anything in zipfile
            reason = first_line(error)
            raise BadImage(f"cannot be unpacked: {reason}") from None
        if len(content) > MAX_FILE_BYTES:
            raise BadImage(_TOO_LARGE)
        return content

    def _add(self, member: zipfile.ZipInfo) -> None:
        name = member.filename.replace("\\", "/")
        path = PurePosixPath(name)
        for depth, part in enumerate(path.parts, 1):
            if is_marker(part):
                self._markers.append("/".join(path.parts[:depth]))
        if any(_is_hidden(part) for part in path.parts if part != ".."):
            return
        if member.is_dir():
            self._add_folders(path)
        elif path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            self.rejected[name] = "unsafe name"
        elif str(path) in self._members:
            self.rejected[f"{path} (again)"] = "name occurs twice in the archive"
        elif stat.S_ISLNK(member.external_attr >> 16):
            self.rejected[str(path)] = "link in an archive"
        elif member.flag_bits & 1:
            self.rejected[str(path)] = "encrypted"
        elif member.file_size > MAX_FILE_BYTES:
            self.rejected[str(path)] = _TOO_LARGE
        else:
            self._members[str(path)] = member
            self._add_folders(path.parent)
            looks = _looks_like_an_image(str(path), lambda: self._read(member, START_BYTES))
            (self.images if looks else self.ignored).append(str(path))

    def _add_folders(self, folder: PurePosixPath) -> None:
        self.folders.update(str(path) for path in (folder, *folder.parents) if str(path) != ".")


def _folder_then_name(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _is_hidden(name: str) -> bool:
    """Hidden files, and those that file managers leave behind."""
    return name.startswith(".") or name.lower() in _NOT_OF_THE_DATA


def _looks_like_an_image(name: str, start: Callable[[], bytes]) -> bool:
    """By its name, else by how it begins."""
    if PurePosixPath(name).suffix.lower() in EXTENSIONS:
        return True
    try:
        return kind_of(start()) is not None
    except (OSError, BadImage):
        return False


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)
