"""What every command settles first: its standard streams, UTF-8, and where imports come from."""

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from fedcats.errors import RunError, UserError
from fedcats.text import one_line, shown

_PLAIN = {"−": "-", "–": "-", "…": "...", "·": ".", "Δ": "D", "β": "b"}
_lost: list[OSError] = []


def settle() -> None:
    """Make ready for any terminal, locale and working folder; of no effect the second time."""
    _occupy_standard_descriptors()
    _use_utf8()
    codecs.register_error("fedcats", _replace)
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__, 2)
    _import_working_folder_last()


def import_path() -> str:
    """``PYTHONPATH`` for a process that is to import this very package.

    Whichever one is installed: ``flwr run`` brings its own copy. An empty entry would be the
    working folder.
    """
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, own)])


def output_lost() -> bool:
    """Whether standard output could not be written; that its reader has left does not count."""
    return bool(_lost)


def disk_error(error: OSError) -> RunError:
    """What the system says of a file, in one line that names it."""
    from fedcats.home import home

    path = str(error.filename or "")
    where = "FEDCATS_HOME: " if Path(path).is_relative_to(home()) else ""
    return RunError(f"{where}{path}: {error.strerror or error}" if path else str(error))


def say(line: object, *, error: bool = False, flush: bool = False) -> None:
    """Print a line in which no name can do harm, to standard output or error."""
    print(shown(str(line)), file=sys.stderr if error else sys.stdout, flush=flush or error)


def fail(message: object, code: int, program: str = "fedcats") -> NoReturn:
    """Say in one line why, and end."""
    say(f"{program}: {one_line(message)}", error=True)
    sys.exit(code)


def tell(error: UserError | RunError | OSError, program: str = "fedcats") -> int:
    """Say an error in one line; its exit code."""
    known = disk_error(error) if isinstance(error, OSError) else error
    say(f"{program}: {one_line(known)}", error=True)
    return known.exit_code


def _occupy_standard_descriptors() -> None:
    """Else a file that is opened later gets the number of a closed stream, and its output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)


def _import_working_folder_last() -> None:
    """It may hold a ``random.py``; ``python -m`` puts it first. Processes started do without it."""
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        here = str(Path.cwd())
    except OSError:  # nothing works then, not even the import of PyTorch
        fail("the working folder does not exist any more", RunError.exit_code)
    if sys.path[:1] in ([""], [here]):
        sys.path.append(sys.path.pop(0))


def _use_utf8() -> None:
    """Start anew where file names would be ASCII: only at its start can Python be told."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _forgiving(stream: TextIO, original: TextIO | None, descriptor: int) -> TextIO:
    """The stream without its errors; as it is where a program has replaced it with its own."""
    if stream is not original:
        return stream
    encoding, buffering = "utf-8", descriptor == 2
    if original is not None:  # else it was closed
        original.flush()
        encoding, buffering = original.encoding, cast(io.TextIOWrapper, original).line_buffering
    binary = io.BufferedWriter(cast(Any, _Descriptor(descriptor, "w", closefd=False)))
    return io.TextIOWrapper(binary, encoding, errors="fedcats", line_buffering=buffering)


class _Descriptor(io.FileIO):
    """A standard stream; what cannot be written is dropped, from the first failure on."""

    def write(self, data: "bytes | memoryview[int]") -> int:  # type: ignore[override]
        try:
            while (count := super().write(data)) is None:  # it does not block, and is full
                select.select([], [self], [])
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() == 1 and error.errno != errno.EPIPE:
                _lost.append(error)
                say(f"fedcats: standard output cannot be written: {error}", error=True)
            return len(data)
        return count


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """For letters that the encoding lacks: the bytes of a file's name, a plain letter, or ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in text):
        return bytes(ord(letter) - 0xDC00 for letter in text), error.end
    plain = [_PLAIN.get(one) or unicodedata.normalize("NFKD", one)[0] for one in text]
    return "".join(one if one.isascii() else "?" for one in plain), error.end
