"""The files of a folder or of a zip archive, listed and read without trusting either.

Nothing is unpacked: members of an archive are read where they are, so that no name and no link in
it can reach a place outside.
"""

import functools
import hashlib
import itertools
import os
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fedcats.data.decoding import BadImage
from fedcats.data.kinds import EXTENSIONS, START_BYTES, kind_of
from fedcats.data.written import HOME, is_marker, leave_out_written
from fedcats.errors import UserError, first_line
from fedcats.home import home
from fedcats.text import shown

MAX_FILE_BYTES = 200_000_000
"""Files larger than this are not read."""

MAX_FILES, MAX_DEPTH, MAX_PATH = 1_000_000, 64, 1024
"""Files and folders in all, levels of folders, characters of a path: more is refused."""

MAX_ARCHIVE_BYTES, MAX_LIST_BYTES = 100_000_000_000, 250_000_000
"""What an archive may claim to hold, and how long the list of its files may be."""

# Beside what begins with a dot: what file managers, network storage and file systems leave behind.
_NOT_OF_THE_DATA = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "__macosx"),
        *("lost+found", "lost.dir", "system volume information", "__pycache__"),
        *("$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", "network trash folder"),
        *("@eadir", "#snapshot", "@recently-snapshot"),
    )
)
_LEAVES = "link that leaves the folder"
_TOO_LARGE = f"larger than {MAX_FILE_BYTES} bytes"


class Files:
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

    def __init__(self, where: Path) -> None:
        self.where = where.resolve()
        self.images: list[str] = []
        self.folders: set[str] = set()
        self.rejected: dict[str, str] = {}
        self.linked_folders: set[str] = set()
        self.ignored: list[str] = []
        self.fingerprint: str | None = None
        self._markers: list[str] = []
        self._list()
        leave_out_written(self, self._markers)
        self.images.sort(key=_folder_then_name)

    def read(self, path: str) -> bytes:
        """Return the content of a file, or raise `BadImage`."""
        raise NotImplementedError

    @functools.cached_property
    def inside(self) -> dict[str, "Inside"]:
        """What is in each folder, ``""`` or ``"some/folder/"``."""
        found: dict[str, Inside] = defaultdict(Inside)
        for path in sorted(self.folders):
            folder, name = _folder_then_name(path)
            found[folder and f"{folder}/"].folders.append(name)
        for path in self.images:
            folder, _ = _folder_then_name(path)
            found[folder and f"{folder}/"].images.append(path)
        return found

    def _list(self) -> None:
        """Fill the attributes, and the paths of the markers (see `is_marker`)."""
        raise NotImplementedError

    def _check_limits(self, path: str, count: int) -> None:
        """Raise where listing on would take a hostile amount of time and memory."""
        excess = ""
        if count > MAX_FILES:
            excess = f"more than {MAX_FILES:,} files and folders"
        elif len(path) > MAX_PATH:
            excess = f"a path of {len(path):,} characters, {shown(path[:40])}…"
        elif path.count("/") >= MAX_DEPTH:
            excess = f"folders more than {MAX_DEPTH} deep, {shown(path[:40])}…"
        if excess:
            raise UserError(
                f"data.root={self.where}: holds {excess}; allowed are {MAX_FILES:,} files and "
                f"folders, and paths of {MAX_PATH:,} characters and {MAX_DEPTH} levels"
            )


@dataclass
class Inside:
    """What is directly in a folder: names of folders, sorted, and paths of images."""

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


