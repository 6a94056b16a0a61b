"""A run's inputs, all decided before anything is trained."""

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.serverapp import Grid

from fedcats.config.schema import Config
from fedcats.data import (
    Dataset,
    Images,
    Source,
    catalogue,
    hold_out,
    prepare,
    shared_between_shards,
)
from fedcats.data.sources import part_source
from fedcats.errors import UserError
from fedcats.experiment.baseline_process import events_file
from fedcats.experiment.checks import check_secure, check_sizes, check_step
from fedcats.experiment.private import check_private
from fedcats.federated.cluster import check_cluster
from fedcats.federated.quiet import default_workers
from fedcats.federated.sites import Site, find_sites
from fedcats.federated.transport import wait_for_nodes
from fedcats.home import home
from fedcats.merging.plan import Plan, merge_order
from fedcats.metrics import POSITIVE
from fedcats.models import build, weights
from fedcats.models.weights import InitialWeights
from fedcats.report import Progress
from fedcats.seeding import derive_seed
from fedcats.storage import Store
from fedcats.text import shown
from fedcats.training.device import find_device

Positions = np.ndarray[Any, np.dtype[np.int64]]
Shards = list[Positions]


@dataclass(frozen=True)
class Clients:
    """Who has which images.

    Attributes
    ----------
    dataset
        In a real federation it has test images only.
    shards, parts
        For each client, positions in ``dataset.train``, int64: what it trains on, and its held-out
        images (or no parts at all).
    left_out
        How many usable training images of each class there are that no client gets, by what leaves
        them out: ``limit`` (`data.limit` or `data.counts`) and ``partition``; empty with ``sites``.
    sites
        Of a real federation; the shards are empty then.
    """

    dataset: Dataset
    shards: Shards
    parts: Shards
    left_out: dict[str, dict[str, int]]
    sites: list[Site] | None

    @property
    def held(self) -> Positions:
        """Positions in ``dataset.train`` of all held-out images, ascending."""
        return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *self.parts]))

    @property
    def validation(self) -> Images:
        """The training images that nobody trains on; merges are chosen on them."""
        return self.dataset.train.subset(self.held)

    @classmethod
    def of_sites(cls, config: Config, progress: Progress, grid: Grid | None) -> "Clients":
        """In a real federation: the server's test images, and what the sites say they have."""
        if grid is None:
            raise UserError(
                "partition.name=sites: for SuperNodes only; allowed are the options of partition"
            )
        dataset = decoded(config, _test_source(config, progress), progress)
        sites = find_sites(grid, dataset.classes, config.strategy.max_examples)
        order = config.strategy.order
        if isinstance(order, list) and sorted(order) != list(range(len(sites))):
            raise UserError(
                f"strategy.order={order}: a list must name each site 0 .. {len(sites) - 1} once"
            )
        return cls(dataset, [np.zeros(0, dtype=np.int64) for _ in sites], [], {}, sites)

    @classmethod
    def of_shards(cls, config: Config, progress: Progress, grid: Grid | None) -> "Clients":
        """In a simulation: all images, dealt out."""
        if grid is not None and config.mode != "centralized":  # before anything takes time
            wait_for_nodes(grid, config.partition.num_shards)
        source = make_source(config, progress)
        dataset = decoded(config, source, progress)
        shards = deal_out(config, dataset)
        left_out = {
            "limit": _beyond_limit(source, dataset),
            "partition": _dealt_to_nobody(dataset, shards),
        }
        if shared := shared_between_shards(dataset.train, shards):
            where = " = ".join(f"{shown(file)} (client {client})" for client, file in shared[0])
            progress.message(
                f"{len(shared)} photos are in several shards, e.g. {where} "
                "(all of them: results.json, data.in_several_shards)"
            )
        parts: Shards = []
        if config.held_out:
            seed = derive_seed(config.draws.shards, "validation")
            shards, parts = hold_out(dataset.train.labels, shards, config.held_out, seed)
            if not any(len(part) for part in parts):
                raise UserError(
                    f"hold_out={config.held_out:g}: nothing is held out of shards this small; "
                    "allowed is a larger share, or fewer clients"
                )
        return cls(dataset, shards, parts, left_out, None)


