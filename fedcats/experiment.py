"""The experiment: train centralized and federated, merge, test on the same photos, compare."""

import contextlib
import csv
import functools
import json
import os
import platform
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from omegaconf import DictConfig
from torch import nn

from fedcats import __version__, tensors
from fedcats.centralized import Baseline
from fedcats.config.compose import as_dict
from fedcats.config.schema import Config, PhotoData, load
from fedcats.data import (
    Dataset,
    Images,
    Source,
    catalogue,
    hold_out,
    make_partition,
    prepare,
    shared_between_shards,
)
from fedcats.data.files import shown
from fedcats.data.sources import part_source
from fedcats.early import events_file, remember_trained
from fedcats.errors import RunError, UserError
from fedcats.federated.cluster import check_cluster
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.local import LocalGrid, run_local
from fedcats.federated.quiet import default_workers
from fedcats.federated.simulation import RayGrid, kill_stopped_actors, run_on_ray
from fedcats.federated.sites import Site, find_sites
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.transport import ByReference, Transport, wait_for_nodes
from fedcats.federated.wire import OnTheWire
from fedcats.folders import claimed
from fedcats.grid import (
    Candidate,
    Parts,
    Probabilities,
    SubModels,
    choose_beta,
    in_passes,
    merge_grid,
    probabilities,
    validation_scores,
)
from fedcats.home import home
from fedcats.merging.fold import effective_number
from fedcats.merging.names import ROBUST
from fedcats.merging.plan import Merged, Plan, merge_order
from fedcats.merging.robust import Robust
from fedcats.merging.rules import Rule, make_rule
from fedcats.merging.server_optimizer import OPTIMIZERS, Memory, ServerOptimizer
from fedcats.metrics import compare, read_predictions, scores, write_predictions
from fedcats.models import build, weights
from fedcats.models.weights import InitialWeights
from fedcats.report import Progress, Work, print_summary, write_report
from fedcats.report.estimate import LAST
from fedcats.seeding import derive_seed
from fedcats.storage import Store
from fedcats.tensors import State
from fedcats.training.attack import Attack
from fedcats.training.frozen import SharedTest
from fedcats.training.recipe import Recipe
from fedcats.training.update import (
    Task,
    Update,
    append_events,
    put_weights,
    read,
    report_done,
    weights_key,
)

SCHEMA = 1
TEST = "test on the same images"


