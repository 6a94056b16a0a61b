"""A Ray of the run's own: nobody else can use it, and its files go when it has ended."""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psutil

from fedcats.ending import handle_term_again
from fedcats.errors import RunError
from fedcats.locks import locked_now, open_lock, try_lock

_LONGEST = 37  # bytes: with what Ray appends, a socket's name must not exceed 107
_ROOM = 50 * 10**6  # bytes, for Ray's logs

_token: dict[str, str] = {}  # what of the environment is this module's
_held: dict[Path, int] = {}  # this process's marks, each with the lock that says that it runs


def start(arguments: dict[str, Any]) -> None:
    """Start Ray, and remove the files of earlier ones whose run was killed.

    It listens on the loopback interface only (Ray's own way for systems with a firewall that asks,
    for which it has a switch but no argument), and there only to who knows a token, which other
    users of the machine do not. Where ``RAY_AUTH_MODE`` is set, it is left as it is.

    Raises
    ------
    RunError
        When there is no folder for its sockets and logs.
    """
    import ray
    from ray._private import ray_constants

    folder = Path(arguments.setdefault("_temp_dir", temporary_folder()))
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True)
        folder.chmod(0o777)  # as Ray makes it: other users' sessions are in it, too
    remove_ended(folder)
    # Before there is anything to remove. Ray names a session after its driver's process.
    mark = folder / f"fedcats-{os.getpid()}.lock"
    if mark not in _held:
        _held[mark] = open_lock(mark)
        try_lock(_held[mark])
    if "RAY_AUTH_MODE" not in os.environ:
        _set_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(**{"include_dashboard": False, **arguments})
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        handle_term_again()


def remove_files() -> None:
    """Remove what the Rays that this process has started, and ended, have left."""
    if _token:
        _set_token({})
    while _held:
        mark, descriptor = _held.popitem()
        _remove(mark)
        os.close(descriptor)


def _set_token(token: dict[str, str]) -> None:
    """Put these variables into the environment in place of the last ones; Ray reads them again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    for name in _token:
        os.environ.pop(name, None)
    _token.clear()
    _token.update(token)
    os.environ.update(token)
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def remove_ended(folder: Path) -> None:
    """Remove what this user's runs that were killed have left; nothing of other programs' Ray."""
    for mark in folder.glob("fedcats-*.lock"):
        with contextlib.suppress(OSError, RunError, ValueError):
            own = mark.stat().st_uid == os.getuid()
            if own and not psutil.pid_exists(_process(mark)):
                with locked_now(mark) as ended:  # not so in another container
                    if ended:
                        _remove(mark)


def _remove(mark: Path) -> None:
    for session in mark.parent.glob(f"session_*_{_process(mark)}"):
        shutil.rmtree(session, ignore_errors=True)
        if session.exists():  # a process of it is still ending: the next start sees the mark
            return
    with contextlib.suppress(OSError):
        latest = mark.parent / "session_latest"
        if not latest.exists():
            latest.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)


def _process(mark: Path) -> int:
    return int(mark.stem.removeprefix("fedcats-"))


def temporary_folder() -> str:
    """Where Ray keeps its sockets and logs: as it would itself, or where that does not work, near.

    Raises
    ------
    RunError
        When there is no folder for them.
    """
    asked = filter(None, map(os.environ.get, ("RAY_TMPDIR", "TMPDIR")))
    places = [os.path.abspath(place) for place in (*asked, "/tmp", "/var/tmp", "/dev/shm")]  # noqa: PTH100
    for place in places:
        if len(place) <= _LONGEST and re.fullmatch(r"[\w./+-]+", place, re.ASCII):
            folder = f"{place}/ray"
            try:
                with tempfile.TemporaryFile(dir=folder if os.path.isdir(folder) else place):  # noqa: PTH112
                    if shutil.disk_usage(place).free >= _ROOM:
                        return folder
            except OSError:
                continue
    raise RunError(
        "runner=ray: Ray's sockets and logs need a folder that can be written, with "
        f"{_ROOM / 1e6:g} MB free and a name of at most {_LONGEST} plain letters; none of "
        f"{', '.join(dict.fromkeys(places))} is; name one with TMPDIR, or use runner=local"
    )
