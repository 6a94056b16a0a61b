"""A sweep's own report, when the last job has ended, whichever launcher ran them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fedcats.errors import UserError
from fedcats.experiment.folders import is_job
from fedcats.results import Replicated, Results

if TYPE_CHECKING:
    from fedcats.report.tables import Table

Jobs = Mapping[str, tuple[Mapping[str, Any], Results]]


class SweepReport(Callback):
    """Remembers that there is a sweep to report: Hydra makes warnings of a callback's errors.

    Attributes
    ----------
    unfinished
        Folder of the sweep that was started and is not yet reported; None otherwise.
    """

    unfinished: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember where."""
        SweepReport.unfinished = Path(config.hydra.sweep.dir).absolute()


def report_unfinished() -> None:
    """Report the sweep of this process, as far as its jobs have results.

    Writes ``sweep.csv``, ``sweep.html`` and ``figures/`` into the sweep's folder.
    """
    folder, SweepReport.unfinished = SweepReport.unfinished, None
    if folder is not None and (jobs := read_jobs(folder)):
        from fedcats.report import cautions, print_sweep, sweep_rows, view, write_sweep_report
        from fedcats.report.gaps import gaps

        classes = {name: len(results["data"]["classes"]) for name, (_, results) in jobs.items()}
        if len({*classes.values()}) > 1:
            jobs = {
                name: ({**parameters, "classes": str(classes[name])}, results)
                for name, (parameters, results) in jobs.items()
            }
        rows = sweep_rows((parameters, results) for parameters, results in jobs.values())
        replicated, more, silent = _over_seeds(folder, jobs)
        results = [results for _, results in jobs.values()]
        warnings = [*cautions.of_runs(results), *silent]
        write_sweep_report(
            folder,
            rows,
            warnings=warnings,
            replicated=replicated,
            more=more,
            compared=[gaps(results)],
            # The jobs may do without figures of their own.
            files=next((f for f in map(view.figure_files, results) if f.formats), view.AS_SHOWN),
        )
        trained = sum(len(one["store"]["trained"]) for one in results)
        reused = sum(len(one["store"]["reused"]) for one in results)
        note = f"{len(jobs)} jobs: {trained} trained, {reused} taken from the store."
        print_sweep(rows, folder, warnings=warnings, note=note, replicated=replicated, more=more)


def _over_seeds(
    folder: Path, jobs: Jobs
) -> tuple[dict[str, Replicated], list[Table | None], list[str]]:
    """What the seeds say of the models of each setting, more tables, and where nothing why."""
    from fedcats.experiment.seeds import Found, over_seeds, records
    from fedcats.report import sources, split

    if len(margins := {results["config"]["margin"] for _, results in jobs.values()}) > 1:
        return {}, [], [f"Nothing is said over seeds: the margins differ, {sorted(margins)}."]
    (margin,) = margins
    found: dict[tuple[str, str], dict[str, Found]] = {}  # by family and model, and by setting
    drawn: dict[str, str] = {}  # by setting
    several = any(True for name in jobs for _ in (folder / name).glob("seed-*"))
    why = ["Each point is of the first of its job's seeds."] if several else []
    for setting, runs in _settings(folder, jobs).items():
        if len(runs) > 1 and all(results["comparison"] for _, results in runs):
            try:
                for family, models in over_seeds(runs).items():
                    for name, one in models.items():
                        found.setdefault((family, name), {})[setting] = one
                drawn[setting] = runs[0][1]["config"]["vary"]
            except UserError as error:
                why.append(f"Nothing is said over seeds{setting}: {error}.")
    different: dict[str, dict[tuple[str, str], Found]] = {}  # by family
    for (family, name), by_setting in found.items():
        first, *others = by_setting.values()
        own = different.setdefault(family, {})
        if all(one == first for one in others):  # such as FedAvg over beta
            own[name, ""] = first
        else:
            for setting, one in by_setting.items():
                own[name, setting] = one._replace(title=one.title + setting)
    judged = {
        family: records({name + setting: one for (name, setting), one in own.items()}, margin)
        for family, own in different.items()
    }
    replicated, fewer, apart = (
        judged.get(family, {}) for family in ("replication", "fewer_steps", "photos_apart")
    )
    of = {
        name + setting: drawn.get(setting, "") for name, setting in different.get("replication", ())
    }
    tables = [
        sources.table([(of[name], one) for name, one in replicated.items() if of[name]]),
        split.over_seeds(fewer.values(), apart.values()),
    ]
    return replicated, tables, why


def _settings(folder: Path, jobs: Jobs) -> dict[str, list[tuple[Path, Results]]]:
    """By what was set beside the seed, in words, the runs: of several seeds one each."""
    from fedcats.report.varied import SEEDS, short, value_text

    keys = dict.fromkeys(key for parameters, _ in jobs.values() for key in parameters)
    different = {key: {repr(one.get(key)) for one, _ in jobs.values()} for key in keys}
    varied = [key for key in keys if key not in SEEDS and len(different[key]) > 1]
    settings: dict[str, list[tuple[Path, Results]]] = {}
    for name, (parameters, results) in jobs.items():
        setting = ", ".join(f"{short(key)} {value_text(parameters.get(key))}" for key in varied)
        runs = settings.setdefault(f" ({setting})" if setting else "", [])
        runs.append((folder / name, results))
        for path in sorted((folder / name).glob("seed-*/results.json")):
            runs.append((path.parent, _read(path)))
    return settings


def read_jobs(folder: Path) -> Jobs:
    """The finished jobs of a sweep: by folder's name what was set on each, and its results.

    Raises
    ------
    UserError
        When a file in a job's folder cannot be read.
    """
    jobs: dict[str, tuple[Mapping[str, Any], Results]] = {}
    for path in sorted(folder.glob("*/results.json"), key=_number):
        if not is_job(path.parent):
            continue  # a run of its own
        try:
            overrides = OmegaConf.load(path.parent / ".hydra" / "overrides.yaml")
        except (OSError, ValueError) as error:
            raise UserError(f"{path.parent}: not a job of a sweep: {error}") from error
        results = _read(path)
        if "grid" not in results:  # a job with mode=merge has its own page
            parsed = OverridesParser.create().parse_overrides([str(one) for one in overrides])
            parameters = {str(one.key_or_group): _plain(one.value()) for one in parsed}
            jobs[path.parent.name] = (parameters, results)
    return jobs


def _read(path: Path) -> Results:
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path.parent}: not a job of a sweep: {error}") from error
    return results


def _plain(value: Any) -> Any:
    """A value that can stand in a table, and in a figure: no bytes of a name that is not UTF-8."""
    if isinstance(value, int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else 1 << 30, name)