@dataclass
class Run:
    """One run's inputs, all decided before anything is trained.

    Attributes
    ----------
    shards
        For each client, positions in ``dataset.train``, int64.
    workers
        Processes that train, and threads that test, at once.
    parameters
        State-dict keys that are no buffers.
    sites
        Of a real federation; then ``dataset`` has test images only and ``shards`` are empty.
    parts
        For each client, positions in ``dataset.train`` of its held-out images, int64; or empty.
    frozen, lock
        With a frozen part, its answers by the images' digest, filled in by one thread at a time.
    """

    config: Config
    folder: Path
    dataset: Dataset
    shards: list[np.ndarray[Any, np.dtype[np.int64]]]
    initial: InitialWeights
    store: Store
    workers: int
    device: str
    trained_names: list[str]
    parameters: frozenset[str]
    base: str = ""
    start: str = ""
    sites: list[Site] | None = None
    parts: list[np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=list)
    frozen: dict[str, SharedTest | None] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def held(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in ``dataset.train`` of all held-out images, ascending."""
        return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *self.parts]))

    @property
    def validation(self) -> Images:
        """The training images that nobody trains on; merges are chosen on them."""
        return self.dataset.train.subset(self.held)

    @property
    def events(self) -> Path:
        """The file to which everything that trains appends its progress."""
        return events_file(self.folder)

    @property
    def expected(self) -> dict[str, Work]:
        """What is going to be trained and tested."""
        config, epochs = self.config, self.config.train.epochs
        expected: dict[str, Work] = {}
        count = len(config.strategy.rules) if config.mode in ("compare", "federated") else 0
        if config.mode != "federated":
            images = len(self.dataset.train) - len(self.held)
            expected["centralized"] = Work(images, epochs * config.rounds, "centralized")
            count += 1
        if config.mode != "centralized":
            batch = 0
            for number in range(1, config.rounds + 1):
                chosen = self.plan.clients(number)
                count += len(chosen) if number == 1 else len(config.strategy.rules)
                for rule in config.strategy.rules if number > 1 else ("",):
                    batch += 1
                    for client in chosen:
                        work = Work(self.sizes[client], epochs, "clients", batch)
                        expected[self.name(client, number, rule)] = work
        # A test is only a forward pass, over many images at a time, and on all workers.
        tested = (len(self.dataset.test) + len(self.held)) / 3 / self.workers
        expected[TEST] = Work(tested, count, LAST)
        return expected

    @property
    def plan(self) -> Plan:
        """Who takes part in which round."""
        strategy = self.config.strategy
        return Plan(
            merge_order(strategy.order, len(self.shards), self.config.seed),
            strategy.fraction,
            self.config.seed,
            strategy.on_failure,
            strategy.min_clients,
            strategy.max_norm,
        )

    def name(self, client: int, server_round: int, rule: str = "") -> str:
        """What a client's task is called."""
        if self.config.rounds == 1:
            return f"client {client}"
        return f"round {server_round}, client {client}" + (f" ({rule})" if rule else "")

    @property
    def hostile(self) -> list[int]:
        """Clients that attack, by ``attack.clients``; drawn from the seed where it is a number."""
        attack = self.config.attack
        if attack.name == "none":
            return []
        if isinstance(attack.clients, list):
            return sorted(attack.clients)
        draw = random.Random(derive_seed(self.config.seed, "attack"))
        return sorted(draw.sample(range(len(self.shards)), attack.clients))

    @property
    def sizes(self) -> list[int]:
        """How many training images each client has."""
        if self.sites is not None:
            return [sum(site.per_class.values()) for site in self.sites]
        return [len(shard) for shard in self.shards]

    @property
    def trainings(self) -> dict[str, int]:
        """How many images each training of a round has, by who trains."""
        mode = self.config.mode
        own = {f"client {i}": size for i, size in enumerate(self.sizes)}
        sizes = {} if mode == "centralized" else own
        if mode != "federated":
            sizes["centralized"] = len(self.dataset.train) - len(self.held)
        return sizes

    def task(self, client: int | str, server_round: int, start: str, rule: str = "") -> Task:
        """What a client does in a round (or the baseline, with all images).

        From the second round on each ``rule`` goes its own way.
        """
        config = self.config
        recipe = Recipe(**asdict(config.train))
        if client == "centralized":
            indices = np.setdiff1d(np.arange(len(self.dataset.train)), self.held)
            name = "centralized"
            recipe = replace(recipe, epochs=recipe.epochs * config.rounds, proximal_mu=0.0)
        else:
            indices = self.shards[cast(int, client)]
            name = self.name(cast(int, client), server_round, rule)
        return Task(
            name=name,
            client=client,
            round=server_round,
            seed=config.seed,
            model=config.model.name,
            num_classes=len(self.dataset.classes),
            trainable=config.model.trainable,
            base=self.base,
            start=start,
            data=str(self.dataset.path),
            indices=tuple(int(i) for i in indices),
            recipe=recipe,
            threads=config.runner.threads,
            # A site decides by its own machine.
            device=self.device if self.sites is None else config.runner.device,
            checkpoint_seconds=config.store.checkpoint_seconds,
            attack=Attack(config.attack.name, config.attack.factor)
            if client in self.hostile
            else None,
        )


@dataclass
class Trained:
    """What training gave: keys in the store, and the merges of the last round by rule.

    ``beta`` is polyak's; with ``strategy.beta=auto`` ``betas`` has the accuracy of each candidate
    on the held-out images.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    merged: dict[str, Merged] = field(default_factory=dict)
    earlier: list[dict[str, Merged]] = field(default_factory=list)
    history: list[tuple[str, int, Update]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    beta: float | None = None
    betas: dict[str, float] = field(default_factory=dict)

    def add(self, model: str, server_round: int, update: Update) -> None:
        """Remember an update without its tensors: they are in the store."""
        update = replace(update, tensors={})
        self.history.append((model, server_round, update))
        self.updates.setdefault(model, update)

    def own(self) -> SubModels:
        """The clients' models of the first round."""
        own = {
            int(model.split("/")[1]): update
            for model, update in self.updates.items()
            if model.startswith("submodel/")
        }
        return SubModels(
            {client: update.key for client, update in own.items()},
            {client: update.examples for client, update in own.items()},
        )


def run(raw: DictConfig, folder: Path, grid: Grid | None = None) -> dict[str, Any]:
    """Run the experiment of a composed configuration.

    Parameters
    ----------
    raw
        As Hydra composes it (see `fedcats.config.compose.compose_config`).
    folder
        Where the results go; made when missing.
    grid
        Where the clients are, when Flower runs this (see `fedcats.federated.server_app`); by
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
    with claimed(folder, alone=config.runner.name != "flwr"):  # there the submitter has it
        return _run(config, raw, folder, grid)


def _run(config: Config, raw: DictConfig, folder: Path, grid: Grid | None) -> dict[str, Any]:
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with Progress() as progress, _store(config, folder) as store:
        with _clock(seconds, "data"):
            this = _prepare(config, folder, store, progress, grid)
            _write_shards(this)
            progress.expect(this.expected)
        with _clock(seconds, "training"), _follow(this.events, progress):
            trained = _train(this, grid)
            remember_trained(config)
        with _clock(seconds, "evaluation"):
            results = _results(this, raw, trained)
            results["models"] = _evaluate(this, trained, results, progress)
            results["comparison"] = _compare(this, results["models"])
            if config.mode == "merge":
                with ThreadPoolExecutor(this.workers) as pool:
                    results["grid"] = merge_grid(this, trained.own(), progress, pool)
    results["seconds"] = {**seconds, "total": time.perf_counter() - started}
    _write_history(folder, trained)
    _write_json(folder / "results.json", results)
    this.events.unlink(missing_ok=True)
    write_report(folder, results)
    if config.runner.name != "flwr":  # there, whoever submitted the run prints it
        print_summary(results, folder)
    return results


# --- before training -------------------------------------------------------------------------


def make_source(config: Config, progress: Progress) -> Source:
    """Where the images come from; downloaded now where that is needed."""

    def on_download(there: int, total: int) -> None:
        state = "done" if there == total else "loading"
        progress.update("download, MB", there // 10**6, total // 10**6, None, state)

    params = asdict(config.data)
    name = params.pop("name")
    for key in ("max_bad_fraction", "keep_duplicates"):  # of the decoding
        params.pop(key, None)
    seed = derive_seed(config.seed, "drawings" if name == "synthetic" else "split")
    downloads = home() / "downloads"
    return catalogue.make_source(
        name, seed=seed, downloads=downloads, on_download=on_download, **params
    )


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


def decoded(config: Config, source: Source, progress: Progress, *, strict: bool = True) -> Dataset:
    """The images in the cache; says what the check of the files found, and fails if ``strict``."""
    options: dict[str, Any] = {}
    if isinstance(config.data, PhotoData):
        options["max_bad_fraction"] = config.data.max_bad_fraction
        options["keep_duplicates"] = config.data.keep_duplicates
    if not strict:
        options["max_bad_fraction"] = None
    options["max_bytes"] = int(config.store.images_gb * 1e9)

    def on_progress(done: int, total: int) -> None:
        state = "done" if done == total else "decoding"
        progress.update("images", done, total, None, state)

    dataset = prepare(source, home() / "data", on_progress=on_progress, **options)
    for line in _findings(dataset):
        progress.message(line)
    return dataset


def _prepare(
    config: Config, folder: Path, store: Store, progress: Progress, grid: Grid | None
) -> Run:
    build.check_name(config.model.name)  # before anything takes time
    sites = None
    parts: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    if config.partition.name == "sites":
        if grid is None:
            raise UserError(
                "partition.name=sites: for SuperNodes only; allowed are the options of partition"
            )
        dataset = decoded(config, _test_source(config, progress), progress)
        sites = find_sites(grid, dataset.classes)
        order = config.strategy.order
        if isinstance(order, list) and sorted(order) != list(range(len(sites))):
            raise UserError(
                f"strategy.order={order}: a list must name each site 0 .. {len(sites) - 1} once"
            )
        shards = [np.zeros(0, dtype=np.int64) for _ in sites]
    else:
        if grid is not None and config.mode != "centralized":  # before anything takes time
            wait_for_nodes(grid, config.partition.num_shards)
        dataset = decoded(config, make_source(config, progress), progress)
        shards = deal_out(config, dataset)
        if shared := shared_between_shards(dataset.train, shards):
            where = " = ".join(f"{shown(file)} (client {client})" for client, file in shared[0])
            progress.message(
                f"{len(shared)} photos are in several shards, e.g. {where} "
                "(all of them: results.json, data.in_several_shards)"
            )
        if config.held_out:
            seed = derive_seed(config.seed, "validation")
            shards, parts = hold_out(dataset.train.labels, shards, config.held_out, seed)
            if not any(len(part) for part in parts):
                raise UserError(
                    f"hold_out={config.held_out:g}: nothing is held out of shards this small; "
                    "allowed is a larger share, or fewer clients"
                )
    initial = weights.initial_weights(
        config.model.name,
        len(dataset.classes),
        config.model.weights,
        config.seed,
        home(),
        progress.message,
    )
    if initial.note:
        progress.message(initial.note)
    model = build.empty(config.model.name, len(dataset.classes), initial.state)
    names = build.set_trainable(model, config.model.trainable)
    cuda = torch.cuda.is_available()
    if config.runner.device == "cuda" and not cuda:
        raise UserError("runner.device=cuda: no GPU can be used here; allowed are auto, cpu")
    this = Run(
        config,
        folder,
        dataset,
        shards,
        initial,
        store,
        config.runner.workers or default_workers(),
        "cuda" if cuda and config.runner.device != "cpu" else "cpu",
        names,
        frozenset(name for name, _ in model.named_parameters()),
        sites=sites,
        parts=parts,
    )
    _check_room(this)
    _check_sizes(this)
    _check_step(this, model)
    start = _part(initial.state, names)
    whole = len(start) == len(initial.state)
    this.base, this.start = initial.sha256, initial.sha256 if whole else tensors.digest(start)
    store.hold([weights_key(sha256) for sha256 in (this.base, this.start)])
    for sha256, state in {this.base: initial.state, this.start: start}.items():
        put_weights(store, state, sha256)
    if grid is None and config.mode in ("compare", "federated") and (address := _address(config)):
        with tempfile.NamedTemporaryFile(dir=store.root, prefix=".shared-", suffix=".tmp") as file:
            check_cluster(address, [dataset.path, folder, Path(file.name)])
    return this


def _address(config: Config) -> str | None:
    """Of the Ray cluster on which the clients are to run."""
    return cast(str | None, getattr(config.runner, "address", None))


def _test_source(config: Config, progress: Progress) -> Source:
    """The server's test photos, in a federation where it has no others."""
    if config.data.name == "synthetic":
        return replace(make_source(config, progress), train=())
    if config.data.name != "folder" or config.data.limit or config.data.counts:
        raise UserError(
            f"data.name={config.data.name}: in a real federation the server's test photos come "
            "from data=folder, all of them (without data.limit and data.counts)"
        )
    return part_source(Path(config.data.root), "test")


def deal_out(config: Config, dataset: Dataset) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """For each client, positions in ``dataset.train``, int64."""
    partition = asdict(config.partition)
    return make_partition(
        partition.pop("name"),
        dataset.train.labels,
        partition.pop("num_shards"),
        derive_seed(config.seed, "partition"),
        **partition,
    )


def class_counts(images: Images, classes: Sequence[str]) -> dict[str, int]:
    """How many images of each class there are."""
    counts = Counter(int(label) for label in images.labels)
    return {name: counts[label] for label, name in enumerate(classes)}


def _check_room(this: Run) -> None:
    """UserError when the disk cannot hold the models, or the store what it needs at one time."""
    config, store = this.config, this.store
    if config.save_models != "none" and config.mode != "merge":
        whole = sum(value.nbytes for value in this.initial.state.values())
        count = int(config.mode != "federated")
        if config.mode != "centralized":
            count += len(config.strategy.rules)
            count += len(this.shards) * (config.save_models == "all")
        free = shutil.disk_usage(this.folder).free
        if count * whole > free:
            less = "merged or none" if config.save_models == "all" else "none"
            raise UserError(
                f"save_models={config.save_models}: {count} models of {whole / 1e6:.0f} MB do not "
                f"fit into {this.folder}, where {free / 1e9:.2g} GB are free; allowed is {less}"
            )
    if store.max_bytes is None:
        return
    state = this.initial.state
    base = sum(value.nbytes for value in state.values())
    update = sum(state[name].nbytes for name in this.trained_names)
    clients = 0 if config.mode == "centralized" else len(this.shards)
    count = 1 + clients + (config.mode != "federated")  # the start, the clients, the baseline
    count += 1 + clients if config.rounds > 1 else 0  # the round at hand
    unfinished = min(this.workers, clients) + 1
    checkpoints = unfinished * update * (2 if config.train.momentum else 1)
    need = base + count * update + checkpoints
    if need > store.max_bytes:
        raise UserError(
            f"store.max_gb={config.store.max_gb:g}: this run needs {need / 1e9:.2g} GB at one time "
            f"({count} updates of {update / 1e6:.0f} MB, checkpoints, initial weights); allowed "
            "is more than that, or store.enabled=false"
        )


def _check_sizes(this: Run) -> None:
    """UserError when somebody would train on nothing."""
    train = this.config.train
    for who, size in this.trainings.items():
        if train.drop_last and size < train.batch_size:
            raise UserError(
                f"train.drop_last=true: {who} has {size} training images, fewer than "
                f"train.batch_size={train.batch_size}, and would train on nothing"
            )


def _check_step(this: Run, model: nn.Module) -> None:
    """UserError when the model cannot take a step on each batch that there will be."""
    train, name, side = this.config.train, this.config.model.name, this.dataset.size

    def smallest(size: int) -> int:
        rest = size % train.batch_size
        return rest if rest and not train.drop_last else min(size, train.batch_size)

    torch.set_num_threads(this.config.runner.threads)
    if not (why := build.refusal(model, 1, side)):
        return  # then it takes more, too
    if always := build.refusal(model, 2, side):
        raise UserError(
            f"model.name={name}: cannot be trained on images of {side} x {side}: {always}"
        )
    who, size = min(this.trainings.items(), key=lambda item: smallest(item[1]))
    if smallest(size) > 1:
        return
    if size == 1:
        allowed = "allowed are partitions and counts that give everyone two images"
    elif train.batch_size == 1:
        allowed = "allowed is a larger train.batch_size"
    else:
        allowed = "allowed is train.drop_last=true, or another train.batch_size"
    raise UserError(
        f"train.batch_size={train.batch_size}: of {size} training images of {who} a batch of one "
        f"is made, which {name} cannot be trained on ({why}); {allowed}"
    )


def _findings(dataset: Dataset) -> list[str]:
    """What the check of the files found that changes the data, a line each."""
    audit, lines = dataset.audit, []
    if audit.quarantined:
        file, reason = audit.quarantined[0]
        lines.append(
            f"{len(audit.quarantined)} of {audit.checked} files cannot be used and are left out, "
            f"e.g. {shown(file)}: {reason} (all of them: results.json, data.audit)"
        )
    if audit.in_test_too and audit.removed:
        train, test = audit.in_test_too[0]
        lines.append(
            f"{len(audit.in_test_too)} training images are test images too and are left out of "
            f"training, e.g. {shown(train)} = {shown(test)}"
        )
    return lines


def _part(state: Mapping[str, torch.Tensor], names: Sequence[str]) -> State:
    return {name: state[name] for name in names}


def _write_shards(this: Run) -> None:
    """Which file went to which client, with its content hash."""
    if this.sites is not None:
        return  # that is the sites' own business
    path = this.folder / "shards.csv"
    # surrogateescape: a file name need not be valid UTF-8
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["client", "file", "label", "sha256"])
        for client, indices in enumerate(this.shards):
            images = this.dataset.train.subset(indices)
            labels = [this.dataset.classes[label] for label in images.labels]
            writer.writerows(
                [client, *row] for row in zip(images.files, labels, images.digests, strict=True)
            )


