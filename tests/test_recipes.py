"""Every recipe and every family of models: the step that is chosen against the plain one."""

import copy
import random
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
import torch
from builders import plain_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcats import tensors
from fedcats.models import build, linear
from fedcats.training.cuda import GraphStep
from fedcats.training.fast import FastStep, make_fast_step
from fedcats.training.frozen import Features, find_frozen_part, work_out
from fedcats.training.loop import PlainStep, make_step, train
from fedcats.training.recipe import Recipe

PLAIN = plain_recipe(gamma=0.5)
# One of each family of torchvision's classifiers, and the smallest image that it takes in batches
# of one.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 107,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 64,
    "vit_b_32": 224,
}
QUICK = ("mobilenet_v3_small", "resnet18", "squeezenet1_1")
LARGE = ("alexnet", "inception_v3", "maxvit_t", "vgg11", "vit_b_32")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Noise:
    """Images of noise, as `train` reads them."""

    n: int
    side: int

    def __len__(self) -> int:
        return self.n

    @cached_property
    def labels(self):
        return np.arange(self.n) % 2

    @cached_property
    def _pixels(self) -> Tensor:
        draw = torch.Generator().manual_seed(self.n)
        shape = (self.n, 3, self.side, self.side)
        return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)

    def pixels(self, indices) -> Tensor:
        return self._pixels[torch.as_tensor(np.asarray(indices))]


class Small(nn.Module):
    """What torchvision's models have: in-place ReLU and dropout behind linear layers, batch norm,
    a linear layer on tokens, and one whose weight is used without it, as in a Swin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.tokens = nn.Linear(8, 12)
        self.mix = nn.Linear(12, 12)
        self.classifier = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(9 * 12, 700),  # with one thread in blocks of rows
            nn.ReLU(inplace=True),
            nn.Linear(700, 16),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(16, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.features(x).flatten(2).transpose(1, 2))
        x = nn.functional.gelu(nn.functional.linear(x, self.mix.weight, self.mix.bias))
        return self.classifier(x.flatten(1))


def trained(model, images, recipe, trainable, step_for):
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    build.set_trainable(model, trainable)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    epochs = train(model, images, recipe, 5, start=start, step_for=step_for)
    return model.state_dict(), epochs


def exact_step(model: nn.Module, recipe: Recipe):
    step = PlainStep(model.double(), recipe)

    class Double:
        set_lr, state, load_state = step.set_lr, step.state, step.load_state

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return step(x.double(), y)

    return Double()


def apart(a: dict[str, Tensor], b: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Largest deviation of a tensor, relative to how far it moved (2-norms).

    A tensor that moves by less than a hundredth of the whole model, because in exact arithmetic
    it would not (a bias in front of a batch norm), is measured by that hundredth.
    """
    floats = [name for name in b if b[name].is_floating_point()]
    moved = {k: (b[k].double() - start[k].double()).norm().item() for k in floats}
    least = 0.01 * float(np.linalg.norm([*moved.values()]))
    return max((a[k].double() - b[k].double()).norm().item() / max(moved[k], least) for k in floats)


