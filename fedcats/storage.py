"""The content-addressed store of client updates: what was trained once is found again.

One file per entry, ``<key>.safetensors``: the tensors, and in the header the JSON metadata, a
checksum over both and one over that and the key, so that a copy under another name is noticed.
Earlier versions wrote no such one: what is read for a use that it fits is written again with it.

A file appears under its name only when it is whole (written aside, renamed), so a killed process
leaves at worst a temporary file. All locks are the operating system's: they go with their process,
however it ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
from torch import Tensor

from fedcats.errors import RunError, first_line
from fedcats.locks import locked, locked_now, open_lock
from fedcats.tensors import digest, remove_stale, save

_DAMAGE = (ValueError, KeyError, safetensors.SafetensorError)  # of a file that can be read
State = Literal["whole", "unbound", "damaged", "unreadable"]
"""Of an entry: unbound, it is whole, but does not name its key."""

CHECKPOINT = "part-"  # before the key of the update that a checkpoint belongs to


def content_key(description: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON description: any change in it gives another key."""
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What the store holds under one key: tensors by state-dict key, and JSON metadata.

    Attributes
    ----------
    digest
        Of the tensors, by `fedcats.tensors.digest`.
    bound
        Whether it names its key; what earlier versions wrote does not.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    digest: str = ""
    bound: bool = True


Fits = Callable[[Entry], bool]
"""Whether an entry that does not name its key can be the one that is asked for."""


def says(about: Mapping[str, Any]) -> Fits:
    """Whether an entry's metadata say nothing else than this, of what they have."""
    return lambda entry: all(entry.meta.get(name, value) == value for name, value in about.items())


@dataclass(frozen=True)
class Listing:
    """One line of `Store.entries`: size in bytes, last use in seconds since the epoch."""

    key: str
    path: Path
    size: int
    used: float
    meta: dict[str, Any]
    inode: int