# --- training --------------------------------------------------------------------------------


def _train(this: Run, grid: Grid | None) -> Trained:
    """The baseline in a process of its own, and beside it the federation."""
    mode = this.config.mode
    trained = Trained()
    with contextlib.ExitStack() as stack:
        baseline = None
        workers = this.workers
        if mode != "federated":
            task = this.task("centralized", 1, this.start)
            key = task.key(task.images(this.dataset.train))
            this.store.hold([key], "baseline")
            found = read(this.store, key)
            if found is None:
                baseline = stack.enter_context(Baseline(task, this.store, this.events))
                workers = max(1, workers - 1)  # the baseline keeps one core busy
            else:
                trained.add("centralized", 1, found)
                report_done(task, found, append_events(this.events))
        if mode != "centralized":
            _federate(this, trained, workers, grid)
        if baseline is not None:
            damaged = key in this.store.damaged
            trained.add("centralized", 1, replace(baseline.result(), damaged=damaged))
    return trained


def _federate(this: Run, trained: Trained, workers: int, grid: Grid | None) -> None:
    """Run the server's part on Flower's grid, or on one that the configuration names."""
    if grid is not None:
        serve(this, trained, grid)
        return
    clients = len(this.shards)
    tasks = [this.task(client, 1, this.start) for client in range(clients)]
    keys = [task.key(task.images(this.dataset.train)) for task in tasks]
    this.store.hold(keys, "clients")
    nothing_to_train = this.config.rounds == 1 and all(key in this.store for key in keys)
    if this.config.mode == "merge" and nothing_to_train:
        found = [read(this.store, key) for key in keys]
        if all(found):
            report = append_events(this.events)
            for client, update in enumerate(cast(list[Update], found)):
                trained.add(f"submodel/{client}", 1, update)
                report_done(tasks[client], update, report)
            return

    def main(grid: Grid) -> None:
        serve(this, trained, grid)

    if this.config.runner.name == "local" or nothing_to_train:
        run_local(main, clients, verbose=this.config.verbose)
    else:
        run_on_ray(
            main,
            clients,
            min(workers, clients),
            address=_address(this.config),
            verbose=this.config.verbose,
        )


