"""The experiment in Python, in the paper's words; every name here is one of ``fedcats`` itself.

What is asked for becomes the configuration that the command line would compose, and goes through
the same code: the same settings give the same bytes, and the same entries of the store. So a merge
after `federate` trains nothing, and a cell that was stopped goes on where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedcats.config import asked
from fedcats.config.asked import Function, Settings
from fedcats.config.compose import as_dict, compose_config
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.experiment.finished import read_results
from fedcats.report import view
from fedcats.report.shown import Shown, beside

if TYPE_CHECKING:
    from fedcats.experiment.predicting import Answers
    from fedcats.results import Results


@dataclass(frozen=True)
class Photos:
    """Where photos come from; nothing is read before it is needed. Made by `photos`, `drawings`."""

    source: str | Function
    settings: Settings = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name what was asked for."""
        given = "".join(f", {key}={value!r}" for key, value in self.settings.items())
        return f"Photos({_called(self.source)}{given})"


@dataclass(frozen=True)
class Shards:
    """Who gets which photos. Made by `shards`."""

    photos: Photos
    partition: str | Function
    clients: int | None
    settings: Settings = field(default_factory=dict)

    def counts(self, seed: int | None = None) -> list[dict[str, int]]:
        """Deal out the photos, and count those of each class that each client gets.

        Parameters
        ----------
        seed
            Of the run; by default the configuration's.

        Returns
        -------
        list of dict
            For each client the number of training photos by class, before any are held out.
        """
        from fedcats.experiment.inputs import class_counts, deal_out, decoded, make_source
        from fedcats.report import Progress

        config = load(asked.raw(_composed(self.photos, self, {"seed": seed})))
        with Progress() as progress:
            dataset = decoded(config, make_source(config, progress), progress)
        shards = deal_out(config, dataset)
        return [class_counts(dataset.train.subset(one), dataset.classes) for one in shards]

    def _repr_html_(self) -> str:
        from fedcats.report import tables

        counts = self.counts()
        rows = [(str(i), *map(str, one.values())) for i, one in enumerate(counts)]
        table = tables.Table("The shards", ("client", *counts[0]), rows)
        return tables.to_html(table)


@dataclass(frozen=True)
class Merging:
    """A merge rule with its parameters. Made by `polyak`, `fedavg` and `rule`."""

    rule: str | Function
    parameters: Settings = field(default_factory=dict)


class Run(Shown):
    """A finished run: its results, its models, and what can be done with them next.

    Attributes
    ----------
    folder
        The run folder, with all that the command line writes.
    results
        What ``results.json`` holds (`fedcats.results.Results`).
    """

    def __init__(self, folder: Path, results: Results | None = None) -> None:
        self.folder = folder
        super().__init__(read_results(folder) if results is None else results, folder)

    def merge(
        self, *rules: Merging | str | Function, folder: str | Path | None = None, **settings: Any
    ) -> Run:
        """Merge the same clients' models by other rules; with one round nothing is trained.

        Parameters
        ----------
        rules
            As of `polyak`, `fedavg` and `rule`; a rule's name; or a function of your own,
            ``(updates, examples, start) -> merged`` (docs/extending.md).
        folder
            Of the new run; by default a new one below ``outputs``.
        settings
            Others of ``strategy``, such as ``order="reversed"``.
        """
        config = self._config()
        config["mode"] = "federated"
        asked.set_rules(config, _pairs(rules))
        for key, value in settings.items():
            asked.set_key(config, f"strategy.{key}", value)
        return _run(config, folder)

    def centralized(self, *, folder: str | Path | None = None) -> Run:
        """Train the model that has all photos in one place, as this run's configuration says."""
        return _run(self._config() | {"mode": "centralized"}, folder)

    def compare(self, *runs: Run) -> Shown:
        """Set merged models beside the centralized one on the same test photos.

        Parameters
        ----------
        runs
            Whose merged models; by default this run's own. The centralized model is trained now
            if it is in none of them.
        """
        merged = runs or (self,)
        have = (one for one in (self, *merged) if "centralized" in one.results["models"])
        base = next(have, None) or self.centralized()
        own = (one for one in (self, *merged) if view.submodels(one.results))
        return Shown(beside(base, next(own, self), merged))

    def predict(self, *photos: str | Path, clients: bool = False) -> Answers:
        """Ask the run's models about photos; see `fedcats.experiment.predicting.predict`.

        Parameters
        ----------
        photos
            Files, folders, zip archives.
        clients
            The clients' own models, too.
        """
        from fedcats.experiment.predicting import predict

        given = [Path(one).expanduser() for one in photos]
        return predict(self.folder, self.results, given, clients=clients)

    def _config(self) -> dict[str, Any]:
        """Its configuration; keys that there were not yet when it ran have their defaults."""
        found = copy.deepcopy(self.results["config"])
        found["seeds"], found["vary"] = None, "all"
        found["seed"] = self.results["seed"]
        for key, value in as_dict(compose_config([])).items():
            found.setdefault(key, value)
            if isinstance(value, dict) and key not in ("data", "partition", "runner", "paper"):
                found[key] = value | found[key]
        return found

    def __repr__(self) -> str:
        """Name the folder and the models."""
        return f"Run({str(self.folder)!r}: {', '.join(self.models)})"