@dataclass(frozen=True)
class Inputs(Clients):
    """One run's inputs, all decided before anything is trained.

    Attributes
    ----------
    trained_names, parameters
        State-dict keys that are trained, and those that are no buffers.
    workers
        Processes that train, and threads that test, at once.
    """

    config: Config
    folder: Path
    initial: InitialWeights
    trained_names: list[str]
    parameters: frozenset[str]
    workers: int
    device: str

    @property
    def baseline(self) -> Positions:
        """Positions in ``dataset.train`` of what the baseline trains on, ascending."""
        if self.config.centralized.photos == "same":
            return np.sort(np.concatenate(self.shards))
        return np.setdiff1d(np.arange(len(self.dataset.train)), self.held)

    @property
    def positive(self) -> int:
        """Of two classes, the one that precision and recall describe; of more it means nothing.

        Raises
        ------
        UserError
            When `data.positive` names none of two classes.
        """
        named, classes = self.config.data.positive, self.dataset.classes
        if named is None:
            return POSITIVE
        if str(named) not in classes or len(classes) != 2:
            allowed = f"{shown(classes[0])}, {shown(classes[1])}"
            if len(classes) > 2:
                allowed = f"null: of {len(classes)} classes they are means"
            raise UserError(
                f"data.positive={shown(str(named))}: the class whose precision and recall are "
                f"given; allowed here is {allowed}"
            )
        return classes.index(str(named))

    @property
    def events(self) -> Path:
        """The file to which everything that trains appends its progress."""
        return events_file(self.folder)

    @property
    def plan(self) -> Plan:
        """Who takes part in which round."""
        strategy, seed = self.config.strategy, self.config.draws.shards
        return Plan(
            merge_order(strategy.order, len(self.shards), seed),
            strategy.fraction,
            seed,
            strategy.on_failure,
            strategy.min_clients,
            strategy.max_norm,
        )

    @property
    def hostile(self) -> list[int]:
        """Clients that attack, by ``attack.clients``; drawn from the seed where it is a number."""
        attack = self.config.attack
        if attack.name == "none":
            return []
        if isinstance(attack.clients, list):
            return sorted(attack.clients)
        draw = random.Random(derive_seed(self.config.draws.shards, "attack"))
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
            sizes["centralized"] = len(self.baseline)
        return sizes


def make_source(config: Config, progress: Progress) -> Source:
    """Where the images come from; downloaded now where that is needed."""

    def on_download(there: int, total: int) -> None:
        state = "done" if there == total else "loading"
        progress.update("download, MB", there // 10**6, total // 10**6, None, state)

    seed = derive_seed(config.draws.data, config.data.stream)
    source: Source = config.data.open(seed, home() / "downloads", on_download)
    return source


def decoded(config: Config, source: Source, progress: Progress, *, strict: bool = True) -> Dataset:
    """The images in the cache; says what the check of the files found, and fails if ``strict``."""
    options: dict[str, Any] = {}
    if isinstance(config.data, catalogue.Photos):
        options["max_bad_fraction"] = config.data.max_bad_fraction
        options["keep_duplicates"] = config.data.keep_duplicates
    if not strict:
        options["max_bad_fraction"] = None
    options["max_bytes"] = int(config.store.images_gb * 1e9)

    def on_progress(done: int, total: int) -> None:
        state = "done" if done == total else "decoding"
        progress.update("images", done, total, None, state)

    dataset = prepare(
        source, home() / "data", on_progress=on_progress, say=progress.message, **options
    )
    for line in _findings(dataset):
        progress.message(line)
    return dataset


def gather(
    config: Config, folder: Path, store: Store, progress: Progress, grid: Grid | None
) -> Inputs:
    """Decide everything that a run needs; UserError for what cannot be."""
    build.check_name(config.model.name)  # before anything takes time
    device = find_device(config.runner.device, progress.message)
    source = Clients.of_sites if config.partition.name == "sites" else Clients.of_shards
    photos = source(config, progress, grid)
    initial = weights.initial_weights(
        config.model.name,
        len(photos.dataset.classes),
        config.model.weights,
        config.draws.init,
        home(),
        progress.message,
    )
    if initial.note:
        progress.message(initial.note)
    model = build.empty(config.model.name, len(photos.dataset.classes), initial.state)
    this = Inputs(
        **vars(photos),
        config=config,
        folder=folder,
        initial=initial,
        trained_names=build.set_trainable(model, config.model.trainable),
        parameters=frozenset(name for name, _ in model.named_parameters()),
        workers=config.runner.workers or default_workers(),
        device=device,
    )
    _ = this.positive  # refused now where it is none
    check_sizes(this)
    check_secure(this)
    check_step(this, model)
    check_private(this, model)
    address = cluster_address(config)
    if grid is None and config.merges and address:
        with tempfile.NamedTemporaryFile(dir=store.root, prefix=".shared-", suffix=".tmp") as file:
            check_cluster(address, [photos.dataset.path, folder, Path(file.name)])
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


def deal_out(config: Config, dataset: Dataset) -> Shards:
    """For each client, positions in ``dataset.train``, int64."""
    seed = derive_seed(config.draws.shards, "partition")
    shards: list[np.ndarray[Any, np.dtype[np.int64]]] = config.partition(dataset.train.labels, seed)
    return shards


def class_counts(images: Images, classes: Sequence[str]) -> dict[str, int]:
    """How many images of each class there are."""
    counts = Counter(int(label) for label in images.labels)
    return {name: counts[label] for label, name in enumerate(classes)}


def _beyond_limit(source: Source, dataset: Dataset) -> dict[str, int]:
    """How many training images of each class were not taken, of those not found unusable."""
    audit = dataset.audit
    gone = {path for path, _ in audit.quarantined}
    gone |= {path for path, _ in audit.in_test_too if audit.removed}
    listed = Counter(item.label for item in source.train if item.path not in gone)
    kept = class_counts(dataset.train, dataset.classes)
    return {name: listed[label] - kept[name] for label, name in enumerate(dataset.classes)}


def _dealt_to_nobody(dataset: Dataset, shards: Shards) -> dict[str, int]:
    rest = np.setdiff1d(np.arange(len(dataset.train)), np.concatenate(shards))
    return class_counts(dataset.train.subset(rest), dataset.classes)


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
