"""What a user adds: a rule, a source or a partition of their own, without a change of fedcats.

``module:name`` names it in the configuration; the module is looked for in Python's path and then in
the working folder. An installed package gives it a name of its own by an entry point, a program by
`register`.
"""

import contextlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fedcats.errors import RunError, UserError, first_line

KINDS = ("rules", "sources", "partitions")
"""Groups of entry points are called ``fedcats.rules`` and so on."""

_NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
_registered: dict[tuple[str, str], Any] = {}
_folders: list[Path] = []


def register(kind: str, name: str, thing: Any) -> None:
    """Give something of this program a name that a configuration can use.

    Parameters
    ----------
    kind
        One of `KINDS`.
    name
        Letters, digits and underscores.
    thing
        As for ``module:name``; see ``docs/extending.md``.
    """
    if kind not in KINDS or not name.isidentifier():
        raise UserError(f"{kind} {name!r}: allowed are an identifier and {', '.join(KINDS)}")
    _registered[kind, name] = thing


def names(kind: str) -> list[str]:
    """The names that `register` and entry points gave."""
    registered = [name for of, name in _registered if of == kind]
    return sorted({*registered, *(point.name for point in entry_points(group=f"fedcats.{kind}"))})


def is_own(kind: str, name: object) -> bool:
    """Whether a name of the configuration stands for something of a user's own."""
    return isinstance(name, str) and (":" in name or name in names(kind))


def find(kind: str, key: str, name: str) -> Any:
    """What such a name stands for.

    Raises
    ------
    UserError
        That begins with the configuration's ``key``: when there is no such module, when it has no
        such name, or when its import fails.
    """
    if (kind, name) in _registered:
        return _registered[kind, name]
    with blamed(f"{key}={name}"):
        for point in entry_points(group=f"fedcats.{kind}", name=name):
            return point.load()
    if not _NAME.fullmatch(name):
        raise UserError(f"{key}={name}: allowed is module:name, such as my_module:my_name")
    module, _, attribute = name.partition(":")
    here = [str(folder) for folder in (Path.cwd(), *_folders)]
    sys.path += [folder for folder in here if folder not in sys.path]
    importlib.invalidate_caches()  # the file may be a moment old
    with blamed(f"{key}={name}"):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"{key}={name}: there is no module {error.name} in {Path.cwd()} or in Python's path"
            ) from None
    if not hasattr(found, attribute):
        where = getattr(found, "__file__", None) or "built into Python"
        raise UserError(f"{key}={name}: {module} ({where}) has no {attribute}")
    return getattr(found, attribute)


def short_name(name: str) -> str:
    """A name without its module: under ``strategy.<short name>`` are a rule's parameters."""
    return name.rpartition(":")[2]


def search(folder: Path) -> None:
    """Look for the modules of ``module:name`` in this folder, too, after all others."""
    _folders.append(folder)


def check_call(key: str, function: Callable[..., Any], *given: Any, **parameters: Any) -> None:
    """UserError when what a user named is no function, or does not take these arguments."""
    if not callable(function):
        kind = type(function).__name__
        raise UserError(f"{key}: is a {kind}; allowed is a function")
    with contextlib.suppress(ValueError):  # one without a signature is simply called
        signature = inspect.signature(function)
        try:
            signature.bind(*given, **parameters)
        except TypeError as error:
            name = getattr(function, "__name__", type(function).__name__)
            raise UserError(f"{key}: {name}{signature}: {error}") from None


def without_unknown_nulls(
    function: Callable[..., Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters without those of another option that are not set."""
    takes: Mapping[str, Any] = {}
    with contextlib.suppress(TypeError, ValueError):
        takes = inspect.signature(function).parameters
    return {key: value for key, value in parameters.items() if value is not None or key in takes}


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Say in one line what goes wrong in a user's code, and in which line of which file."""
    try:
        yield
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise UserError(f"{what}: {kind}: {first_line(error)}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """The innermost line that is the user's own, if it can be told."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    ours = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<frozen", str(Path(contextlib.__file__).parent)))
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
