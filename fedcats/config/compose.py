"""The configuration as Hydra composes it from ``conf/`` and overrides."""

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcats.config import paths
from fedcats.config.hints import hint, option_hint
from fedcats.errors import UserError


def conf_dir() -> Path:
    """Where the YAML files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose_config(
    overrides: list[str],
    *,
    config_name: str | None = None,
    config_path: str | None = None,
    config_dir: str | None = None,
) -> DictConfig:
    """Compose as the command line does: for ``flwr run``, notebooks and tests.

    Parameters
    ----------
    overrides
        As on the command line, ``hydra.searchpath=[..]`` among them.
    config_name, config_path, config_dir
        Hydra's flags of these names.

    Raises
    ------
    UserError
        For unknown groups, options and keys, in one line.
    """
    overrides = [paths.read(override) for override in overrides]
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search = create_automatic_config_search_path(__file__, None, config_path or str(conf_dir()))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir {config_dir}: not a folder")
        folder = f"file://{Path(config_dir).absolute()}"
        search.prepend("command-line", folder, SearchPathQuery(provider="schema"))
    try:
        Hydra.create_main_hydra2(task_name="fedcats", config_search_path=search)
        with warnings.catch_warnings():  # of hydra.searchpath
            warnings.filterwarnings("error", ".* is not available", UserWarning)
            return compose(config_name or "config", overrides=overrides)
    except UserWarning as warning:
        raise UserError(f"hydra.searchpath: {warning}") from warning
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(hydra_error(error)) from error
    finally:
        GlobalHydra.instance().clear()


def hydra_error(error: Exception) -> str:
    """Hydra's own message in one line, with what is allowed where Hydra says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Available options") for line in lines):
        at = next(i for i, line in enumerate(lines) if line.startswith("Available options"))
        options = ", ".join(
            itertools.takewhile(lambda s: not s.startswith("Config"), lines[at + 1 :])
        )
        group, _, option = lines[0].rpartition("'")[0].rpartition("'")[2].partition("/")
        return f"{lines[0].rstrip('.')}; allowed are {options}{option_hint(group, option)}"
    if "is not in struct" in str(error) or "Could not override" in lines[0]:
        what = lines[0].removeprefix("Could not override ").split(".\n")[0].rstrip(".")
        key = what.strip(chr(39))
        meant = hint(key, conf_dir()) or "see fedcats --cfg job for all keys"
        return f"{key}: no such key; {meant}"
    if lines and lines[0].startswith("Ambiguous value"):
        given = lines[0].removeprefix("Ambiguous value for argument ").strip("'")
        return f"{given}: several values; -m runs each of them, [..] makes a list, '..' one value"
    return lines[0] if lines else type(error).__name__


def as_dict(raw: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, for the record of a run."""
    container = OmegaConf.to_container(raw, resolve=True)
    assert isinstance(container, dict)
    return {str(key): _without_infinity(value) for key, value in container.items()}


def _without_infinity(value: Any) -> Any:
    """JSON has none: ``privacy.epsilon=inf`` is a word there, which is read again as well."""
    if isinstance(value, dict):
        return {key: _without_infinity(one) for key, one in value.items()}
    return "inf" if value == math.inf else value
