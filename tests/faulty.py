"""Commands in processes whose file operations fail as on a full or broken disk.

What is imported once is forked for each command. ``sys.addaudithook`` sees every file operation of
Python's before it happens: there it fails, as root too. What is written by other languages, and in
pieces, meets a limit on the size of files.
"""

import errno
import importlib
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked import COMMAND, IMPORTS, finish

MODULES = (*IMPORTS[COMMAND], "fedcats.cli.data", "fedcats.cli.store")
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.utime")


class Faulty:
    """The process that is forked; use as a context manager."""

    def __enter__(self) -> "Faulty":
        # A test that has settled its process has put this folder off the path of those it starts.
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._host = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._host.stdin.close()
        self._host.wait()

    def __call__(self, command: list[str], cwd: Path, **case: Any) -> dict[str, Any]:
        """Run ``fedcats..`` with arguments; its exit code, standard error and file operations.

        ``fault``: (beginning of the path below, name of the error, how many such operations go
        well before); ``bytes``: the largest file; ``env``: variables.
        """
        self._host.stdin.write(json.dumps({"command": command, "cwd": str(cwd), **case}) + "\n")
        self._host.stdin.flush()
        return json.loads(self._host.stdout.readline())


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        case = json.loads(line)
        folder = Path(case["cwd"])
        child = os.fork()
        if not child:
            _run(case, folder)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = {
            "code": status,
            "err": (folder / "stderr").read_text(errors="backslashreplace"),
            "events": (folder / "events").read_text(errors="backslashreplace").splitlines(),
        }
        print(json.dumps(found), file=answers, flush=True)


def _run(case: dict[str, Any], folder: Path) -> None:
    os.chdir(folder)
    os.environ.update(case.get("env", {}))
    events = os.open("events", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    sys.stdin = io.StringIO()
    where, kind, ahead = case.get("fault") or ("", "", 0)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal ahead
        if not (event in WRITES or (event == "open" and _writes(arguments))):
            return
        try:
            path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        except TypeError:
            return
        path = os.path.abspath(path) if path else ""  # noqa: PTH100
        if not path.startswith(str(folder)):
            return
        path = os.path.relpath(path, folder)
        os.write(events, f"{event} {path}\n".encode(errors="backslashreplace"))
        if kind and path.startswith(where):
            ahead -= 1
            if ahead < 0:
                number = getattr(errno, kind)
                raise OSError(number, os.strerror(number), str(folder / path))

    sys.addaudithook(hook)
    if "bytes" in case:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["bytes"], resource.RLIM_INFINITY))
    program, *arguments = case["command"]
    module = {"fedcats": "run", "fedcats-data": "data", "fedcats-store": "store"}[program]
    sys.argv = [program, *arguments]
    finish(importlib.import_module(f"fedcats.cli.{module}").main)


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1:3]
    return (
        bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else any(c in mode for c in "wax+")
    )


if __name__ == "__main__":
    _serve()
