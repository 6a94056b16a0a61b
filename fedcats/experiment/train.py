"""The training of a run: baseline and federation."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedcats.experiment.baseline import Baseline
from fedcats.experiment.inputs import cluster_address
from fedcats.experiment.merges import SubModels, choose
from fedcats.experiment.predictions import Predictor
from fedcats.experiment.tasks import Tasks
from fedcats.federated.flower_patches import allow_arrays
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.local import LocalGrid, run_local
from fedcats.federated.simulation import RayGrid, kill_stopped_actors, run_on_ray
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.transport import ByReference, Transport
from fedcats.federated.wire import OnTheWire
from fedcats.merging.plan import Merged
from fedcats.merging.rules import Rule
from fedcats.report import Progress
from fedcats.results.names import client_of, is_submodel, submodel
from fedcats.training.events import append_events
from fedcats.training.update import Task, Update, read, report_done, weights_key


@dataclass
class Trained:
    """What training gave: keys in the store, and the merges of the last round by rule.

    ``rules`` are what was merged by. ``chosen`` has, by rule, what ``results.json`` says of a
    choice on the held-out images; ``parts`` by client keys of what it worked out beside its update
    of the first round.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    merged: dict[str, Merged] = field(default_factory=dict)
    earlier: list[dict[str, Merged]] = field(default_factory=list)
    history: list[tuple[str, int, Update]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    chosen: dict[str, dict[str, float]] = field(default_factory=dict)
    parts: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, model: str, server_round: int, update: Update) -> None:
        """Remember an update without its tensors: they are in the store."""
        update = replace(update, tensors={})
        if update.epochs:  # else nobody needed its training
            self.history.append((model, server_round, update))
        if update.key:  # else it stayed at the site
            self.updates.setdefault(model, update)

    @property
    def by_round(self) -> dict[tuple[int, str], dict[int, Update]]:
        """The clients' updates of each round and rule; of the first, which all share, rule ""."""
        found: dict[tuple[int, str], dict[int, Update]] = {}
        for name, number, update in self.history:
            rule, is_client, client = name.rpartition("submodel/")
            if is_client:
                found.setdefault((number, rule.rstrip("/")), {})[int(client)] = update
        return found

    def own(self) -> SubModels:
        """The clients' models of the first round."""
        own = {
            client_of(model): update for model, update in self.updates.items() if is_submodel(model)
        }
        return SubModels(
            {client: update.key for client, update in own.items()},
            {client: update.examples for client, update in own.items()},
            self.parts,
        )


def train_both(tasks: Tasks, predictor: Predictor, grid: Grid | None) -> Trained:
    """What is trained in one place, each in a process of its own, and beside it the federation."""
    inputs, store = tasks.inputs, tasks.store
    mode = inputs.config.mode
    trained = Trained()
    with contextlib.ExitStack() as stack:
        running: dict[str, Baseline] = {}
        references = tasks.references
        keys = {model: tasks.key(task) for model, task in references.items()}
        store.hold(keys.values(), "baseline")
        for model, task in references.items():
            found = read(store, keys[model], task)
            if found is None:
                # An epoch of all images takes as many times longer as there are shards.
                patience = inputs.config.strategy.timeout * max(1, len(inputs.shards))
                running[model] = Baseline(task, store, inputs.events, patience)
                stack.enter_context(running[model])
            else:
                trained.add(model, 1, found)
                report_done(task, found, append_events(inputs.events))
        if mode != "centralized":
            # The baseline keeps one core busy, beside which that with fewer steps is little.
            workers = max(1, inputs.workers - bool(running))
            _federate(tasks, predictor, trained, workers, grid)
        for model, baseline in running.items():
            damaged = keys[model] in store.damaged
            trained.add(model, 1, replace(baseline.result(), damaged=damaged))
    return trained


def _federate(
    tasks: Tasks, predictor: Predictor, trained: Trained, workers: int, grid: Grid | None
) -> None:
    """Run the server's part on Flower's grid, or on one that the configuration names."""
    inputs, store, config = tasks.inputs, tasks.store, tasks.inputs.config
    clients = len(inputs.shards)
    if inputs.sites is None:
        trained.parts = {client: tasks.parts(client) for client in range(clients)}
    if grid is not None:
        serve(tasks, predictor, trained, grid)
        return
    first = [tasks.client(client, 1, tasks.start) for client in range(clients)]
    keys = [tasks.key(task) for task in first]
    beside = [key for parts in trained.parts.values() for key in parts.values()]
    store.hold([*keys, *beside], "clients")
    nothing_to_train = config.rounds == 1 and all(key in store for key in (*keys, *beside))
    if config.mode == "merge" and nothing_to_train:
        found = [read(store, key, task) for key, task in zip(keys, first, strict=True)]
        if all(found):
            report = append_events(inputs.events)
            for client, update in enumerate(cast(list[Update], found)):
                trained.add(submodel(client), 1, update)
                report_done(first[client], update, report)
            return

    def main(grid: Grid) -> None:
        serve(tasks, predictor, trained, grid)

    if config.runner.name == "local" or nothing_to_train:
        run_local(main, clients, verbose=config.verbose)
    else:
        run_on_ray(
            main,
            clients,
            min(workers, clients),
            address=cluster_address(config),
            verbose=config.verbose,
        )


