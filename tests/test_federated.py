"""The strategy and the grids, without training: order of arrival, missing nodes, layers."""

import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from builders import plain_tasks, what_a_client_says
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedcats.errors import UserError
from fedcats.federated import transport
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.local import LocalGrid
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.transport import ByReference
from fedcats.merging.plan import Plan, merge_order
from fedcats.merging.rules import FedAvg, Polyak
from fedcats.storage import Store
from fedcats.training.update import Task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Client i sends the value 2 ** i."""
    config = message.content["config"]
    task = Task.from_json(config["task"])
    store = Store(Path(config["store"]))
    tensors = {"w": torch.tensor([2.0**task.client])}
    store.put(f"u{task.client}", tensors, {"examples": task.client + 1, "epochs": []})
    info = what_a_client_says(f"u{task.client}", task.client + 1)
    content = {
        "arrays": ArrayRecord(),
        "metrics": MetricRecord({"num-examples": task.client + 1}),
        "info": ConfigRecord(info),
    }
    return Message(RecordDict(content), reply_to=message)


class LateGrid(LocalGrid):
    """Replies arrive one at a time, in an order of its own."""

    def __init__(self, num_nodes: int, seed: int) -> None:
        super().__init__(app, num_nodes)
        self.draw = random.Random(seed)
        self.arrived: dict[str, Message] = {}
        self.coming: list[str] = []
        self.out = self.most_out = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list(super().push_messages(messages))
        waiting = [*self.coming, *ids]
        self.coming = self.draw.sample(waiting, len(waiting))
        self.out += len(ids)
        self.most_out = max(self.most_out, self.out)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.coming:
            message_id = self.coming.pop()
            self.arrived[message_id] = next(iter(super().pull_messages([message_id])))
        replies = [self.arrived.pop(i) for i in message_ids if i in self.arrived]
        self.out -= len(replies)
        return replies


def merge(
    tmp_path: Path, seed: int, order: list[int], window: int | None = None
) -> tuple[MergeStrategy, list[int]]:
    seen: list[int] = []

    strategy = MergeStrategy(
        {"polyak": Polyak(0.5), "fedavg": FedAvg()},
        Plan(order, 1.0, 0, "fail", 1),
        plain_tasks,
        range(1, 100),
        Store(tmp_path / "store"),
        ByReference(Store(tmp_path / "store"), tmp_path / "events", None),
        lambda client, _round, _update: seen.append(client),
    )
    late = LateGrid(len(order), seed)
    grid = InOrderGrid(late, window=window)
    start = ArrayRecord({"w": torch.zeros(1)})
    result = strategy.start(grid, start, num_rounds=1, timeout=None)
    assert torch.equal(
        result.arrays.to_torch_state_dict()["w"], strategy.merged["polyak"].state["w"]
    )
    assert late.most_out == min(len(order), window or len(order))
    return strategy, seen


@pytest.mark.parametrize("window", [None, 1, 2, 9])
@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_arrival_does_not_matter(
    tmp_path: Path, seed: int, window: int | None
) -> None:
    strategy, seen = merge(tmp_path, seed, [0, 1, 2, 3], window)
    assert seen == [0, 1, 2, 3]
    # ((1 + 2) / 2 + 4) / 2 and so on; (1*1 + 2*2 + 3*4 + 4*8) / 10
    assert strategy.merged["polyak"].state["w"].item() == 5.375
    assert strategy.merged["fedavg"].state["w"].item() == pytest.approx(4.9)


def test_the_merge_follows_the_order_of_the_plan(tmp_path: Path) -> None:
    strategy, seen = merge(tmp_path, 1, [2, 0, 1])
    assert seen == [2, 0, 1]
    assert strategy.merged["polyak"].state["w"].item() == 2.25
    assert strategy.merged["polyak"].effective_weights == [0.25, 0.25, 0.5]


def test_too_few_nodes_end_with_the_option_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "NODES_TIMEOUT", 0.2)
    with pytest.raises(UserError, match=r'2 supernodes for 3 clients.*"num-supernodes=3"'):
        transport.wait_for_nodes(LocalGrid(app, 2), 3)


def test_a_reply_that_never_comes_ends_in_bounded_time() -> None:
    class Silent(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return []

    grid = InOrderGrid(Silent(app, 1))
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    (reply,) = grid.send_and_receive([message], timeout=0.2)
    assert reply.error.reason == "no reply for 0 s"
    assert reply.metadata.src_node_id == 1


def test_orders_and_samples_are_drawn_from_the_seed() -> None:
    assert merge_order("partition", 4, 0) == [0, 1, 2, 3]
    assert merge_order("reversed", 4, 0) == [3, 2, 1, 0]
    assert merge_order([1, 0], 2, 0) == [1, 0]
    assert merge_order("shuffled", 20, 0) == merge_order("shuffled", 20, 0)
    assert merge_order("shuffled", 20, 0) != merge_order("shuffled", 20, 1)
    plan = Plan([3, 2, 1, 0], 0.5, 0, "fail", 1)
    rounds = [plan.clients(r) for r in range(1, 20)]
    assert all(len(c) == 2 and c == sorted(c, reverse=True) for c in rounds)
    assert len({tuple(c) for c in rounds}) > 1
    assert plan.clients(1) == plan.clients(1)


@pytest.mark.slow
def test_the_method_pulls_in_no_flower_ray_or_hydra() -> None:
    code = """
import sys, pkgutil, importlib
for name in ("data", "merging", "models", "training", "metrics", "storage"):
    room = importlib.import_module(f"fedcats.{name}")
    for module in pkgutil.walk_packages(getattr(room, "__path__", []), f"fedcats.{name}."):
        importlib.import_module(module.name)
print(sorted({"flwr", "ray", "hydra", "omegaconf"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
