"""The folder of a run, or of a sweep: one command at a time, and nothing of an earlier one."""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from fedcats.config.compose import hydra_error
from fedcats.config.paths import literal, needed, quote
from fedcats.config.schema import MODELS
from fedcats.environment import fail, tell
from fedcats.errors import RunError, UserError
from fedcats.locks import try_lock
from fedcats.results.names import is_submodel

_held: dict[Path, int] = {}

# Exactly what a run writes: a folder may hold the user's own files too.
_RULES = "|".join(name for name in MODELS if name != "centralized")
_MODEL = rf"(?:centralized|submodel-\d+|(?:{_RULES}|[^\W\d]\w*@[\w.]*)(?:-[\w.-]+)?)"
_FIGURE = (
    "scores|difference|confusion|confusion_submodels|loss|weights|who-has-what|by-client|rounds|"
    "sweep|heat|dots|epsilon|seeds|gaps|barrier-gap|membership|frontier|"
    "orders|barriers|lines|updates|clients|without|curves|reliability"
)
_OWN = re.compile(
    r"results\.json|results\.\d+\.tmp|progress\.jsonl|history\.csv|shards\.csv|report\.html|"
    r"exposed\.(?:csv|png)|"
    rf"sweep\.csv|sweep\.html|figures/(?:{_FIGURE})\.(?:png|svg|pdf)|"
    r"tensorboard/events\.out\.tfevents\.[^/]+|"
    rf"predictions/{_MODEL}\.csv|models/{_MODEL}\.(?:safetensors|json)"
)
_PARTS = ("figures", "predictions", "models", "tensorboard")
_SEED = re.compile(r"seed-\d+")  # folder of one of several seeds
_HYDRA = ("config.yaml", "hydra.yaml", "overrides.yaml")


class Folders(Callback):
    """Fixes where a command writes before Hydra makes the first folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a single run; however it ends, nothing of an earlier one is taken for its own."""
        with _one_line(config):
            clear(_fix(config, "run"))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a sweep, whose jobs compose their configuration again."""
        with _one_line(config):
            folder = _fix(config, "sweep")
            with read_write(config.hydra.overrides):
                config.hydra.overrides.hydra.append(
                    f"hydra.sweep.dir={quote(literal(str(folder)))}"
                )
            for job in folder.iterdir():
                if is_job(job):
                    clear(job)
                    for name in _HYDRA:
                        (job / ".hydra" / name).unlink(missing_ok=True)
                    _remove_empty(job / ".hydra", job)
            if (folder / "multirun.yaml").is_file():
                _clear(folder)


@contextlib.contextmanager
def _one_line(config: DictConfig) -> Iterator[None]:
    """End the process on errors, which Hydra would make warnings of."""
    HydraConfig.instance().set_config(config)  # for ${hydra:..}
    try:
        yield
    except (UserError, RunError, OSError) as error:
        sys.exit(tell(error))
    except OmegaConfBaseException as error:
        fail(hydra_error(error), UserError.exit_code)


def _fix(config: DictConfig, kind: str) -> Path:
    """Make, hold and name by its absolute path ``hydra.run.dir`` or ``hydra.sweep.dir``."""
    key, node = f"hydra.{kind}.dir", config.hydra[kind]
    folder = Path(needed(key, node.dir or "")).absolute()
    with read_write(node):
        node.dir = literal(str(folder))
    make(folder, key)
    hold(folder, key)
    return folder


def file_stem(model: str) -> str:
    """What a model's files are called: a rule of the user's own is ``name@module``."""
    if model in MODELS or is_submodel(model):
        return model.replace("/", "-")
    module, _, name = model.rpartition(":")
    return f"{name}@{module}"


def make(folder: Path, key: str = "hydra.run.dir") -> None:
    """Make the folder, and see that files can be written there; RunError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"{key}={folder}: cannot be written: {error.strerror}") from error


def hold(folder: Path, key: str = "hydra.run.dir") -> None:
    """Keep other processes out until this one ends, or `_release`; UserError when one is there."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks on folders
        if not try_lock(descriptor):
            os.close(descriptor)
            raise UserError(
                f"{key}={folder}: another run writes there; wait for its end, or name another "
                "folder"
            )
    _held[folder.resolve()] = descriptor


def _release(folder: Path) -> None:
    os.close(_held.pop(folder.resolve()))


@contextlib.contextmanager
def claimed(folder: Path, *, alone: bool = True) -> Iterator[None]:
    """Make a run's folder and empty it of an earlier run; ``alone``: keep other processes out."""
    make(folder)
    held = alone and folder.resolve() not in _held
    if held:
        hold(folder)
    try:
        clear(folder)
        yield
    finally:
        if held:
            _release(folder)


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote, ``results.json`` first, and nothing else.

    Raises
    ------
    UserError
        When there is a ``results.json`` of something else.
    """
    results = folder / "results.json"
    if results.exists():
        if not _is_ours(results):
            raise UserError(
                f"hydra.run.dir={folder}: holds a results.json that is not of fedcats; name "
                "another folder"
            )
    elif not _has_failed(folder):
        return
    _clear(folder)


def _has_failed(folder: Path) -> bool:
    """Whether a run was here that did not come to its results."""
    heads = {folder / "shards.csv": b"client,file,label,sha256"}
    heads |= dict.fromkeys((folder / "predictions").glob("*.csv"), b"file,label,prediction,p_")
    return (folder / "progress.jsonl").exists() or any(
        path.is_file() and path.read_bytes().startswith(head) for path, head in heads.items()
    )


def _is_ours(results: Path) -> bool:
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        return isinstance(found, dict) and {"schema", "config", "models"} <= set(found)
    except (OSError, ValueError):
        return False


def _clear(folder: Path) -> None:
    try:
        (folder / "results.json").unlink(missing_ok=True)
        for place in (folder, *(folder / part for part in _PARTS)):
            for path in list(place.iterdir()) if place.is_dir() else []:
                name = path.relative_to(folder).as_posix()
                if _OWN.fullmatch(name):
                    path.unlink()
                elif re.fullmatch(r"\.store-\w{8}", name):  # of a run that was killed
                    shutil.rmtree(path, ignore_errors=True)
        _remove_empty(*(folder / part for part in _PARTS))
        for path in list(folder.iterdir()):
            if _SEED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                clear(path)
                _remove_empty(path)
    except OSError as error:
        raise RunError(f"{error.filename}: of an earlier run, and cannot be removed") from error


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def is_job(folder: Path) -> bool:
    """Whether a sweep made this folder for one of its jobs."""
    try:
        return "  mode: MULTIRUN\n" in (folder / ".hydra/hydra.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
