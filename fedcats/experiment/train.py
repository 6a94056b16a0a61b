"""The training of a run: baseline and federation."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedcats.config.schema import Config
from fedcats.experiment.baseline import Baseline
from fedcats.experiment.inputs import Run, cluster_address, trainable_part
from fedcats.experiment.merges import SubModels, choose_beta
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.local import LocalGrid, run_local
from fedcats.federated.simulation import RayGrid, kill_stopped_actors, run_on_ray
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.transport import ByReference, Transport
from fedcats.federated.wire import OnTheWire
from fedcats.merging.names import ROBUST
from fedcats.merging.plan import Merged
from fedcats.merging.robust import Robust
from fedcats.merging.rules import Rule, make_rule
from fedcats.merging.server_optimizer import OPTIMIZERS, Memory, ServerOptimizer
from fedcats.report import Progress
from fedcats.training.update import Task, Update, append_events, read, report_done, weights_key


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


def train_both(this: Run, grid: Grid | None) -> Trained:
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
            address=cluster_address(this.config),
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
    if isinstance(grid, RayGrid) and not cluster_address(config):  # the workers' number is known
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
    start = ArrayRecord(trainable_part(this.initial.state, this.trained_names))
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