def photos(
    root: str | Path | None = None, *, source: str | Function = "folder", **settings: Any
) -> Photos:
    """Photos of your own, of a host, or of a function of yours.

    Parameters
    ----------
    root
        A folder or zip archive: ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, or just
        ``<class>/*.jpg`` (docs/data.md).
    source
        An option of ``data``: ``folder``, ``petimages``, ``oxford_pets``, ``hub``, ..; or a
        function ``(seed, **settings) -> fedcats.data.Source`` (docs/extending.md).
    settings
        Of ``data``, such as ``test_fraction=0.25`` or ``limit=100``; of a function its arguments.
    """
    if root is not None:
        settings = {"root": str(root), **settings}
    elif source == "folder":
        raise UserError("photos(): a folder is needed, or source=..; drawings() needs no photos")
    return Photos(source, settings)


def drawings(**settings: Any) -> Photos:
    """Cats and dogs that fedcats draws itself; ``train_per_class`` and ``test_per_class``."""
    return Photos("synthetic", settings)


def shards(
    photos: Photos,
    partition: str | Function = "equal",
    *,
    clients: int | None = None,
    **settings: Any,
) -> Shards:
    """Deal photos out to clients.

    Parameters
    ----------
    photos
        Which.
    partition
        ``equal``, ``paper``, ``iid``, ``dirichlet``, ``pathological``, .. (docs/data.md); or a
        function ``(labels, num_shards, seed, **settings)`` that gives an array of positions for
        each client.
    clients
        How many; by default ten.
    settings
        Of the partition, such as ``alpha=0.5`` or ``per_class=99``.
    """
    return Shards(photos, partition, clients, settings)


def rule(what: str | Function, **parameters: Any) -> Merging:
    """Name a merge rule, ``rule("trimmed_mean", trim=0.1)``, or bring one, ``rule(mine, n=50)``.

    Parameters
    ----------
    what
        A rule of ``strategy.rules``, a function ``(updates, examples, start, **parameters)``, or a
        class or object of `fedcats.merging.rules.Rule`.
    parameters
        By default the configuration's.
    """
    return Merging(what, parameters)


def polyak(beta: float | Literal["auto"] | None = None, start: str | None = None) -> Merging:
    """The paper's merge, ``w <- beta * w_i + (1 - beta) * w``, beginning with the first model.

    Parameters
    ----------
    beta
        Share of the incoming model, by default 0.5; ``auto``: chosen on held-out photos.
    start
        ``first`` as in the paper, or ``global``: the model that the clients started from.
    """
    given = {"beta": beta, "start": start}
    return Merging("polyak", {key: value for key, value in given.items() if value is not None})


