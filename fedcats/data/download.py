"""Downloads that show how far they are, go on where they stopped, and are checked."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fedcats.errors import UserError
from fedcats.locks import locked

TIMEOUT = 30
"""Seconds without an answer after which a host counts as out of reach."""

OnBytes = Callable[[int, int], None]


def fetch(
    url: str, target: Path, checksum: str, instead: str, on_progress: OnBytes | None = None
) -> Path:
    """Download a file, unless it is there already.

    It arrives beside `target` under another name and is renamed when it is complete and its
    checksum is right. After an interruption the next call asks for the rest only.

    Parameters
    ----------
    url
        Where from.
    target
        Where to.
    checksum
        Of the whole file, such as ``sha256:`` or ``md5:`` and hexadecimal digits.
    instead
        What a user can do where the download does not work, for the error message.
    on_progress
        Called with (bytes there, bytes in all).

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    UserError
        When the host cannot be reached, or sends something else.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with locked(target.with_name(target.name + ".lock")):
        if target.exists():  # another process has fetched it meanwhile
            return target
        while True:
            before = _size(part)
            try:
                _receive(url, part, on_progress)
                break
            except (OSError, http.client.HTTPException) as error:
                if _size(part) > before:
                    continue  # it came further, so asking for the rest is worth it
                reason = getattr(error, "reason", None) or error
                raise UserError(
                    f"{urlsplit(url).netloc} cannot be reached for {target.name} ({reason}): "
                    f"{instead}"
                ) from None
        method, _, expected = checksum.partition(":")
        with part.open("rb") as file:
            found = hashlib.file_digest(file, method).hexdigest()
        if found != expected:
            part.unlink()
            raise UserError(
                f"{url} sent another file than expected ({method} {found}, not {expected}): "
                f"{instead}"
            )
        part.rename(target)
    return target


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, on_progress: OnBytes | None) -> None:
    """Ask for what is missing in `part` and append it; raise when the connection ends early."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing comes after what is there; the checksum decides
            return
        raise
    with response, part.open("ab") as file:
        if response.status != 206:  # the host sends all of it again
            file.truncate(0)
            have = 0
        total = have + int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(1 << 20):
            file.write(chunk)
            have += len(chunk)
            if on_progress:
                on_progress(have, max(have, total))
    if have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
