"""fedcats as a Flower app: the folder of which ``flwr run`` makes a bundle."""

import shutil
from pathlib import Path

import fedcats
from fedcats.config.compose import conf_dir
from fedcats.errors import UserError

_PACKAGE = Path(fedcats.__file__).resolve().parent


def write_app(folder: Path) -> None:
    """Copy this package into a folder that ``flwr run`` takes.

    Of a checkout it would look at every file, those of a virtual environment in it, too: seconds.

    Raises
    ------
    UserError
        When there is something at that place.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder")
    installed = _PACKAGE / "app"  # what a wheel carries
    root = installed if installed.is_dir() else _PACKAGE.parent
    left = shutil.ignore_patterns("__pycache__", "conf", "app")
    shutil.copytree(_PACKAGE, folder / "fedcats", ignore=left, dirs_exist_ok=True)
    shutil.copytree(conf_dir(), folder / "conf")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(root / name, folder)