class Store:
    """Entries under ``root``; safe with several processes, kills and a full disk.

    Parameters
    ----------
    root
        Folder; made when missing.
    max_bytes
        When the entries grow beyond it, those used longest ago are dropped, but none that a
        living process holds (see `hold`). None: no limit.

    Attributes
    ----------
    damaged
        Keys of entries that this object found damaged and removed.
    """

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.damaged: list[str] = []
        self._seen = 0  # bytes of the entries when they were last looked through
        self._since = math.inf  # bytes written since then
        self._held: dict[str, list[str]] = {}
        self._holder: int | None = None
        self._holder_file = root / "held" / uuid.uuid4().hex
        try:
            for folder in (root, root / "locks", root / "held"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"store {root}: cannot be made: {error.strerror}") from error

    def path(self, key: str) -> Path:
        """Where the entry is or would be."""
        return self.root / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether an entry of that key is there (whole or damaged)."""
        return self.path(key).is_file()

    def get(self, key: str, fits: Fits | None = None) -> Entry | None:
        """The entry, checked against its checksums; None when there is none, or another user's.

        A damaged entry, or another key's, is removed, noted in `damaged`, and counts as missing.

        Raises
        ------
        RunError
            When it cannot be read, which may be for a moment only; it is kept.
        """
        path = self.path(key)
        try:
            inode = path.stat().st_ino
            entry = _read(path)
            if not entry.bound and fits and not fits(entry):
                raise ValueError("it is another key's")
        except (FileNotFoundError, PermissionError):
            return None
        except _DAMAGE:
            self.damaged.append(key)
            self.remove(key, inode)
            return None
        except OSError as error:
            raise RunError(f"store {self.root}: {path.name} cannot be read: {error}") from error
        if not entry.bound and fits:
            with contextlib.suppress(RunError):  # a full disk, or another user's folder
                self.put(key, entry.tensors, entry.meta, entry.digest)
        with contextlib.suppress(OSError):  # another user's, or a disk that is only read
            os.utime(path)  # for the order in which entries are dropped
        return entry

    def put(
        self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], sha256: str = ""
    ) -> None:
        """Keep an entry; ``sha256`` is the tensors' digest, where it is known already.

        Raises
        ------
        RunError
            When the disk is full, or not to be written; nothing is left behind then.
        """
        text = json.dumps(meta, sort_keys=True)
        checksum = _checksum(sha256 or digest(tensors), text)
        header = {"meta": text, "checksum": checksum, "bound": _checksum(key, checksum)}
        try:
            contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
            save(contiguous, self.path(key), header)
        except (OSError, safetensors.SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
            reason = "the disk is full" if full else str(error)
            raise RunError(f"store {self.root}: cannot write an entry: {reason}") from error
        if self.max_bytes is None:
            return
        # Thousands of small entries must not all be looked through for each new one; what other
        # processes have written meanwhile is noticed a little later.
        self._since += sum(value.nbytes for value in tensors.values())
        if self._seen + self._since > self.max_bytes or self._since > self.max_bytes / 20:
            self.evict(keep=key)

    def remove(self, key: str, inode: int | None = None) -> None:
        """Drop an entry if it is there, and, where it is given, has this inode.

        What another user does not let go of stays.
        """
        path = self.path(key)
        with contextlib.suppress(OSError):
            if inode in (None, path.stat().st_ino):  # else it has been replaced by now
                path.unlink()

    def entries(self) -> list[Listing]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self.root.glob("*.safetensors"):
            try:
                status = path.stat()
                with _opened(path) as file:
                    meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            except FileNotFoundError:
                continue
            except _DAMAGE:
                meta = {"kind": "damaged"}
            except OSError:
                meta = {"kind": "unreadable"}
            found.append(
                Listing(path.stem, path, status.st_size, status.st_mtime, meta, status.st_ino)
            )
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    @contextlib.contextmanager
    def claim(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the right to compute ``key``; other processes wait. A kill gives it back.

        ``on_wait`` is called once when another process has it.
        """
        with locked(self.root / "locks" / key, on_wait, keep=False):
            yield

    def hold(self, keys: Iterable[str], group: str = "run") -> None:
        """Keep entries (and the checkpoints on the way to them), present or to come.

        No process drops them before `release` or the end of this process. A second call with the
        same ``group`` replaces the first.
        """
        with self._locked():
            if self._holder is None:
                self._holder = open_lock(self._holder_file)
                fcntl.flock(self._holder, fcntl.LOCK_EX)
            self._held[group] = list(keys)
            os.ftruncate(self._holder, 0)
            os.pwrite(self._holder, json.dumps(self._held).encode(), 0)

    def release(self) -> None:
        """Take back all that `hold` asked for."""
        if self._holder is not None:
            _unlinked(self._holder_file)
            os.close(self._holder)
            self._holder = None
        self._held = {}

    def evict(self, keep: str = "", limit: int | None = None) -> None:
        """Drop the entries used longest ago until all fit into ``limit`` (here: `max_bytes`).

        And what killed processes left: temporary files, locks.
        """
        for path in (self.root / "locks").glob("*"):
            with contextlib.suppress(OSError, RunError), locked_now(path, keep=False):
                pass
        remove_stale(self.root)
        limit = self.max_bytes if limit is None else limit
        if limit is None:
            return
        # A run is done by then: where another user's files cannot be opened, nothing is dropped.
        with contextlib.suppress(OSError, RunError), self._locked():
            held = self._held_by_all() | {keep}
            files = self._files()
            self._seen = sum(size for _, _, size in files)
            self._since = 0.0
            excess = self._seen - limit
            for _, path, size in sorted(files):
                if excess <= 0:
                    break
                if path.stem.removeprefix(CHECKPOINT) not in held and _unlinked(path):
                    excess -= size
                    self._seen -= size

    def sizes(self) -> dict[str, int]:
        """Bytes of each entry by key, without the checkpoints."""
        found = {path.stem: size for _, path, size in self._files()}
        return {key: size for key, size in found.items() if not key.startswith(CHECKPOINT)}

    def _files(self) -> list[tuple[float, Path, int]]:
        """Of each entry when it was last used, where it is, and its bytes."""
        found = []
        for path in self.root.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, path, status.st_size))
        return found

    def verify(self) -> Iterator[tuple[Listing, State]]:
        """Read every entry of this user's, and say what it is like; nothing is changed."""
        for listing in self.entries():
            state: State
            try:
                state = "whole" if _read(listing.path).bound else "unbound"
            except (FileNotFoundError, PermissionError):
                continue
            except _DAMAGE:
                state = "damaged"
            except OSError:
                state = "unreadable"
            yield listing, state

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """For what must not happen between another process's look and its deed."""
        with locked(self.root / "lock"):
            yield

    def _held_by_all(self) -> set[str]:
        """What living processes hold; lists of ended ones are removed."""
        held: set[str] = set()
        for path in (self.root / "held").iterdir():
            with locked_now(path) as ended:
                if ended:
                    _unlinked(path)
                else:
                    groups = json.loads(path.read_text() or "{}")
                    held.update(key for keys in groups.values() for key in keys)
        return held


@contextlib.contextmanager
def opened(
    root: Path | None, max_bytes: int, folder: Path, dropped: Callable[[int], None] = lambda _: None
) -> Iterator[Store]:
    """The store under ``root``, bounded when it is left; or one in ``folder`` for this context.

    ``dropped`` is called at the end where entries that were there at the start are gone by then,
    whoever dropped them, with their bytes.
    """
    if root is None:
        with tempfile.TemporaryDirectory(prefix=".store-", dir=folder) as temporary:
            yield Store(Path(temporary))
        return
    store = Store(root, max_bytes)
    before = store.sizes()
    try:
        yield store
        store.evict()
    finally:
        store.release()
        after = store.sizes()
        if gone := sum(size for key, size in before.items() if key not in after):
            dropped(gone)


def _unlinked(path: Path) -> bool:
    """Remove a file unless it is in a folder of another user's; whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The library's view of a file; FileNotFoundError and OSError mean what they say."""
    try:
        with path.open("rb"), safetensors.safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:  # the library's word for too many open files, too
        if path.exists():
            raise OSError("it cannot be opened now") from None
        raise
    except RuntimeError as error:  # PyTorch's word for the same
        raise OSError(first_line(error)) from error


def _read(path: Path) -> Entry:
    """The entry in a file, or one of `_DAMAGE`, or an OSError when it cannot be read."""
    with _opened(path) as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sha256, checksum = digest(tensors), header["checksum"]
    if checksum != _checksum(sha256, header["meta"]):
        raise ValueError("checksum")
    if header.get("bound", "") not in ("", _checksum(path.stem, checksum)):
        raise ValueError("it is another key's")
    return Entry(tensors, json.loads(header["meta"]), sha256, "bound" in header)


def _checksum(*parts: str) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()
