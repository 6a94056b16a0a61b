"""A run's inputs, all decided before anything is trained."""

import random
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.serverapp import Grid

from fedcats import tensors
from fedcats.config.schema import Config, PhotoData
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
from fedcats.data.sources import part_source
from fedcats.errors import UserError
from fedcats.experiment.baseline_process import events_file
from fedcats.experiment.checks import check_room, check_sizes, check_step
from fedcats.federated.cluster import check_cluster
from fedcats.federated.quiet import default_workers
from fedcats.federated.sites import Site, find_sites
from fedcats.federated.transport import wait_for_nodes
from fedcats.home import home
from fedcats.merging.plan import Plan, merge_order
from fedcats.models import build, weights
from fedcats.models.weights import InitialWeights
from fedcats.report import Progress, Work
from fedcats.report.estimate import LAST
from fedcats.seeding import derive_seed
from fedcats.storage import Store
from fedcats.tensors import State
from fedcats.text import shown
from fedcats.training.attack import Attack
from fedcats.training.frozen import SharedTest
from fedcats.training.recipe import Recipe
from fedcats.training.update import Task, put_weights, weights_key

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
        plan, sizes = self.plan, self.sizes
        count = len(config.strategy.rules) if config.mode in ("compare", "federated") else 0
        if config.mode != "federated":
            images = len(self.dataset.train) - len(self.held)
            expected["centralized"] = Work(images, epochs * config.rounds, "centralized")
            count += 1
        if config.mode != "centralized":
            batch = 0
            for number in range(1, config.rounds + 1):
                chosen = plan.clients(number)
                count += len(chosen) if number == 1 else len(config.strategy.rules)
                for rule in config.strategy.rules if number > 1 else ("",):
                    batch += 1
                    for client in chosen:
                        work = Work(sizes[client], epochs, "clients", batch)
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


def gather(
    config: Config, folder: Path, store: Store, progress: Progress, grid: Grid | None
) -> Run:
    """Decide everything that a run needs; UserError for what cannot be."""
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
    check_room(this)
    check_sizes(this)
    check_step(this, model)
    start = trainable_part(initial.state, names)
    whole = len(start) == len(initial.state)
    this.base, this.start = initial.sha256, initial.sha256 if whole else tensors.digest(start)
    store.hold([weights_key(sha256) for sha256 in (this.base, this.start)])
    for sha256, state in {this.base: initial.state, this.start: start}.items():
        put_weights(store, state, sha256)
    if (
        grid is None
        and config.mode in ("compare", "federated")
        and (address := cluster_address(config))
    ):
        with tempfile.NamedTemporaryFile(dir=store.root, prefix=".shared-", suffix=".tmp") as file:
            check_cluster(address, [dataset.path, folder, Path(file.name)])
    return this


def cluster_address(config: Config) -> str | None:
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


def trainable_part(state: Mapping[str, torch.Tensor], names: Sequence[str]) -> State:
    """The named tensors of a state dict."""
    return {name: state[name] for name in names}
