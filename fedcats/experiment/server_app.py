"""Flower's ServerApp: the experiment of ``fedcats`` under ``flwr run``, here or on many machines.

The run's configuration is one string of Hydra overrides:
``flwr run . --stream -c 'overrides="experiment=paper data.root=/photos"'``. A SuperLink keeps the
working directory and the environment of whoever started it, so paths must be absolute; results go
to the folder that ``hydra.run.dir=..`` among the overrides names, to that of ``fedcats
runner=flwr``, else to one of `fedcats.home.runs`; its name is printed.
"""

import contextlib
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedcats.config import paths
from fedcats.config.compose import compose_config
from fedcats.environment import say
from fedcats.errors import RunError, UserError, first_line
from fedcats.experiment.run import run
from fedcats.federated.foreign import refuse_foreign
from fedcats.federated.simulation import watched
from fedcats.federated.transport import count_nodes
from fedcats.home import runs
from fedcats.plugins import search
from fedcats.text import one_line

app = ServerApp()
_FOLDER = "hydra.run.dir="
_SETTINGS = ("overrides", "home", "ticket", "modules")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Compose, run, and say where the results are; an error fails the run."""
    settings = {key: str(context.run_config[key]) for key in _SETTINGS}
    simulated = isinstance(grid, InMemoryGrid)
    try:
        refuse_foreign()
        if settings["modules"]:
            search(Path(settings["modules"]))
        raw = configuration(settings, simulated=simulated)
        folder = run_folder(settings, context.run_id)
        say(f"fedcats: run folder: {folder}", flush=True)
        with contextlib.ExitStack() as stack:
            if simulated:
                grid = stack.enter_context(watched(grid, verbose=bool(raw.verbose)))
            if simulated and not settings["ticket"]:
                follow_federation(raw, settings["overrides"], grid)
            run(raw, folder, grid)
        say(f"fedcats: finished: {folder}", flush=True)
    except (UserError, RunError) as error:
        say(f"fedcats: error {error.exit_code}: {one_line(error)}", flush=True)
        raise error.with_traceback(None) from None


def follow_federation(raw: DictConfig, overrides: str, grid: Grid) -> None:
    """Make as many shards as there are nodes, where nothing was said of how many."""
    said = ("partition.num_shards=", "experiment=", "attack.clients=", "strategy.order=")
    if any(one.lstrip("+").startswith(said) for one in shlex.split(overrides)):
        return
    count = count_nodes(grid)
    if count and raw.mode != "centralized" and count != raw.partition.num_shards:
        say(
            f"fedcats: {count} supernodes, so partition.num_shards={count}; for "
            f"{raw.partition.num_shards} start the run with "
            f'--federation-config "num-supernodes={raw.partition.num_shards}"',
            flush=True,
        )
        raw.partition.num_shards = count


def run_folder(settings: Mapping[str, str], run_id: int) -> Path:
    """Where the results go: the folder in which whoever submitted the run left a ticket, or named.

    Raises
    ------
    UserError
        When that folder is on a disk that this machine does not see, or is no absolute path.
    """
    ticket = settings["ticket"]
    if not ticket:
        given = [one for one in shlex.split(settings["overrides"]) if one.startswith(_FOLDER)]
        if not given:
            return runs() / str(run_id)
        override = OverridesParser.create().parse_override(paths.read(given[-1]))
        try:
            named = str(OmegaConf.create({"folder": override.value()}).folder)
        except OmegaConfBaseException as error:
            raise UserError(f"{given[-1]}: {first_line(error)}") from error
        _absolute(_FOLDER[:-1], named)
        return Path(paths.expand(named))
    if not Path(ticket).is_file():
        raise UserError(
            f"hydra.run.dir={Path(ticket).parent}: not there on {platform.node()}, where the "
            "SuperLink runs the server; runner=flwr needs a run folder that both machines see, "
            "flwr run leaves the results with the server"
        )
    return Path(ticket).parent


def configuration(settings: Mapping[str, str], *, simulated: bool) -> DictConfig:
    """The composed configuration of a run under Flower.

    Parameters
    ----------
    settings
        ``overrides`` (as on the command line) and ``home`` (a folder, or empty: that of the
        environment).
    simulated
        Whether the clients share this machine's disk. If not, each trains on its own photos:
        there is no partition, and no baseline.

    Raises
    ------
    UserError
        For what `fedcats` refuses too, for relative paths, and in a real federation for a
        partition or a baseline.
    """
    overrides = shlex.split(settings["overrides"])
    if settings["home"]:
        _absolute("home", settings["home"])
        os.environ["FEDCATS_HOME"] = settings["home"]
    raw = compose_config(overrides)
    if "root" in raw.data and raw.data._get_node("root")._value() not in ("???", None):
        _absolute("data.root", raw.data.root)
    if Path(str(raw.model.weights)).suffix:  # no name has one, a file of any kind has
        _absolute("model.weights", raw.model.weights)
    if not simulated:
        for override in overrides:
            if override.lstrip("+~").startswith("partition"):
                raise UserError(
                    f"{override}: does not apply to a real federation, where each SuperNode "
                    "trains on the folder that its operator names; leave it out"
                )
        if raw.mode not in ("compare", "federated"):
            raise UserError(
                f"mode={raw.mode}: not possible in a real federation, where the photos stay "
                "with the SuperNodes; allowed is mode=federated"
            )
        with open_dict(raw):
            raw.mode = "federated"
            raw.partition = {"name": "sites"}
    return raw


def _absolute(key: str, path: object) -> None:
    if not Path(paths.expand(str(path))).is_absolute():
        raise UserError(
            f"{key}={path}: a relative path; the SuperLink may have been started elsewhere, so it "
            f"must be absolute: {key}=/path/to/{Path(str(path)).name}"
        )
