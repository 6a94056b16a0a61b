"""The experiment: train centralized and federated, merge, test on the same photos, compare."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from omegaconf import DictConfig

from fedcats.config.load import load
from fedcats.config.schema import Config
from fedcats.environment import disk_error
from fedcats.errors import RunError, UserError
from fedcats.experiment.baseline_process import remember_trained
from fedcats.experiment.evaluate import compare_with_baseline, evaluate
from fedcats.experiment.folders import claimed
from fedcats.experiment.inputs import gather
from fedcats.experiment.merges import merge_grid
from fedcats.experiment.results import collect, write_history, write_json, write_shards
from fedcats.experiment.train import followed, train_both
from fedcats.home import home
from fedcats.report import Progress, print_summary, write_report
from fedcats.storage import Store


def run(raw: DictConfig, folder: Path, grid: Grid | None = None) -> dict[str, Any]:
    """Run the experiment of a composed configuration.

    Parameters
    ----------
    raw
        As Hydra composes it (see `fedcats.config.compose.compose_config`).
    folder
        Where the results go; made when missing.
    grid
        Where the clients are, when Flower runs this (see `fedcats.experiment.server_app`); by
        default they are started here, as the configuration says.

    Returns
    -------
    dict
        What ``results.json`` holds; the README describes it.

    Raises
    ------
    UserError, RunError
        With one line that says what to do. What was trained until then stays in the store.
    """
    config = load(raw)
    if config.runner.name == "flwr" and grid is None:
        raise UserError("runner=flwr: from the command line only; allowed here are ray, local")
    folder = folder.absolute()
    try:
        with claimed(folder, alone=config.runner.name != "flwr"):  # there the submitter has it
            return _run(config, raw, folder, grid)
    except OSError as error:
        raise disk_error(error) from error


def _run(config: Config, raw: DictConfig, folder: Path, grid: Grid | None) -> dict[str, Any]:
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with Progress() as progress, _store(config, folder) as store:
        with _clock(seconds, "data"):
            this = gather(config, folder, store, progress, grid)
            write_shards(this)
            progress.expect(this.expected)
        with _clock(seconds, "training"), followed(this.events, progress):
            trained = train_both(this, grid)
            remember_trained(config)
        with _clock(seconds, "evaluation"):
            results = collect(this, raw, trained)
            results["models"] = evaluate(this, trained, results, progress)
            results["comparison"] = compare_with_baseline(this, results["models"])
            if config.mode == "merge":
                with ThreadPoolExecutor(this.workers) as pool:
                    results["grid"] = merge_grid(this, trained.own(), progress, pool)
    results["seconds"] = {**seconds, "total": time.perf_counter() - started}
    write_history(folder, trained)
    write_json(folder / "results.json", results)
    problem: OSError | None = None
    try:
        this.events.unlink(missing_ok=True)
        write_report(folder, results)
    except OSError as error:
        problem = error
    if config.runner.name != "flwr":  # there, whoever submitted the run prints it
        print_summary(results, folder)
    if problem:
        raise RunError(
            f"{folder / 'results.json'} is complete, the page and its figures are not: "
            f"{disk_error(problem)}; with room for them the same command draws them"
        )
    return results


@contextlib.contextmanager
def _store(config: Config, folder: Path) -> Iterator[Store]:
    """The user's store; switched off, one that lasts as long as the run."""
    if config.store.enabled:
        store = Store(home() / "store", int(config.store.max_gb * 1e9))
        try:
            yield store
            store.evict()
        finally:
            store.release()
    else:
        with tempfile.TemporaryDirectory(prefix=".store-", dir=folder) as temporary:
            yield Store(Path(temporary))


@contextlib.contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
