"""The experiment: train centralized and federated, merge, test on the same photos, compare."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from flwr.serverapp import Grid
from omegaconf import DictConfig

from fedcats.config.load import load
from fedcats.config.schema import Config
from fedcats.data import Images
from fedcats.environment import disk_error
from fedcats.errors import RunError, UserError
from fedcats.experiment.baseline_process import remember_trained
from fedcats.experiment.evaluate import evaluate
from fedcats.experiment.explain import explain
from fedcats.experiment.folders import claimed, make
from fedcats.experiment.inputs import gather
from fedcats.experiment.merges import merge_grid
from fedcats.experiment.predictions import Predictor
from fedcats.experiment.privacy import measure_privacy
from fedcats.experiment.private import promised
from fedcats.experiment.results import (
    clock,
    collect,
    write_history,
    write_json,
    write_results,
    write_shards,
)
from fedcats.experiment.seeds import join, over_seeds, prefix, record
from fedcats.experiment.tasks import Tasks
from fedcats.experiment.tracking import Tracker, tracking
from fedcats.experiment.train import followed, train_both
from fedcats.home import home
from fedcats.report import Progress, print_summary
from fedcats.results import Results, Seconds
from fedcats.storage import opened
from fedcats.text import size_text


def run(
    raw: DictConfig,
    folder: Path,
    grid: Grid | None = None,
    *,
    summary: bool = True,
    command: str = "",
) -> Results:
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
    summary
        Print it when all is done.
    command
        That asked for this, for the record.

    Returns
    -------
    dict
        What ``results.json`` holds; ``docs/results.md`` describes each key.

    Raises
    ------
    UserError, RunError
        With one line that says what to do. What was trained until then stays in the store.
    """
    config = load(raw)
    if config.runner.name == "flwr" and grid is None:
        raise UserError("runner=flwr: from the command line only; allowed here are ray, local")
    if grid is not None and config.seeds is not None:
        raise UserError(f"seeds={config.seeds}: not under flwr run; allowed is null")
    folder = folder.absolute()
    try:
        # Under flwr run the submitter has the folder.
        alone = config.runner.name != "flwr"
        place = folder if grid else Path.cwd()  # a SuperLink's is anybody's
        with claimed(folder, alone=alone), tracking(config, folder, place) as tracker:
            return _run(config, raw, folder, grid, tracker, summary, command)
    except OSError as error:
        raise disk_error(error) from error


def _run(
    config: Config,
    raw: DictConfig,
    folder: Path,
    grid: Grid | None,
    tracker: Tracker,
    summary: bool,
    command: str,
) -> Results:
    images: list[Images] = []
    runs: list[tuple[Path, Results]] = []
    with Progress() as progress:
        progress.on_loss = tracker.loss
        for seed in config.replicates:
            where = folder / f"seed-{seed}" if runs else folder
            progress.prefix = prefix(seed) if len(config.replicates) > 1 else ""
            one = replace(config, replicate=seed)
            if runs:  # of the others no weights: they are in the store
                one = replace(one, save_models="none")
                make(where)
            results, tested_on = _experiment(one, raw, where, grid, progress, command)
            images.append(tested_on)
            if runs:
                results["config"] |= {"seeds": [seed], "save_models": "none"}
                write_json(where / "results.json", results)
            runs.append((where, results))
    _, results = runs[0]
    if config.seeds is not None:
        record(over_seeds(runs), config.margin, results)
        join(results, [one for _, one in runs])
    problem = write_results(folder, results, images[0])
    if problem is None:
        tracker.results(results, folder)
    if summary and config.runner.name != "flwr":  # there, whoever submitted the run prints it
        print_summary(results, folder)
    if problem:
        raise RunError(
            f"{folder / 'results.json'} is there, the page and its figures are not: "
            f"{disk_error(problem)}; with room for them the same command draws them"
        )
    return results


def _experiment(
    config: Config,
    raw: DictConfig,
    folder: Path,
    grid: Grid | None,
    progress: Progress,
    command: str,
) -> tuple[Results, Images]:
    """All of one seed, but its report; and the test images."""
    seconds: dict[str, float] = {}
    root, max_bytes = home() / "store", int(config.store.max_gb * 1e9)

    def dropped(size: int) -> None:
        progress.message(
            f"of what was in the store before this run {size_text(size)} are gone: above "
            f"store.max_gb={config.store.max_gb:g} what was used longest ago is dropped"
        )

    with (
        clock(seconds, "total"),
        opened(root if config.store.enabled else None, max_bytes, folder, dropped) as store,
    ):
        with clock(seconds, "data"):
            inputs = gather(config, folder, store, progress, grid)
            tasks, predictor = Tasks(inputs, store), Predictor(inputs, store)
            write_shards(inputs)
            progress.expect(tasks.expected)
        with clock(seconds, "training"), followed(inputs.events, progress):
            trained = train_both(tasks, predictor, grid)
            remember_trained(config)
        with clock(seconds, "evaluation"):
            results = collect(inputs, raw, trained, command)
            evaluate(predictor, trained, results, progress)
            if config.privacy.dp:
                results["dp"] = promised(inputs, config.privacy.dp, tasks.references)
            if config.privacy.measures:
                measure_privacy(predictor, trained, results, progress)
            if config.mode == "merge":
                results["grid"] = merge_grid(predictor, trained.own(), progress)
            if config.mode == "explain":
                results["explained"] = explain(predictor, trained, tasks.start, progress)
    results["seconds"] = cast(Seconds, seconds)
    write_history(folder, trained)
    return results, inputs.dataset.test
