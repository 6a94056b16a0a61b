"""Commands of fedcats that start at once: forked from a process that has made its imports.

Imports take a process more CPU than a tiny run itself. Where it is not the process's own start that
is tested, ``Host.program -m fedcats.cli ..`` does what ``python -m fedcats.cli ..`` does, with its
working folder, environment, standard streams and exit code, and likewise
``-m fedcats.training.update``, the baseline's process. Who kills the program kills the fork.
"""

import contextlib
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

UPDATE = "fedcats.training.update"
COMMAND = "fedcats.cli"
IMPORTS = {  # the first has the function that is the command
    UPDATE: (UPDATE,),
    COMMAND: (
        "fedcats.cli.run",
        "fedcats.cli.job",
        "fedcats.experiment.run",
        "fedcats.report.figures",
        "fedcats.report.sweep",
        *("scipy.optimize", "scipy.stats", "sklearn.metrics"),  # which a run imports when it scores
    ),
}


class Host:
    """The process that is forked, and a program that asks it to."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedcats-forked-")
        place = Path(self._folder.name)
        address, self.program = place / "socket", str(place / "python")
        asks = [sys.executable, "-IS", __file__, "ask", str(address)]
        Path(self.program).write_text(f'#!/bin/sh\nexec {shlex.join(asks)} "$@"\n')
        Path(self.program).chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, "serve", str(listener.fileno()), self.program],
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._folder.cleanup()


def _ask(address: str, arguments: list[str]) -> int:
    """Have this command line forked; its exit code."""
    if _module(arguments) not in IMPORTS:
        sys.exit(f"forked.py: allowed is -m {' | '.join(IMPORTS)}")
    said = json.dumps([arguments, os.getcwd(), {**os.environ}]).encode()  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as host:
        host.connect(address)
        socket.send_fds(host, [len(said).to_bytes(8, "big")], [0, 1, 2])
        host.sendall(said)
        code = int(host.recv(16) or b"1")
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


def _serve(listener: socket.socket, program: str) -> None:
    """Fork as asked, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; it ends with the tests
    importlib.import_module(UPDATE)
    # A baseline that one of these commands starts is forked, too.
    process = importlib.import_module("fedcats.experiment.baseline_process")
    process.sys = SimpleNamespace(executable=program)  # type: ignore[attr-defined]
    while listener in select.select([listener, 0], [], [])[0]:
        asked, _ = listener.accept()
        head, streams, *_ = socket.recv_fds(asked, 8, 3)
        with asked:
            with asked.makefile("rb") as file:
                said = file.read(size := int.from_bytes(head, "big"))
            if size and len(said) == size:  # else it has been killed before it had asked
                request = json.loads(said)
                for name in IMPORTS[_module(request[0])]:
                    importlib.import_module(name)
                if not os.fork():
                    listener.close()
                    os._exit(_watch(asked, streams, *request))
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(asked: socket.socket, streams: list[int], *request: Any) -> int:
    """Fork, tell who asked how it ended, and end it where who asked has been killed."""
    if not (child := os.fork()):
        asked.close()
        _become(streams, *request)
    for stream in streams:
        os.close(stream)
    done = 0, 0
    while not done[0]:
        gone = select.select([asked], [], [], 0.02)[0]
        if gone:
            os.kill(child, signal.SIGKILL)
        done = os.waitpid(child, 0 if gone else os.WNOHANG)
    with contextlib.suppress(OSError):  # it is gone
        asked.sendall(str(os.waitstatus_to_exitcode(done[1])).encode())
    return 0


def _become(
    streams: list[int], arguments: list[str], folder: str, variables: dict[str, str]
) -> NoReturn:
    """What ``python`` with these arguments is, once it has made its imports."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    encoding, _, errors = variables.get("PYTHONIOENCODING", "").partition(":")
    one: Any = {"encoding": encoding or None, "errors": errors or None, "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **one)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", **one)  # noqa: SIM115
    one["errors"] = "backslashreplace"
    sys.stderr = sys.__stderr__ = open(2, "w", 1, **one)  # noqa: SIM115
    first = [] if "-P" in arguments[:1] or "PYTHONSAFEPATH" in variables else [folder]
    own = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [*first, *own]
    module = _module(arguments)
    sys.argv = arguments[arguments.index(module) :]
    if module == UPDATE:
        sys.argv[-1] = str(os.getppid())  # it ends with its parent
    finish(importlib.import_module(IMPORTS[module][0]).main)


def _module(arguments: list[str]) -> str:
    return arguments[arguments.index("-m") + 1]


def finish(main: Callable[[], object]) -> NoReturn:
    """End this process as an interpreter ends after ``sys.exit(main())``."""
    code = 1
    try:
        code = int(main() or 0)  # type: ignore[call-overload]
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _, what, where, *rest = sys.argv
    if what == "ask":
        sys.exit(_ask(where, rest))
    _serve(socket.socket(fileno=int(where)), *rest)