def make_merge(
    config: Config, name: str, beta: float, parameters: frozenset[str]
) -> Rule | Robust | ServerOptimizer:
    """The rule ``name`` as the configuration has it.

    Parameters
    ----------
    beta
        Polyak's, where ``strategy.beta`` is ``auto``.
    parameters
        State-dict keys that a server optimizer moves.
    """
    strategy = config.strategy
    if name in ROBUST:
        return Robust(name, strategy.trim, strategy.malicious)
    if name in OPTIMIZERS:
        settings = asdict(getattr(strategy, name))
        return OPTIMIZERS[name](parameters=parameters, **settings)
    return make_rule(name, beta=beta, start=strategy.start)


def serve(this: Run, trained: Trained, grid: Grid) -> None:
    """The server: all rules share the first round's training, then each goes its own way."""
    config = this.config
    auto = config.strategy.beta == "auto" and "polyak" in config.strategy.rules
    beta = 0.5 if config.strategy.beta == "auto" else float(config.strategy.beta)
    rules = {
        name: make_merge(config, name, beta, this.parameters) for name in config.strategy.rules
    }
    clients = len(this.shards)
    hangs: float | None = config.strategy.timeout
    if this.sites is None and isinstance(grid, LocalGrid):
        hangs = None  # clients run in this very process
    transport: Transport = ByReference(this.store, this.events, hangs)
    poll_seconds = 0.05
    if this.sites is not None:
        nodes = [site.node for site in this.sites]
        limit = int(config.store.max_gb * 1e9)
        transport = OnTheWire(
            this.store,
            nodes,
            this.dataset.classes,
            this.initial.state,
            limit,
            config.strategy.timeout,
        )
        poll_seconds = 1.0
    window = None
    if isinstance(grid, RayGrid) and _address(config) is None:  # the number of workers is known
        window = max(32, 8 * this.workers)
    in_order = cast(Grid, InOrderGrid(grid, poll_seconds, window, kill_stopped_actors))
    # A client that hangs ends its own process; this is for one that cannot even do that.
    patience = None if hangs is None else hangs * (config.train.epochs + 1) * clients

    memory: dict[str, Memory] = {}

    def strategy(names: Sequence[str], first_round: int, rule: str = "") -> MergeStrategy:
        prefix = f"{rule}/" if rule else ""
        keys: list[str] = []

        def make_tasks(clients: Sequence[int], server_round: int, start: str) -> list[Task]:
            tasks = [this.task(client, server_round, start, rule) for client in clients]
            keys.append(weights_key(start))
            keys.extend(task.key(task.images(this.dataset.train)) for task in tasks)
            this.store.hold(keys, "round")
            return tasks

        def on_update(client: int, server_round: int, update: Update) -> None:
            trained.add(f"{prefix}submodel/{client}", server_round, update)
            if this.sites is not None:  # a site's progress is seen when its update has come
                keys.append(update.key)
                this.store.hold(keys, "round")
                task = this.task(client, server_round, "", rule)
                report_done(task, update, append_events(this.events))

        return MergeStrategy(
            {name: rules[name] for name in names},
            this.plan,
            make_tasks,
            this.sizes,
            this.store,
            transport,
            on_update,
            first_round,
            memory,
        )

    shared = strategy(list(rules), 1)
    start = ArrayRecord(_part(this.initial.state, this.trained_names))
    shared.start(in_order, start, num_rounds=1, timeout=cast(float, patience))
    trained.merged = dict(shared.merged)
    trained.failures = {f"round 1, client {c}": why for c, why in shared.failures.items()}
    if auto and config.mode != "merge":
        with ThreadPoolExecutor(this.workers) as pool:
            chosen = choose_beta(this, trained.own(), trained.merged["polyak"].clients, pool)
        old = trained.merged["polyak"]
        beta, trained.betas, best = chosen
        trained.merged["polyak"] = replace(best, down=old.down, up=old.up)
        rules["polyak"] = make_rule("polyak", beta=beta)  # in the rounds to come, too
    trained.beta = beta
    trained.earlier = [dict(trained.merged)]
    for server_round in range(2, config.rounds + 1):
        trained.earlier.append({})
        for name in rules:
            one = strategy([name], server_round, name)
            start = ArrayRecord(trained.merged[name].state)
            one.start(in_order, start, num_rounds=1, timeout=cast(float, patience))
            trained.merged[name] = one.merged[name]
            trained.earlier[-1][name] = one.merged[name]
            trained.failures |= {
                f"round {server_round}, client {c} ({name})": why for c, why in one.failures.items()
            }


