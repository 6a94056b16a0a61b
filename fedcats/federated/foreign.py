"""In whose environment a run under ``flwr run`` has come.

``flwr run`` starts a SuperLink that stays, and gives every later run to it, from whichever checkout
that comes: it brings its own code, but libraries and ``FEDCATS_HOME`` stay those of the first one.
"""

import contextlib
import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

from fedcats.errors import UserError
from fedcats.federated.flower_words import LOCAL_SUPERLINK


def refuse_foreign() -> None:
    """End a run that another checkout's SuperLink has taken.

    SuperLinks that somebody has started on purpose are left alone: there the code that a run
    brings may differ from what is installed. So are environments without fedcats: Flower has
    built one for this very run.

    Raises
    ------
    UserError
        Naming the environment, what is installed there, and how to end that SuperLink.
    """
    superlink = _flowers_own()
    installed = installed_package()
    if superlink is None or installed is None:
        return
    if _code(installed) != _code(Path(__file__).parents[1]):
        raise UserError(
            f"flwr run: the SuperLink that runs already (process {superlink}) has the environment "
            f"{sys.prefix}, in which fedcats is {installed}, another one than was submitted; end "
            f"it (kill {superlink}) and submit again, with the right environment active"
        )


def _flowers_own() -> int | None:
    """The process of the SuperLink that ``flwr run`` has started, if it runs this process."""
    for parent in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(part).parent.name == LOCAL_SUPERLINK for part in parent.cmdline()):
                return int(parent.pid)
    return None


def installed_package() -> Path | None:
    """Where this environment's own fedcats is, whichever one is imported; None without one."""
    try:
        found = distribution("fedcats")
    except PackageNotFoundError:
        return None
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlsplit(origin["url"]).path)) / "fedcats"
    return Path(str(found.locate_file("fedcats")))


def _code(package: Path) -> dict[str, bytes]:
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*.py"))
    }
