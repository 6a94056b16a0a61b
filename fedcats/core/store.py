"""The content-addressed store of client updates: what was trained once is found again.

One file per entry, ``<key>.safetensors``: the tensors, and in the header the JSON metadata and a
checksum over both. A file appears under its name only when it is whole (written aside, renamed),
so a killed process leaves at worst a temporary file.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fedcats.core.errors import RunError
from fedcats.core.models import digest

_STALE_SECONDS = 3600.0


def content_key(description: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON description: any change in it gives another key."""
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What the store holds under one key: tensors by state-dict key, and JSON metadata."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """One line of `Store.entries`: size in bytes, last use in seconds since the epoch."""

    key: str
    path: Path
    size: int
    used: float
    meta: dict[str, Any]


class Store:
    """Entries under ``root``; safe with several processes, kills and a full disk.

    Parameters
    ----------
    root
        Folder; made when missing.
    max_bytes
        When the entries grow beyond it, those used longest ago are dropped. None: no limit.
    """

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.damaged: list[str] = []
        root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the entry is or would be."""
        return self.root / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether an entry of that key is there (whole or damaged)."""
        return self.path(key).is_file()

    def get(self, key: str) -> Entry | None:
        """The entry, checked against its checksum; None when there is none.

        A damaged entry is removed, noted in `damaged`, and counts as missing.
        """
        path = self.path(key)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.get("checksum") != _checksum(tensors, header["meta"]):
                raise ValueError("checksum")
            meta = json.loads(header["meta"])
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, safetensors.SafetensorError):
            if not path.is_file():
                return None
            self.damaged.append(key)
            path.unlink(missing_ok=True)
            return None
        return Entry(tensors, meta)

    def put(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Keep an entry. Raises RunError when the disk is full; nothing is left behind then."""
        text = json.dumps(meta, sort_keys=True)
        header = {"meta": text, "checksum": _checksum(tensors, text)}
        temporary = self.root / f".{key}.{os.getpid()}.tmp"
        try:
            safetensors.torch.save_file(
                {name: value.detach().contiguous() for name, value in tensors.items()},
                temporary,
                metadata=header,
            )
            temporary.replace(self.path(key))
        except (OSError, safetensors.SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
            reason = "the disk is full" if full else str(error)
            raise RunError(f"store {self.root}: cannot write an entry: {reason}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._evict(keep=key)

    def remove(self, key: str) -> None:
        """Drop an entry if it is there."""
        self.path(key).unlink(missing_ok=True)

    def entries(self) -> list[Listing]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self.root.glob("*.safetensors"):
            try:
                status = path.stat()
                with safetensors.safe_open(path, framework="pt") as file:
                    meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, safetensors.SafetensorError):
                meta = {"kind": "damaged"}
            found.append(Listing(path.stem, path, status.st_size, status.st_mtime, meta))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Hold the right to compute ``key``; other processes wait. A kill gives it back."""
        locks = self.root / "locks"
        locks.mkdir(exist_ok=True)
        descriptor = os.open(locks / key, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _evict(self, keep: str) -> None:
        now = time.time()
        for path in self.root.glob(".*.tmp"):  # of processes that were killed while writing
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        if self.max_bytes is None:
            return
        sizes = []
        for path in self.root.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append((path.stat().st_mtime, path, path.stat().st_size))
        excess = sum(size for _, _, size in sizes) - self.max_bytes
        for _, path, size in sorted(sizes):
            if excess <= 0:
                break
            if path != self.path(keep):
                path.unlink(missing_ok=True)
                excess -= size


def _checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    return hashlib.sha256(f"{digest(tensors)}{meta}".encode()).hexdigest()