def serve(tasks: Tasks, predictor: Predictor, trained: Trained, grid: Grid) -> None:
    """The server: all rules share the first round's training, then each goes its own way."""
    this, store, config = tasks.inputs, tasks.store, tasks.inputs.config
    rules = {} if config.mode == "merge" else config.rules
    undecided = [name for name, rule in rules.items() if rule.undecided]
    clients = len(this.shards)
    hangs: float | None = config.strategy.timeout
    if this.sites is None and isinstance(grid, LocalGrid):
        hangs = None  # clients run in this very process
    transport: Transport = ByReference(store, this.events, hangs)
    poll_seconds = 0.05
    if this.sites is not None:
        nodes = [site.node for site in this.sites]
        limit = int(config.store.max_gb * 1e9)
        # Bytes; those of a secure sum have eight for each number.
        tensors, secure = this.initial.state.values(), config.strategy.secure
        largest = max(8 * value.numel() if secure else value.nbytes for value in tensors)
        allow_arrays(max(largest, tasks.largest))
        transport = OnTheWire(
            store,
            nodes,
            this.dataset.classes,
            this.initial.state,
            limit,
            config.strategy.timeout,
        )
        poll_seconds = 1.0
    window = None
    if isinstance(grid, RayGrid) and not cluster_address(config):  # the workers' number is known
        window = max(32, 8 * this.workers)
    in_order = cast(Grid, InOrderGrid(grid, poll_seconds, window, kill_stopped_actors))
    # A client that hangs ends its own process; this is for one that cannot even do that.
    patience = None if hangs is None else hangs * (config.train.epochs + 1) * clients

    memory: dict[Rule, Any] = {}

    def strategy(names: Sequence[str], first_round: int, rule: str = "") -> MergeStrategy:
        prefix = f"{rule}/" if rule else ""
        keys: list[str] = []

        def make_tasks(
            clients: Sequence[int], server_round: int, start: str
        ) -> list[tuple[Task, str]]:
            made = [tasks.client(client, server_round, start, rule) for client in clients]
            own = [tasks.key(task) for task in made]
            keys.extend([weights_key(start), *own])
            store.hold(keys, "round")
            return list(zip(made, own, strict=True))

        def on_update(client: int, server_round: int, update: Update) -> None:
            name = f"{prefix}submodel/{client}"
            if this.sites is None:
                trained.add(name, server_round, update)
                return
            if config.strategy.secure:  # the update stays at the site
                trained.history.append((name, server_round, update))
            else:
                trained.add(name, server_round, update)
                keys.append(update.key)
                store.hold(keys, "round")
            # A site's progress is seen when its update is done.
            task = tasks.client(client, server_round, "", rule)
            report_done(task, update, append_events(this.events))

        return MergeStrategy(
            {name: trained.rules.get(name, rules[name]) for name in names},
            this.plan,
            make_tasks,
            this.sizes,
            store,
            transport,
            on_update,
            predictor.answers,
            first_round,
            this.parameters,
            memory,
            this.initial.pretrained,
            config.strategy.secure,
            hangs,
        )

    shared = strategy([name for name in rules if name not in undecided], 1)
    start = ArrayRecord(tasks.state)
    shared.start(in_order, start, num_rounds=1, timeout=cast(float, patience))
    trained.failures = {f"round 1, client {c}": why for c, why in shared.failures.items()}
    trained.rules = dict(rules)
    chosen: dict[str, Merged] = {}
    for name in undecided:
        best = choose(predictor, trained.own(), rules[name], shared.round)
        # In the rounds to come, too.
        trained.rules[name], trained.chosen[name], chosen[name] = best
    merged = {**shared.merged, **chosen}
    trained.merged = {name: merged[name] for name in rules}
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
def followed(events: Path, progress: Progress) -> Iterator[None]:
    """Show what the processes that train append to ``events``."""
    events.unlink(missing_ok=True)
    events.touch()
    stop = threading.Event()

    def follow() -> None:
        with contextlib.suppress(OSError), events.open(encoding="utf-8") as file:
            rest = ""
            while True:
                last = stop.is_set()
                rest += file.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    with contextlib.suppress(ValueError):  # cut off by a full disk
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
        events.unlink(missing_ok=True)
