"""Locks between processes: the operating system's, which go with their process however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
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
def locked(
    path: Path, on_wait: Callable[[], None] | None = None, *, keep: bool = True
) -> Iterator[None]:
    """Wait for a lock and hold it.

    Parameters
    ----------
    on_wait
        Called once if another process has it.
    keep
        Whether the file stays afterwards.
    """
    waited = False

    def wait(descriptor: int) -> bool:
        nonlocal waited
        if not try_lock(descriptor):
            if on_wait and not waited:
                waited = True
                on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True

    with _held(path, wait, keep):
        yield


@contextlib.contextmanager
def locked_now(path: Path, *, keep: bool = True) -> Iterator[bool]:
    """Hold a lock if nobody else does: whether that is so; ``keep`` as for `locked`."""
    with _held(path, try_lock, keep) as mine:
        yield mine


@contextlib.contextmanager
def _held(path: Path, lock: Callable[[int], bool], keep: bool) -> Iterator[bool]:
    descriptor = open_lock(path)
    while (mine := lock(descriptor)) and not _is_that(path, descriptor):
        os.close(descriptor)  # its last holder has removed it
        descriptor = open_lock(path)
    try:
        yield mine
    finally:
        if mine and not keep:
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _is_that(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless another process has it locked; whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
