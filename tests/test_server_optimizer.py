"""FedAvgM and FedAdam: by hand, against Flower's own over three rounds, and in whole runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedcats.errors import RunError
from fedcats.federated.local import LocalGrid
from fedcats.merging.adaptive import FedAdam, FedAvgM, ServerOptimizer
from fedcats.merging.fold import Fold
from fedcats.merging.rules import FedAvg
from fedcats.merging.server_optimizer import Memory, server_step

State = dict[str, torch.Tensor]
Go = Callable[..., tuple[dict[str, Any], Path]]
SIZES = [3, 5, 8]
KEYS = frozenset({"w", "b"})


def states(seed: int, scale: float = 1.0) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {
        "w": scale * torch.randn(7, 5, generator=draw),
        "b": scale * torch.randn((), generator=draw),
    }


def updates(start: State, server_round: int) -> list[State]:
    """What three clients make of ``start``: mostly the same direction, and noise."""
    noise = [states(100 * server_round + client, 0.03) for client in range(3)]
    return [{k: start[k] + 0.02 * torch.cos(start[k]) + one[k] for k in start} for one in noise]


def merge(
    optimizer: ServerOptimizer, start: State, own: list[State], memory: Memory
) -> tuple[State, Memory]:
    fold = Fold(FedAvg())
    for state, size in zip(own, SIZES, strict=True):
        fold.add(state, size)
    return server_step(optimizer, start, fold.exact(), memory, KEYS)


def flowers(strategy: Any, server_round: int, start: State, own: list[State]) -> State:
    """What Flower's strategy makes of the same replies."""
    strategy.current_arrays = strategy.current_arrays or ArrayRecord(start)  # as configure_train
    if isinstance(strategy, flower.FedAdam):
        strategy.current_arrays = {k: v.numpy() for k, v in start.items()}
    LocalGrid(ClientApp(), 1)  # without a grid there are no messages
    asked = Message(RecordDict(), dst_node_id=1, message_type="train")
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(state),
                    "metrics": MetricRecord({"num-examples": size}),
                }
            ),
            reply_to=asked,
        )
        for state, size in zip(own, SIZES, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(server_round, replies)
    return arrays.to_torch_state_dict()


def close(ours: State, theirs: State) -> bool:
    return all(
        ours[k].dtype == torch.float32 and np.allclose(ours[k], theirs[k], rtol=2e-6, atol=2e-7)
        for k in ours
    )


@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.9), (0.3, 0.5), (0.5, 0.0)])
def test_fedavgm_is_flowers(lr: float, momentum: float) -> None:
    ours = FedAvgM(lr=lr, momentum=momentum)
    theirs = flower.FedAvgM(server_learning_rate=lr, server_momentum=momentum)
    start, memory = states(0), {}
    for server_round in (1, 2, 3):
        own = updates(start, server_round)
        merged, memory = merge(ours, start, own, memory)
        assert close(merged, flowers(theirs, server_round, start, own)), server_round
        start = merged


