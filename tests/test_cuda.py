"""The recorded step's bookkeeping, on the CPU with a recorder that runs eagerly."""

import copy
from dataclasses import replace

import pytest
import torch
from builders import plain_recipe
from torch import Tensor, nn

from fedcats.errors import RunError, UserError
from fedcats.training.cuda import WARM_UP, GraphStep, make_cuda_step
from fedcats.training.device import find_device
from fedcats.training.fast import make_fast_step
from fedcats.training.memory import memory
from fedcats.training.recipe import Recipe

RECIPE = plain_recipe(lr=0.01)
MOMENTUM = replace(RECIPE, momentum=0.9)


class Eager:
    """Warms up like the real recorder, then runs the step instead of replaying it."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, step):
        self.recorded += 1
        for _ in range(WARM_UP):
            step()
        loss = torch.zeros(())
        return lambda: loss.copy_(step()), loss


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(),
        nn.Linear(4 * 6 * 6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2),
    )  # fmt: skip


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(n, 3, 8, 8, generator=generator),
            torch.randint(0, 2, (n,), generator=generator),
        )
        for n in sizes
    ]


def run(make, recipe: Recipe, data, lrs=None):
    model = network()
    step = make(model, recipe)
    torch.manual_seed(3)
    losses = []
    for i, (x, y) in enumerate(data):
        if lrs:
            step.set_lr(lrs[i])
        losses.append(step(x, y))
    return model.state_dict(), [loss.item() for loss in losses], step.state()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("recipe", [RECIPE, MOMENTUM], ids=["plain", "momentum"])
def test_recording_leaves_no_trace(recipe):
    """Weights, running statistics, momentum and dropout masks: the same bits as without it."""
    recorder = Eager()
    data = batches(4, 4, 2, 4, 2)
    ours = run(lambda m, r: GraphStep(m, r, recorder), recipe, data)
    expected = run(make_fast_step, recipe, data)
    assert recorder.recorded == 2  # one for each batch size
    assert ours[1] == expected[1]  # each loss is its own tensor, not the one that is overwritten
    # BatchNorm counts its batches, warm-up and all, unless it is put back.
    assert ours[0]["1.num_batches_tracked"] == 5
    assert same(ours[0], expected[0])
    assert same(ours[2], expected[2])


def test_another_learning_rate_is_another_recording():
    recorder = Eager()
    data, lrs = batches(4, 4, 4), [0.01, 0.01, 0.1]
    ours = run(lambda m, r: GraphStep(m, r, recorder), MOMENTUM, data, lrs)
    expected = run(make_fast_step, MOMENTUM, data, lrs)
    assert recorder.recorded == 2
    assert same(ours[0], expected[0])


def test_the_batch_is_not_kept_nor_changed():
    data = batches(4)
    before = copy.deepcopy(data)
    step = GraphStep(network(), RECIPE, Eager())
    step(*data[0])
    assert torch.equal(data[0][0], before[0][0]) and torch.equal(data[0][1], before[0][1])


def test_momentum_is_loaded_into_the_recorded_step():
    data = batches(4, 4)
    weights, _, momentum = run(lambda m, r: GraphStep(m, r, Eager()), MOMENTUM, data[:1])
    model, twin = network(), network()
    model.load_state_dict(weights)
    twin.load_state_dict(weights)
    for m, step in (
        (model, GraphStep(model, MOMENTUM, Eager())),
        (twin, make_fast_step(twin, MOMENTUM)),
    ):
        step.load_state(momentum)
        torch.manual_seed(4)
        step(*data[1])
        assert m.training
    assert same(model.state_dict(), twin.state_dict())


def test_memory_that_is_not_enough_is_one_line():
    gpu = r"GPU's memory is not enough: lower .*runner.device=cpu$"
    with pytest.raises(RunError, match=gpu), memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. ..")
    here = r"^the memory is not enough: lower train.batch_size"
    with pytest.raises(RunError, match=here), memory():
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="shape") as other, memory():
        torch.zeros(2).view(3)
    assert not isinstance(other.value, RunError)


@pytest.mark.parametrize("count", [1, 4])
def test_gpus_that_are_not_used_are_named(count: int, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for asked, said in (("auto", 1), ("cuda", 1), ("cpu", 0)):
        lines: list[str] = []
        assert find_device(asked, lines.append) == ("cuda" if said else "cpu")
        assert len(lines) == (said if count == 4 else 0)
        assert all("of 4 GPUs one is used, cuda:0;" in line for line in lines)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [find_device(asked, print) for asked in ("auto", "cpu")] == ["cpu"] * 2
    with pytest.raises(UserError, match=r"^site 3: runner.device=cuda: no GPU can be used here;"):
        find_device("cuda", print, "site 3: ")


def test_only_for_a_gpu():
    assert make_cuda_step(network(), RECIPE) is None
    assert make_cuda_step(nn.Flatten(), RECIPE) is None
    assert make_cuda_step(network().to("meta"), RECIPE) is None
