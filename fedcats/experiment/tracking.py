"""What a run tells a tracker: loss while it trains, then scores, settings, the answer, figures.

``tracking=tensorboard`` writes TensorBoard's files into the run folder. The others write where
their own programs look for it, in the folder in which the command was given: ``mlflow`` into
``mlflow.db`` and ``mlruns`` (or where ``MLFLOW_TRACKING_URI`` says), ``wandb`` into ``wandb``, and
sends nothing unless ``WANDB_MODE`` says so. Without it nothing of it is imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from fedcats.config.schema import Config
from fedcats.environment import say
from fedcats.errors import RunError, UserError, first_line
from fedcats.experiment.folders import is_job
from fedcats.locks import locked
from fedcats.report import cautions, varied, verdict, view
from fedcats.report.estimate import FINISHED
from fedcats.results import Results, Validation

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
_PROJECT = "fedcats"
VALIDATION: tuple[Literal["loss", "accuracy"], ...] = ("loss", "accuracy")


class Tracker:
    """Takes note of nothing."""

    def loss(
        self, task: str, epoch: int, loss: float, state: str, validation: Validation | None
    ) -> None:
        """Mean training loss of an epoch of what is trained, and its scores on held-out photos."""

    def results(self, results: Results, folder: Path) -> None:
        """All that came out, when the run folder is complete."""

    def close(self, *, failed: bool) -> None:
        """The run has ended."""


class Writer(Tracker):
    """Notes each loss once, and no more after a fault: the run is worth more than its record."""

    name = ""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._lost = False

    def loss(
        self, task: str, epoch: int, loss: float, state: str, validation: Validation | None
    ) -> None:
        """Each epoch once; what was found in the store was trained by another run."""
        if (state in FINISHED and state != "done") or self._last.get(task) == epoch:
            return
        self._last[task] = epoch
        values = {"loss": loss}
        if validation:
            values |= {f"validation_{key}": validation[key] for key in VALIDATION}
        for name, value in values.items():
            self._try(functools.partial(self._scalar, _tag(f"{name}/{task}"), value, epoch))

    def results(self, results: Results, folder: Path) -> None:
        """Scores as scalars, the configuration, the answer, figures as images."""

        def note() -> None:
            for name, model in view.ordered(results).items():
                for key in view.MEASURES:
                    self._scalar(_tag(f"test_{key}/{name}"), model[key], 0)
            self._words(" ".join([*cautions.warnings(results), *verdict.answer(results)]), results)
            for path in sorted((folder / "figures").glob("*.png")):
                self._figure(path)

        self._try(note)

    def close(self, *, failed: bool) -> None:
        """End the record, too."""
        self._try(lambda: self._end(failed=failed))

    def _scalar(self, tag: str, value: float, step: int) -> None:
        """A loss of an epoch, from 1, or a score, at 0."""
        raise NotImplementedError

    def _words(self, answer: str, results: Results) -> None:
        """The answer and the configuration."""
        raise NotImplementedError

    def _figure(self, path: Path) -> None:
        """A PNG file."""
        raise NotImplementedError

    def _end(self, *, failed: bool) -> None:
        """Write what is left."""
        raise NotImplementedError

    def _try(self, do: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            do()
        except Exception as error:
            self._lost = True
            what = f"tracking={self.name}: {first_line(error)}; the run goes on without it"
            say(f"fedcats: {what}", error=True)


def _tag(name: str) -> str:
    """A name that all of them take."""
    return re.sub(r"[^\w/.-]+", "_", name)


class TensorBoard(Writer):
    """Writes ``tensorboard/`` in the run folder."""

    name = "tensorboard"

    def __init__(self, folder: Path, place: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__()
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, step)

    def _words(self, answer: str, results: Results) -> None:
        self._writer.add_text("answer", answer, 0)
        config = f"```\n{json.dumps(results['config'], indent=1)}\n```"
        self._writer.add_text("config", config, 0)

    def _figure(self, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(path.stem, pixels, 0, dataformats="HWC")

    def _end(self, *, failed: bool) -> None:
        self._writer.close()


class MLflow(Writer):
    """A run of the experiment ``fedcats``; the jobs of a sweep are children of one run."""

    name = "mlflow"

    def __init__(self, folder: Path, place: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        super().__init__()
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            uri, artifacts = f"sqlite:///{place / 'mlflow.db'}", (place / "mlruns").as_uri()
        with locked(place / ".mlflow.lock", keep=False):  # one makes what is missing
            self._client = MlflowClient(uri)
            found = self._client.get_experiment_by_name(_PROJECT)
            self._experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(_PROJECT, artifact_location=artifacts)
            )
            tags = {"mlflow.parentRunId": self._parent(folder.parent)} if is_job(folder) else {}
        name = "/".join(folder.parts[-2:])
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        self._id: str = run.info.run_id

    def _parent(self, sweep: Path) -> str:
        """The run that stands for a sweep, made by its first job; it ends at once."""
        key = hashlib.sha256(os.fsencode(sweep)).hexdigest()
        which = f"tags.sweep = '{key}'"
        for run in self._client.search_runs([self._experiment], which, max_results=1):
            return str(run.info.run_id)
        name = "/".join(sweep.parts[-2:])
        parent = self._client.create_run(self._experiment, run_name=name, tags={"sweep": key})
        self._client.set_terminated(parent.info.run_id)
        return str(parent.info.run_id)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._client.log_metric(self._id, tag, value, step=step)

    def _words(self, answer: str, results: Results) -> None:
        self._client.set_tag(self._id, "mlflow.note.content", answer)
        from mlflow.entities import Param

        config = varied.flat(results["config"])
        params = [Param(key, ascii(value)[:500].strip("'")) for key, value in config]
        for start in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])

    def _figure(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), "figures")

    def _end(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class WandB(Writer):
    """A run of the project ``fedcats``; the jobs of a sweep are a group."""

    name = "wandb"

    def __init__(self, folder: Path, place: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_MODE", "offline")
        import wandb

        super().__init__()
        self._run = wandb.init(
            project=_PROJECT,
            name="/".join(folder.parts[-2:]),
            group="/".join(folder.parent.parts[-2:]) if is_job(folder) else None,
            dir=str(place),
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False,
                x_disable_stats=True, x_disable_meta=True,
            ),
        )  # fmt: skip
        self._run.define_metric("epoch", hidden=True)
        for name in ("loss", *(f"validation_{key}" for key in VALIDATION)):
            self._run.define_metric(f"{name}/*", step_metric="epoch")

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if step:
            self._run.log({tag: value, "epoch": step})
        else:
            self._run.summary[tag] = value

    def _words(self, answer: str, results: Results) -> None:
        self._run.config.update(results["config"])
        self._run.summary["answer"] = answer

    def _figure(self, path: Path) -> None:
        import wandb

        self._run.log({path.stem: wandb.Image(str(path))})

    def _end(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


WRITERS: dict[str, type[TensorBoard | MLflow | WandB]] = {
    writer.name: writer for writer in (TensorBoard, MLflow, WandB)
}


@contextlib.contextmanager
def tracking(config: Config, folder: Path, place: Path) -> Iterator[Tracker]:
    """The configuration's tracker, closed at the end.

    Parameters
    ----------
    folder
        Of the run.
    place
        Where the command was given.

    Raises
    ------
    UserError
        When its package is not installed.
    RunError
        When it cannot start.
    """
    if config.tracking == "none":
        yield Tracker()
        return
    packages = PACKAGES[config.tracking]
    for package in packages:
        if importlib.util.find_spec(package.removesuffix("-skinny")) is None:
            raise UserError(
                f"tracking={config.tracking}: the package {package} is not installed; allowed is "
                f"none, or pip install {' '.join(packages)}"
            )
    try:
        tracker = WRITERS[config.tracking](folder, place)
    except Exception as error:
        raise RunError(f"tracking={config.tracking}: {first_line(error)}") from error
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.close(failed=failed)