def open_files(root: str | Path) -> Files:
    """List a folder, or a zip archive.

    Raises
    ------
    UserError
        When `root` is neither, or holds more than the limits here allow.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        return FolderFiles(root)
    if not root.exists():
        raise UserError(f"data.root={root}: does not exist")
    if not (root.is_file() and zipfile.is_zipfile(root)):  # a pipe would be waited for
        raise UserError(f"data.root={root}: is neither a folder nor a zip archive")
    return ZipFiles(root)


class FolderFiles(Files):
    """The files of a folder; see `Files`."""

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

    def _list(self) -> None:
        own, count, waiting = os.path.realpath(home()), itertools.count(1), [""]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(self.where / folder) as entries:
                    for entry in entries:
                        path = f"{folder}{entry.name}"
                        self._check_limits(path, next(count))
                        if entry.path == own:
                            self._markers.append(f"{path}/{HOME}")
                        elif self._add(path, entry):
                            waiting.append(f"{path}/")
            except OSError as error:
                at = self.where / folder
                raise UserError(f"data.root: {at} cannot be listed: {error.strerror}") from None

    def _add(self, path: str, entry: os.DirEntry[str]) -> bool:
        """Take note of an entry; whether it is a folder to be listed too."""
        if is_marker(entry.name):
            self._markers.append(path)
        if _is_hidden(entry.name):
            return False
        if entry.is_symlink() and not self._stays_inside(entry.path):
            self.rejected[path] = _LEAVES
            if os.path.isdir(entry.path):  # noqa: PTH112  (an entry's own way fails on loops)
                self.linked_folders.add(path)
        elif entry.is_symlink() and not os.path.isfile(entry.path):  # noqa: PTH113
            self.rejected[path] = "link to something that is no file"
        elif entry.is_dir():
            self.folders.add(path)
            return True
        elif not entry.is_file():  # reading from a named pipe would wait for ever
            self.rejected[path] = "not a regular file"
        elif _looks_like_an_image(path, functools.partial(_start_of, Path(entry.path))):
            self.images.append(path)
        else:
            self.ignored.append(path)
        return False

    def _stays_inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.where)


class ZipFiles(Files):
    """The members of a zip archive; see `Files`."""

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

    def _list(self) -> None:
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            with self.where.open("rb") as file:
                _refuse_long_list(file)
                self.fingerprint = f"zip {hashlib.file_digest(file, 'sha256').hexdigest()}"
            self._archive = zipfile.ZipFile(self.where)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise UserError(
                f"data.root={self.where}: the archive cannot be read: {error}"
            ) from None
        members = self._archive.infolist()
        if (claimed := sum(member.file_size for member in members)) > MAX_ARCHIVE_BYTES:
            raise UserError(
                f"data.root={self.where}: the archive claims to hold {claimed:,} bytes; allowed "
                f"are {MAX_ARCHIVE_BYTES:,}"
            )
        for count, member in enumerate(members, 1):
            name = member.filename.replace("\\", "/")
            self._check_limits(name.rstrip("/"), count)
            self._add(name, member)

    def _add(self, name: str, member: zipfile.ZipInfo) -> None:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        path = "/".join(parts)
        for depth, part in enumerate(parts, 1):
            if is_marker(part):
                self._markers.append("/".join(parts[:depth]))
        if not parts or any(_is_hidden(part) for part in parts if part != ".."):
            return
        if member.is_dir():
            self._add_folder(path)
        elif name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
            self.rejected[name] = "unsafe name"
        elif path in self._members:
            self.rejected[f"{path} (again)"] = "name occurs twice in the archive"
        elif stat.S_ISLNK(member.external_attr >> 16):
            self.rejected[path] = "link in an archive"
        elif member.flag_bits & 1:
            self.rejected[path] = "encrypted"
        elif member.file_size > MAX_FILE_BYTES:
            self.rejected[path] = _TOO_LARGE
        else:
            self._members[path] = member
            self._add_folder(path.rpartition("/")[0])
            looks = _looks_like_an_image(path, lambda: self._read(member, START_BYTES))
            (self.images if looks else self.ignored).append(path)

    def _add_folder(self, folder: str) -> None:
        while folder and folder not in self.folders:
            self.folders.add(folder)
            folder = folder.rpartition("/")[0]


def _refuse_long_list(file: BinaryIO) -> None:
    """Before zipfile reads the whole list of an archive's files, half a kilobyte of memory each."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MAX_LIST_BYTES:  # type: ignore[attr-defined]
        raise ValueError(f"its list of files is longer than {MAX_LIST_BYTES:,} bytes")
    file.seek(0)


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
