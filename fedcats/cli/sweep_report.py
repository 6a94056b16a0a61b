"""A sweep's own report, when the last job has ended, whichever launcher ran them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fedcats.errors import UserError
from fedcats.experiment.folders import is_job
from fedcats.results import Results


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
        from fedcats.report import print_sweep, sweep_rows, view, write_sweep_report

        classes = {name: len(results["data"]["classes"]) for name, (_, results) in jobs.items()}
        if len({*classes.values()}) > 1:
            jobs = {
                name: ({**parameters, "classes": str(classes[name])}, results)
                for name, (parameters, results) in jobs.items()
            }
        rows = sweep_rows((parameters, results) for parameters, results in jobs.values())
        results = [results for _, results in jobs.values()]
        warnings = list(dict.fromkeys(line for one in results for line in view.warnings(one)))
        write_sweep_report(folder, rows, warnings=warnings)
        trained = sum(len(one["store"]["trained"]) for one in results)
        reused = sum(len(one["store"]["reused"]) for one in results)
        note = f"{len(jobs)} jobs: {trained} trained, {reused} taken from the store."
        print_sweep(rows, folder, warnings=warnings, note=note)


def read_jobs(folder: Path) -> dict[str, tuple[Mapping[str, Any], Results]]:
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
            results: Results = json.loads(path.read_text(encoding="utf-8"))
            overrides = OmegaConf.load(path.parent / ".hydra" / "overrides.yaml")
        except (OSError, ValueError) as error:
            raise UserError(f"{path.parent}: not a job of a sweep: {error}") from error
        if "grid" not in results:  # a job with mode=merge has its own page
            parsed = OverridesParser.create().parse_overrides([str(one) for one in overrides])
            parameters = {str(one.key_or_group): _plain(one.value()) for one in parsed}
            jobs[path.parent.name] = (parameters, results)
    return jobs


def _plain(value: Any) -> Any:
    """A value that can stand in a table, and in a figure: no bytes of a name that is not UTF-8."""
    if isinstance(value, int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else 1 << 30, name)
