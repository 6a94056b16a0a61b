"""Locks between processes: the operating system's, which go with their process however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedcats.errors import RunError


def open_lock(path: Path) -> int:
    """Open a file to lock it, made when missing; one of another user need only be readable.

    Raises
    ------
    RunError
        When it cannot be opened.
    """
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o666)  # less what the umask takes
    except OSError as error:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY)
        raise RunError(f"{path} cannot be opened or made: {error.strerror}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it."""
    descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does: whether that is so."""
    descriptor = open_lock(path)
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless another process has it locked; whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
