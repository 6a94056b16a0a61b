"""fedcats' transport alone: clients send back the AlexNet that they got, training switched off.

    python benchmarks/transport.py [--clients 10] [--pool]

Everything else is as in a run: messages through Flower and Ray, weights and updates through the
store with their checksums, checks and merge. With --pool the same work in a plain pool of
processes: the difference is what Flower and Ray cost.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedcats.federated import client as client_module
from fedcats.federated import client_app, quiet, simulation
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.transport import ByReference
from fedcats.merging.fold import Fold, check_update
from fedcats.merging.plan import Plan
from fedcats.merging.rules import Polyak
from fedcats.models.weights import initial_weights
from fedcats.storage import Store
from fedcats.training.recipe import Epoch, Recipe
from fedcats.training.update import Task, Update, get_weights, put_weights, read

RECIPE = Recipe(1, 4, 0.001, 0.0, False, 0.0, 0, 1.0, False)
POLYAK = Polyak(beta=0.5)
app = ClientApp()


def untrained(task: Task, store: Store, *_: Any) -> Update:
    """As `fedcats.training.update.compute`, without the training."""
    tensors = get_weights(store, task.start)
    key = f"sent-{task.client}"
    store.put(key, tensors, {"kind": "update", "examples": 1, "epochs": []})
    return Update(key, tensors, 1, (Epoch(0.0, 1, 1, 0.0),), reused=False)


@app.train()
def train(message: Message, context: Context) -> Message:
    """The real client, with nothing to train."""
    client_module.compute = untrained
    return client_app.train(message, context)


def tasks(clients: Sequence[int], server_round: int, start: str) -> list[tuple[Task, str]]:
    """One for each client, and the key of its update."""
    same = (server_round, 0, "alexnet", 2, "all", start, start, "", (), RECIPE, 1, "cpu", 0.0)
    return [(Task(f"client {client}", client, *same), f"sent-{client}") for client in clients]


def through_flower(store: Store, start: dict[str, Any], count: int, workers: int) -> None:
    """As a run does it."""
    plan = Plan(range(count), 1.0, 0, "fail", 1)
    transport = ByReference(store, store.root / "events", 3600.0)
    strategy = MergeStrategy({"polyak": POLYAK}, plan, tasks, [1] * count, store, transport)

    def main(grid: Grid) -> None:
        in_order: Any = InOrderGrid(grid, window=max(32, 8 * workers))
        strategy.start(in_order, ArrayRecord(start), num_rounds=1, timeout=3600.0)

    simulation.client_app = app
    simulation.run_on_ray(main, count, workers)
    print("merged", len(strategy.merged["polyak"].clients))


def send(task: Task, root: str) -> str:
    """One client of `through_pool`, in a process of the pool."""
    return untrained(task, Store(Path(root))).key


def through_pool(store: Store, start: dict[str, Any], count: int, workers: int) -> None:
    """The same work without Flower and Ray."""
    digest, fold = put_weights(store, start), Fold(POLYAK)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        sent = deque(
            pool.submit(send, task, str(store.root)) for task, _ in tasks(range(count), 1, digest)
        )
        while sent:
            update = read(store, sent.popleft().result())
            assert update is not None
            check_update(update.tensors, start)
            fold.add(update.tensors, update.examples)
    print("merged", len(fold.steps), len(fold.result()))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="fedcats' transport alone")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--pool", action="store_true", help="without Flower and Ray")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = initial_weights("alexnet", 2, "none", 0, root).state
        through = through_pool if given.pool else through_flower
        through(Store(root / "store"), start, given.clients, quiet.default_workers())


if __name__ == "__main__":
    main()
