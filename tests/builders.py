"""What many tests build."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from fedcats import tensors
from fedcats.metrics.replication import Effects, Replication
from fedcats.models import build
from fedcats.storage import Store
from fedcats.training.recipe import Epoch, Recipe
from fedcats.training.update import Task, put_weights

TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int64)}


def plain_recipe(**changes: Any) -> Recipe:
    """One epoch of plain SGD with batches of four."""
    plain = Recipe(
        epochs=1,
        batch_size=4,
        lr=0.001,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        step_size=0,
        gamma=1.0,
        drop_last=False,
    )
    return replace(plain, **changes)


def what_a_client_says(key: str, examples: int) -> dict[str, Any]:
    """The ``info`` of an honest reply after `plain_recipe`."""
    epoch = Epoch(loss=0.5, examples=examples, steps=1, seconds=0.1)
    return {
        "key": key,
        "examples": examples,
        "reused": False,
        "resumed": 0,
        "damaged": False,
        "epochs": json.dumps([asdict(epoch)]),
    }


def plain_tasks(clients: Sequence[int], server_round: int, start: str) -> list[tuple[Task, str]]:
    """`MergeStrategy.make_tasks` with `plain_recipe`: the update of client 3 is ``u3``."""
    same = (server_round, 0, "m", 2, "all", start, start, "", (), plain_recipe(), 1, "cpu", 0.0)
    return [(Task(f"client {client}", client, *same), f"u{client}") for client in clients]


def replication(difference: float, effects: Effects, seeds: int) -> Replication:
    """Of an accuracy, with the same difference for each seed."""
    error, df = (float(one) for one in effects.precision(seeds))
    return Replication(
        "accuracy", seeds, effects.photos, [difference] * seeds, difference, 0.95,
        standard_error=error, df=df, effects=effects,
    )  # fmt: skip


def make_task(store: Store, data: Path, model: str = "squeezenet1_1", **changes: Any) -> Task:
    """Three epochs of a small model, whose weights are put into the store."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build.build(model, 2).state_dict()
    sha256 = put_weights(store, state)
    task = Task(
        name="client 0",
        client=0,
        round=1,
        seed=0,
        model=model,
        num_classes=2,
        trainable="all",
        base=sha256,
        start=sha256,
        data=str(data),
        indices=tuple(range(8)),
        recipe=plain_recipe(epochs=3, lr=0.01, gamma=0.1),
        threads=1,
        device="cpu",
        checkpoint_seconds=0,
    )
    return replace(task, **changes)


def unbind(store: Store, key: str) -> None:
    """Make it one of a version that did not write the key into an entry."""
    entry = store.get(key)
    assert entry is not None
    with safetensors.safe_open(store.path(key), framework="pt") as file:
        header = file.metadata()
    del header["bound"]
    tensors.save({k: v.clone() for k, v in entry.tensors.items()}, store.path(key), header)


def fork(work: Callable[[], None]) -> int:
    """Do it in a child process, without the cost of importing torch; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def kill(pid: int) -> None:
    """End it, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def weights(folder: Path, model: str) -> dict[str, torch.Tensor]:
    """Those that a run has saved."""
    return safetensors.torch.load_file(folder / "models" / f"{model}.safetensors")


def model_bytes(folder: Path) -> dict[str, bytes]:
    """The files of all models of a run."""
    return {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}


def fold(models: list[dict[str, torch.Tensor]], beta: float) -> dict[str, np.ndarray]:
    """The paper's listing, in float64."""
    merged = {k: v.double().numpy() for k, v in models[0].items()}
    for model in models[1:]:
        for key in merged:
            merged[key] = beta * model[key].double().numpy() + (1 - beta) * merged[key]
    return merged