def test_fedadam_is_flowers_but_for_two_things() -> None:
    """The paper's v starts at tau^2, without bias correction; Flower's at 0, and has one."""
    settings = {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
    theirs = flower.FedAdam(eta=0.02, eta_l=0.1, **settings)
    start = states(0)
    memory: Memory = {k: (torch.zeros_like(v).double(),) * 2 for k, v in start.items()}
    for server_round in (1, 2, 3):
        own = updates(start, server_round)
        t = server_round + 1  # where Adam has server_round
        lr = 0.02 * math.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        ours = FedAdam(lr=lr, **settings)
        merged, memory = merge(ours, start, own, memory)
        assert close(merged, flowers(theirs, server_round, start, own)), server_round
        start = merged


def test_fedadam_by_hand() -> None:
    """Algorithm 2 of Reddi et al. for one weight and two rounds."""
    adam = FedAdam(lr=0.5, beta_1=0.8, beta_2=0.75, tau=2.0)
    w, memory = {"w": torch.tensor([1.0])}, {}
    w, memory = server_step(adam, w, {"w": torch.tensor([5.0]).double()}, memory, KEYS)
    # m = 0.2 * 4; v = 0.75 * 2^2 + 0.25 * 4^2 = 7
    assert w["w"].item() == np.float32(1 + 0.5 * 0.8 / (math.sqrt(7) + 2))
    assert [value.item() for value in memory["w"]] == pytest.approx([0.8, 7.0])
    before = w["w"].item()
    w, _ = server_step(adam, w, {"w": torch.tensor([before - 2.0]).double()}, memory, KEYS)
    # m = 0.8 * 0.8 + 0.2 * -2; v = 0.75 * 7 + 0.25 * 2^2 = 6.25
    assert w["w"].item() == np.float32(before + 0.5 * 0.24 / (2.5 + 2))


@pytest.mark.parametrize(
    "optimizer",
    [
        FedAvgM(lr=1.0, momentum=0.9),
        FedAdam(lr=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3),
    ],
)
def test_statistics_are_averaged_only_and_the_memory_is_not_changed(
    optimizer: ServerOptimizer,
) -> None:
    start = states(0) | {"variance": torch.ones(2), "batches": torch.tensor(7)}
    mean = {k: v.double() + 0.25 for k, v in start.items()} | {
        "batches": torch.tensor(9.6).double()
    }
    one, first = server_step(optimizer, start, mean, {}, KEYS)
    kept = {k: tuple(v.clone() for v in values) for k, values in first.items()}
    two, _ = server_step(optimizer, one, mean, first, KEYS)
    for merged in (one, two):
        assert torch.equal(merged["variance"], torch.full((2,), 1.25))
        assert merged["batches"] == 10
        assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in start.items()}
    assert kept.keys() == KEYS
    assert all(torch.equal(a, b) for k in kept for a, b in zip(kept[k], first[k], strict=True))


def test_a_step_that_is_too_long_is_an_error() -> None:
    huge = FedAvgM(lr=1e42, momentum=0.0)
    start = states(0)
    with pytest.raises(ValueError, match=r"FedAvgM with lr=1e\+42: w has values that are not fin"):
        merge(huge, start, updates(start, 1), {})


# --- whole runs ------------------------------------------------------------------------------

ADAPTIVE = ["runner=local", "strategy=adaptive", "train.epochs=1"]


def weights(folder: Path, name: str) -> State:
    return safetensors.torch.load_file(folder / f"models/{name}.safetensors")


@pytest.mark.slow
def test_the_memory_lasts_over_the_rounds_and_nothing_is_trained_twice(run: Go) -> None:
    options = [*ADAPTIVE, "mode=federated", "partition.num_shards=3", "strategy.fraction=0.67"]
    results, folder = run(*options, "rounds=2", folder="two")
    models = results["models"]
    assert [row["round"] for row in results["rounds"]] == [1, 2]
    assert models["fedavgm"]["optimizer"] == {"lr": 1.0, "momentum": 0.9}
    assert models["fedadam"]["optimizer"]["lr"] == 0.01
    assert "effective_weights" in models["fedavg"]
    assert not {"effective_weights", "n_eff"} & (
        models["fedavgm"].keys() | models["fedadam"].keys()
    )
    still, other = run(*options, "rounds=2", "strategy.fedavgm.momentum=0", folder="still")
    assert still["store"]["trained"] == []  # without momentum its second round is FedAvg's
    assert weights(folder, "fedavgm")["classifier.1.bias"].tolist() != pytest.approx(
        weights(other, "fedavgm")["classifier.1.bias"].tolist(), rel=1e-4
    )
    assert torch.allclose(
        weights(other, "fedavgm")["classifier.1.bias"],
        weights(other, "fedavg")["classifier.1.bias"],
        atol=1e-5,
    )
    again, repeated = run(*options, "rounds=2", folder="again")
    assert again["store"]["trained"] == []
    files = [f"models/{rule}.safetensors" for rule in ("fedavg", "fedavgm", "fedadam")]
    merged = [(folder / file).read_bytes() for file in files]
    assert merged == [(repeated / file).read_bytes() for file in files]
    assert len({*merged}) == 3
    assert (folder / "report.html").read_text().count("FedAvgM η = 1, β = 0.9") > 1


def test_a_step_that_is_too_long_ends_the_run(run: Go) -> None:
    with pytest.raises(RunError, match=r"round 1: FedAdam with lr=1e\+45: .* lower the learning"):
        run(*ADAPTIVE, "mode=federated", "strategy.fedadam.lr=1e45")