@contextlib.contextmanager
def _follow(events: Path, progress: Progress) -> Iterator[None]:
    """Show what the processes that train append to ``events``."""
    events.unlink(missing_ok=True)
    events.touch()
    stop = threading.Event()

    def follow() -> None:
        with events.open(encoding="utf-8") as file:
            rest = ""
            while True:
                last = stop.is_set()
                rest += file.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    event = json.loads(line)
                    event.pop("round")
                    ago = min(max(time.time() - event.pop("time"), 0.0), 1.0)  # clocks differ
                    progress.update(**event, ago=ago)
                if last:
                    return
                stop.wait(0.2)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# --- after training --------------------------------------------------------------------------


def _evaluate(
    this: Run, trained: Trained, results: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Test every model on the same photos; write predictions and weights."""
    merges = {} if this.config.mode == "merge" else trained.merged
    jobs: dict[str, Candidate] = {}
    for name, update in trained.updates.items():
        if name == "centralized" or name.startswith("submodel/"):
            jobs[name] = (
                Parts((update.key,)),
                lambda key=update.key: _stored(this.store, key),  # type: ignore[misc]
            )
    for name, merged in merges.items():
        jobs[name] = (_parts(merged), lambda state=merged.state: state)  # type: ignore[misc]
    ordered = sorted(jobs, key=_model_order)

    def test(names: Sequence[str]) -> list[dict[str, Any]]:
        models = [(jobs[name][0], functools.cache(jobs[name][1])) for name in names]
        on_test = probabilities(this, models, this.dataset.test)
        on_held: Sequence[Probabilities | None] = [None] * len(names)
        if len(this.held):
            on_held = probabilities(this, models, this.validation)
        return [
            describe(name, state, predicted, held)
            for name, (_, state), predicted, held in zip(
                names, models, on_test, on_held, strict=True
            )
        ]

    def describe(
        name: str,
        state: Callable[[], State],
        predicted: Probabilities,
        on_held: Probabilities | None,
    ) -> dict[str, Any]:
        test_images = this.dataset.test
        file = name.replace("/", "-")
        predictions = f"predictions/{file}.csv"
        write_predictions(
            this.folder / predictions,
            test_images.files,
            test_images.labels,
            predicted,
            this.dataset.classes,
        )
        model = scores(test_images.labels, predicted, this.dataset.classes)
        model |= {"file": None, "predictions": predictions}
        if on_held is not None:
            model["validation"] = validation_scores(this, on_held)
            right = on_held.argmax(axis=1) == this.validation.labels
            model["by_client"] = [
                float(right[np.searchsorted(this.held, part)].mean()) if len(part) else None
                for part in this.parts
            ]
        if _is_saved(this.config, name):
            model["file"] = f"models/{file}.safetensors"
            path = this.folder / model["file"]
            path.parent.mkdir(exist_ok=True)
            whole = this.initial.state | state()
            safetensors.torch.save_file(whole, path, {"classes": json.dumps(this.dataset.classes)})
        return model

    count = len(ordered) + sum(map(len, trained.earlier[:-1]))

    def tested(number: int) -> None:
        progress.update(TEST, number, count, None, "testing" if number < count else "done")

    tested(0)
    with ThreadPoolExecutor(this.workers) as pool:
        done: dict[str, dict[str, Any]] = {}
        passes = in_passes(this, ordered)
        for names, scored in zip(passes, pool.map(test, passes), strict=True):
            done |= zip(names, scored, strict=True)
            tested(len(done))
        if len(trained.earlier) > 1:
            results["rounds"] = _score_rounds(this, trained, pool, done, tested)
    tested(count)
    for name, model in done.items():
        if name in trained.updates:
            model["training"] = _training(trained.updates[name])
            model["key"] = trained.updates[name].key if this.config.store.enabled else None
        if name in merges:
            merged = merges[name]
            model["clients"] = merged.clients
            model |= _traffic(merged)
            if merged.steps:
                weights = merged.effective_weights
                model["effective_weights"] = weights
                if merged.steps[0] != 1.0:  # of the model that the round started from
                    model["global_weight"] = 1.0 - sum(weights)
                    weights = [model["global_weight"], *weights]
                model["n_eff"] = effective_number(weights)
            if name in OPTIMIZERS:
                model["optimizer"] = asdict(getattr(this.config.strategy, name))
            if name == "polyak":
                model["beta"] = trained.beta
                if trained.betas:
                    model["beta_chosen_from"] = trained.betas
    return done


def _is_saved(config: Config, model: str) -> bool:
    """Whether the weights go into the run folder; what was trained is in the store, too."""
    if config.mode == "merge" or config.save_models == "none":
        return False
    return config.save_models == "all" or not model.startswith("submodel/")


def _model_order(name: str) -> tuple[int, int]:
    if name == "centralized":
        return (0, 0)
    return (1, int(name.split("/")[1])) if name.startswith("submodel/") else (2, 0)


def _stored(store: Store, key: str) -> State:
    update = read(store, key)
    if update is None:
        raise RunError(f"store {store.root}: an update that this run trained is gone")
    return update.tensors


def _parts(merged: Merged) -> Parts:
    return Parts(tuple(merged.keys), tuple(merged.steps), merged.rule)


def _traffic(merged: Merged) -> dict[str, Any]:
    return {"bytes": {"down": merged.down, "up": merged.up}}


def _score_rounds(
    this: Run,
    trained: Trained,
    pool: ThreadPoolExecutor,
    last: dict[str, Any],
    tested: Callable[[int], None],
) -> list[dict[str, Any]]:
    """The scores of each rule's merge after each round; ``last``: those of the last, by model.

    ``tested`` is called with the number of models tested so far, ``last`` included.
    """

    def score(merged: Merged) -> dict[str, Any]:
        test = this.dataset.test
        (predicted,) = probabilities(this, [(_parts(merged), lambda: merged.state)], test)
        return scores(test.labels, predicted, this.dataset.classes) | _traffic(merged)

    rows: list[dict[str, Any]] = []
    for number, merges in enumerate(trained.earlier, 1):
        if number < len(trained.earlier):
            scored = dict(zip(merges, pool.map(score, merges.values()), strict=True))
        else:
            files = ("file", "key", "predictions")
            scored = {
                rule: {k: v for k, v in last[rule].items() if k not in files} | _traffic(merged)
                for rule, merged in merges.items()
            }
        rows.append({"round": number, **scored})
        tested(len(last) + sum(len(row) - 1 for row in rows[: len(trained.earlier) - 1]))
    return rows


def _training(update: Update) -> dict[str, Any]:
    return {
        "examples": update.examples,
        "steps": sum(epoch.steps for epoch in update.epochs),
        "epochs": [{"loss": epoch.loss, "seconds": epoch.seconds} for epoch in update.epochs],
    }


def _compare(this: Run, done: dict[str, Any]) -> dict[str, Any]:
    """Each merged model against the baseline, photo by photo."""
    if "centralized" not in done:
        return {}
    reference = read_predictions(this.folder / done["centralized"]["predictions"])
    return {
        name: compare(
            reference.labels,
            read_predictions(this.folder / model["predictions"]).probabilities,
            reference.probabilities,
            seed=derive_seed(this.config.seed, "bootstrap"),
        )
        for name, model in done.items()
        if "clients" in model
    }


def _results(this: Run, raw: DictConfig, trained: Trained) -> dict[str, Any]:
    dataset, classes = this.dataset, this.dataset.classes

    def shard(client: int) -> dict[str, Any]:
        if this.sites is not None:
            counts = this.sites[client].per_class
            return {"examples": sum(counts.values()), "per_class": counts}
        images = dataset.train.subset(this.shards[client])
        return {
            "examples": len(images),
            "per_class": class_counts(images, classes),
            "digest": images.digest,
        }

    shards = [{"client": client, **shard(client)} for client in range(len(this.shards))]
    used = np.setdiff1d(np.arange(len(dataset.train)), this.held)
    train = class_counts(dataset.train.subset(used), classes)
    if this.sites is not None:
        train = {name: sum(site.per_class[name] for site in this.sites) for name in classes}
    results = {
        "schema": SCHEMA,
        "status": "complete",
        "config": as_dict(raw),
        "seed": this.config.seed,
        "versions": {
            "fedcats": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "flwr", "ray")},
        },
        "machine": {
            "processor": _processor(),
            "cores": default_workers(),
            "workers": this.workers,
            "device": this.device,
        },
        "data": {
            "source": dataset.name,
            "note": dataset.note,
            "audit": dataset.audit.as_dict(),
            "classes": list(classes),
            "train": train,
            "test": class_counts(dataset.test, classes),
            "held_out": class_counts(this.validation, classes),
            "in_several_shards": [
                [{"client": client, "file": file} for client, file in group]
                for group in shared_between_shards(dataset.train, this.shards)
            ],
            "digest": {"train": dataset.train.digest, "test": dataset.test.digest},
            "shards": shards,
        },
        "weights": {
            "source": this.initial.source,
            "sha256": this.initial.sha256,
            "note": this.initial.note,
            "missing": list(this.initial.missing),
        },
        "store": {
            "enabled": this.config.store.enabled,
            "trained": [name for name, _, update in trained.history if not update.reused],
            "reused": [name for name, _, update in trained.history if update.reused],
            "resumed": {n: update.resumed for n, _, update in trained.history if update.resumed},
            "damaged": [name for name, _, update in trained.history if update.damaged],
        },
    }
    if this.hostile:
        attack = this.config.attack
        results["attack"] = {"name": attack.name, "clients": this.hostile, "factor": attack.factor}
    if trained.failures:
        results["failures"] = trained.failures
    if this.config.paper.get("name") != "none":
        results["paper"] = this.config.paper
    return results


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _write_history(folder: Path, trained: Trained) -> None:
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "round", "epoch", "loss", "seconds"])
        for name, server_round, update in trained.history:
            for number, epoch in enumerate(update.epochs, 1):
                writer.writerow([name, server_round, number, epoch.loss, f"{epoch.seconds:.3f}"])


def _write_json(path: Path, results: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
