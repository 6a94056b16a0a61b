"""Ends what a rehearsal has started, also when the rehearsal itself was killed.

As a program (``python -m fedcats.deploy.guard MARK``) it waits for the end of its standard input,
which the end of the rehearsal brings however it comes, and then kills what is left.
"""

import contextlib
import os
import subprocess
import sys

import psutil

from fedcats.environment import import_path

MARK = "FEDCATS_REHEARSAL"
"""The variable that all processes of a rehearsal have in their environment."""


def members(mark: str) -> list[psutil.Process]:
    """All living processes with that mark, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def watch(mark: str) -> subprocess.Popen[bytes]:
    """Start a guard over the processes with that mark; ``communicate()`` lets it end them now."""
    environment = {**os.environ, "PYTHONPATH": import_path()}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fedcats.deploy.guard", mark],
        env={name: value for name, value in environment.items() if name != MARK},
        stdin=subprocess.PIPE,
        start_new_session=True,  # an interrupt is not for it
    )


def main() -> None:
    """Wait, then kill until nothing is left."""
    sys.stdin.read()
    while left := members(sys.argv[1]):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5.0)


if __name__ == "__main__":
    main()