def fedavg() -> Merging:
    """The mean of the models, weighted by how many photos each was trained on."""
    return Merging("fedavg")


def federate(
    photos: Photos,
    shards: Shards | None = None,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    trainable: Literal["all", "classifier", "head"] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    rounds: int | None = None,
    rules: Sequence[Merging | str | Function] = (),
    centralized: bool = False,
    seed: int | None = None,
    seeds: int | list[int] | None = None,
    runner: Literal["ray", "local"] | None = None,
    workers: int | None = None,
    folder: str | Path | None = None,
    settings: Settings | None = None,
) -> Run:
    """Train a copy of one model on each shard, merge the weights, test all on the same photos.

    What is left out has the command line's default (docs/configuration.md).

    Parameters
    ----------
    photos, shards
        What the clients train on; by default ten equal shards.
    model, weights, trainable
        A torchvision classifier, what it starts from, which part is trained.
    epochs, batch_size, lr, rounds
        The recipe. The paper has 10, 4, 0.001, one.
    rules
        How to merge; by default by Polyak and FedAvg.
    centralized
        Train the model that has all photos beside it, so that this run compares.
    seed, seeds
        One experiment, or several and one verdict over them (these compare).
    runner, workers
        ``ray``: as many processes as there are cores, or ``workers``; ``local``: one client after
        another in this process.
    folder
        Where the results go; by default a new folder below ``outputs``.
    settings
        Any other key of the configuration: ``{"train.momentum": 0.9, "hold_out": 0.2}``.

    Returns
    -------
    Run

    Raises
    ------
    UserError, RunError
        With one line that says what to do. What was trained until then is kept.
    """
    if shards is not None and shards.photos != photos:
        raise UserError("federate(): the shards are of other photos")
    given = {
        "mode": "compare" if centralized or seeds is not None else "federated",
        "model.name": model,
        "model.weights": weights and str(weights),
        "model.trainable": trainable,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "rounds": rounds,
        "seed": seed,
        "seeds": seeds,
        "runner.workers": workers,
    }
    config = _composed(photos, shards, given | dict(settings or {}), runner)
    if rules:
        asked.set_rules(config, _pairs(rules))
    return _run(config, folder)


def run(*overrides: str, folder: str | Path | None = None) -> Run:
    """Run what the command line would run: ``run("experiment=paper", "data.root=DIR")``.

    Parameters
    ----------
    overrides
        As after ``fedcats``.
    folder
        Where the results go; by default a new folder below ``outputs``.
    """
    return _run(as_dict(compose_config([*overrides])), folder)


def open(folder: str | Path) -> Run:
    """Open a run folder, whoever made it."""
    return Run(Path(folder).expanduser())


def _run(config: dict[str, Any], folder: str | Path | None) -> Run:
    from fedcats.experiment.run import run as run_experiment

    if folder is None:
        folder = Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
    where = Path(folder).expanduser().absolute()
    return Run(where, run_experiment(asked.raw(config), where, summary=False))


def _called(what: str | Function) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)


def _pairs(rules: Sequence[Merging | str | Function]) -> list[tuple[str | Function, Settings]]:
    found = (one if isinstance(one, Merging) else Merging(one) for one in rules)
    return [(one.rule, one.parameters) for one in found]


def _composed(
    photos: Photos, shards: Shards | None, given: Settings, runner: str | None = None
) -> dict[str, Any]:
    parts = [("data", "sources", photos.source, photos.settings)]
    if shards is not None:
        clients = {} if shards.clients is None else {"num_shards": shards.clients}
        parts.append(("partition", "partitions", shards.partition, clients | dict(shards.settings)))
    return asked.composed(parts, given, *([f"runner={runner}"] if runner else []))
