"""Ends what a rehearsal has started and removes its files, also when the rehearsal was killed.

As a program (``python -m fedcats.deploy.guard MARK [FOLDER]``) it waits for the end of its standard
input, which the end of the rehearsal brings however it comes; then it kills what is left, and
removes the folder.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fedcats.environment import import_path
from fedcats.locks import try_lock

MARK = "FEDCATS_REHEARSAL"
"""The variable that all processes of a rehearsal have in their environment."""

_PREFIX = "fedcats-rehearsal-"
_NEW_SECONDS = 60.0


def members(mark: str, *folders: str) -> list[psutil.Process]:
    """All living processes with that mark, or at work in these folders, whoever started them.

    nginx writes its title over its environment, and the mark is gone.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            place = Path(process.cwd())
            if process.environ().get(MARK) == mark or any(map(place.is_relative_to, folders)):
                found.append(process)
    return found


def watch(mark: str, *folder: Path) -> subprocess.Popen[bytes]:
    """Start a guard over the processes with that mark, and a folder that is to go after them.

    ``communicate()`` lets it end them now.
    """
    environment = {**os.environ, "PYTHONPATH": import_path()}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fedcats.deploy.guard", mark, *folder],
        env={name: value for name, value in environment.items() if name != MARK},
        stdin=subprocess.PIPE,
        start_new_session=True,  # an interrupt is not for it
    )


@contextlib.contextmanager
def passing_folder(mark: str) -> Iterator[Path]:
    """A private folder that goes when the context or this process ends, even by SIGKILL.

    One whose guard was killed too goes when the next is made.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A new one is not locked yet.
        with contextlib.suppress(OSError), _locked(folder) as abandoned:
            if abandoned and time.time() - folder.stat().st_mtime > _NEW_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with _locked(folder):
        guard = watch(mark, folder)
        try:
            yield folder
        finally:
            guard.communicate()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """Wait, then kill until nothing is left."""
    sys.stdin.read()
    while left := members(*sys.argv[1:]):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5.0)
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