def check(model: nn.Module, images: Noise, recipe: Recipe, trainable: str) -> None:
    """The chosen step moves the weights as the plain one does (bounds as in test_fast.py)."""
    start = model.state_dict()
    ours, epochs = trained(model, images, recipe, trainable, make_step)
    plain, expected = trained(model, images, recipe, trainable, PlainStep)
    steps = -(-len(images) // recipe.batch_size)
    steps -= recipe.drop_last and len(images) % recipe.batch_size > 0
    assert [epoch.steps for epoch in epochs] == [steps] * recipe.epochs
    assert [e.loss for e in epochs] == pytest.approx([e.loss for e in expected], rel=1e-2)
    for name in plain:
        if not plain[name].is_floating_point() or torch.equal(plain[name], start[name]):
            assert torch.equal(ours[name], plain[name]), name
    if recipe.proximal_mu or apart(ours, plain, start) <= 4e-3:
        return
    # Batch norm over few values enlarges rounding: then as near to exact arithmetic as plain steps.
    exact, _ = trained(model, images, recipe, trainable, exact_step)
    assert apart(ours, exact, start) <= 2 * apart(plain, exact, start)


@st.composite
def recipes(draw) -> Recipe:
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    return replace(
        PLAIN,
        epochs=draw(st.integers(1, 2)),
        batch_size=draw(st.integers(1, 64)),
        momentum=momentum,
        nesterov=momentum > 0 and draw(st.booleans()),
        weight_decay=draw(st.sampled_from([0.0, 0.01])),
        step_size=draw(st.integers(0, 1)),
        drop_last=draw(st.booleans()),
        proximal_mu=draw(st.sampled_from([0.0, 0.0, 0.0, 0.1])),
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(
    recipe=recipes(),
    last=st.integers(0, 63),
    trainable=st.sampled_from(["all", "all", "classifier", "head"]),
    threads=st.integers(1, 2),
    whole=st.booleans(),
)
def test_every_recipe(recipe, last, trainable, threads, whole):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    n = recipe.batch_size + last % recipe.batch_size + 1  # two steps, the second may be smaller
    before = linear.BLOCK_BATCH
    linear.BLOCK_BATCH = 0 if whole else before  # 0: one slice at every batch size, as on a GPU
    try:
        check(Small(), Noise(n, 8), recipe, trainable)
    finally:
        linear.BLOCK_BATCH = before


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    """Two steps of a recipe that is drawn for each; how many threads is the test's above."""
    chance = random.Random(family)
    size = 1 if family in LARGE else chance.choice([1, 2, 3, 17 if family in QUICK else 5])
    momentum = chance.choice([0.0, 0.9])
    recipe = replace(
        PLAIN,
        batch_size=size,
        momentum=momentum,
        nesterov=momentum > 0 and chance.random() < 0.5,
        weight_decay=chance.choice([0.0, 0.01]),
    )
    torch.manual_seed(1)
    check(build.build(family, 2), Noise(size + 1, FAMILIES[family]), recipe, "all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "trainable"),
    [("mobilenet_v2", "head"), *((name, "classifier") for name in FAMILIES if name not in LARGE)],
)
def test_a_frozen_part_worked_out_once_changes_nothing(family, trainable):
    """Dropout in front of the only trained layer included, which draws at each step."""
    torch.manual_seed(1)
    images = Noise(5, FAMILIES[family])
    whole = build.build(family, 2).to(memory_format=torch.channels_last)
    split = copy.deepcopy(whole)
    start = copy.deepcopy(whole.state_dict())
    names = build.set_trainable(whole, trainable)
    assert build.set_trainable(split, trainable) == names
    recipe = replace(PLAIN, epochs=2, batch_size=2, lr=0.1)
    part = find_frozen_part(split, names, torch.zeros(1, 3, images.side, images.side))
    assert (part is None) == family.startswith("squeezenet")  # pooled after its last layer
    if part is not None:
        drawing = [name for name, module in split.named_modules() if module.training]
        assert all(f"{name}.".startswith(f"{part.name}.") for name in drawing)
        expected = train(whole, images, recipe, 5)
        features = Features(part, images, work_out(part, images, 2), 2)
        epochs = train(split, images, recipe, 5, features=features)
        assert [e.loss for e in epochs] == pytest.approx([e.loss for e in expected], rel=1e-5)
        assert apart(split.state_dict(), whole.state_dict(), start) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_put_around_given_tensors(family):
    """Nothing is left without memory, and one step would be possible."""
    torch.manual_seed(1)
    state = build.build(family, 3).state_dict()
    before = tensors.digest(state)
    drawn = torch.get_rng_state()
    model = build.empty(family, 3, state)
    names = build.set_trainable(model, "all")
    assert names == list(state)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert build.refusal(model, 1, FAMILIES[family]) == ""
    assert tensors.digest(state) == before  # the statistics of batch norm too


class Eager:
    """Runs the step twice where a GPU would record it, then instead of each replay."""

    def __call__(self, step):
        step(), step()
        loss = torch.zeros(())
        return lambda: loss.copy_(step()), loss


def test_a_recorded_step_takes_batches_of_every_size(monkeypatch):
    monkeypatch.setattr(linear, "BLOCK_BATCH", 0)
    torch.manual_seed(1)
    model = Small()
    twin = copy.deepcopy(model)
    recipe = replace(PLAIN, momentum=0.9, weight_decay=0.01)
    recorded, step = GraphStep(model, recipe, Eager()), make_fast_step(twin, recipe)
    assert isinstance(step, FastStep)
    for i, size in enumerate([32, 17, 5, 32, 1]):
        draw = torch.Generator().manual_seed(i)
        x, y = torch.randn(size, 3, 8, 8, generator=draw), torch.arange(size) % 2
        for each in (recorded, step):
            torch.manual_seed(i)
            each(x, y)
    assert tensors.digest(model.state_dict()) == tensors.digest(twin.state_dict())


class Pooled(nn.Sequential):
    """Batch norm behind global pooling: one value per channel and image."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_what_a_model_refuses_is_found_by_trying():
    assert build.refusal(Pooled(), 2, 8) == ""
    assert "more than 1 value per channel" in build.refusal(Pooled(), 1, 8)
    assert build.refusal(Pooled().eval(), 1, 8) == ""  # frozen
    assert "it gives a tuple" in build.refusal(Pair(), 1, 8)
    assert "224" in build.refusal(build.build("vit_b_32", 2), 1, 64)
    assert build.refusal(build.build("inception_v3", 2), 2, 32)
