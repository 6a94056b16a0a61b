"""The one local loop and the one evaluation."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import plain_recipe
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import transforms

from fedcats.data import Images, folder_source, normalise, prepare
from fedcats.errors import RunError
from fedcats.models import build
from fedcats.seeding import derive_seed
from fedcats.training import loop
from fedcats.training.frozen import Features, find_frozen_part, share_test, work_out
from fedcats.training.loop import PlainStep, batches, predict, read_pixels, train
from fedcats.training.recipe import Recipe, Step
from fedcats.training.sgd import Sgd

RECIPE = plain_recipe(epochs=2, lr=0.01, gamma=0.1)


@pytest.fixture(scope="module")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Images:
    source = folder_source(photos, 0.25, 0)
    return prepare(source, tmp_path_factory.mktemp("cache"), size=64).train.subset(range(2, 13))


def small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(900, 3)
    )


def test_batches_keep_the_last_partial_one_unless_told_otherwise() -> None:
    def sizes(drop_last: bool) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        return [len(batch) for batch in batches(11, 4, drop_last, generator)]

    assert sizes(False) == [4, 4, 3]
    assert sizes(True) == [4, 4]
    seen = torch.cat(list(batches(11, 4, False, torch.Generator().manual_seed(0))))
    assert sorted(seen.tolist()) == list(range(11))


def test_equals_a_loop_written_with_torchvisions_transforms(images: Images, photos: Path) -> None:
    """The same steps by hand: decode, resize, flip, normalise, SGD."""
    from PIL import Image

    model, twin = small(), small()
    epochs = train(model, images, RECIPE, seed=5)

    prepared = transforms.Compose(
        [
            transforms.Resize((64, 64)),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    files = [photos / name for name in images.files]
    pixels = torch.stack([prepared(Image.open(file).convert("RGB")) for file in files])
    labels = torch.from_numpy(images.labels)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    twin.train()
    for epoch in range(2):
        order = torch.Generator().manual_seed(derive_seed(5, "order", epoch))
        flips = torch.Generator().manual_seed(derive_seed(5, "flip", epoch))
        torch.manual_seed(derive_seed(5, "dropout", epoch))
        losses = 0.0
        for batch in torch.randperm(11, generator=order).split(4):
            x = pixels[batch].clone()
            flipped = torch.rand(len(batch), generator=flips) < 0.5
            x[flipped] = x[flipped].flip(-1)
            loss = cross_entropy(twin(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(batch)
        assert epochs[epoch].loss == pytest.approx(losses / 11, rel=1e-5)
        assert (epochs[epoch].examples, epochs[epoch].steps) == (11, 3)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_global_generator_is_left_alone(images: Images) -> None:
    model = small()
    before = torch.get_rng_state()
    train(model, images, RECIPE, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_fedprox_is_the_loss_with_the_proximal_term(images: Images) -> None:
    """Against autograd on the whole loss, for three steps."""
    recipe = Recipe(**{**RECIPE.__dict__, "proximal_mu": 0.3})
    model, twin = small().eval(), small().eval()  # no dropout
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = PlainStep(model, recipe, start)
    optimizer = torch.optim.SGD(twin.parameters(), lr=recipe.lr)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, y = torch.randn(4, 3, 64, 64, generator=draw), torch.tensor([0, 1, 2, 0])
        step(x, y)
        optimizer.zero_grad()
        drift = sum(((p - start[name]) ** 2).sum() for name, p in twin.named_parameters())
        (cross_entropy(twin(x), y) + 0.15 * drift).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_large_mu_holds_a_client_where_it_started(images: Images) -> None:
    def drift(mu: float) -> float:
        model = small()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, images, Recipe(**{**RECIPE.__dict__, "proximal_mu": mu}), 5, start=start)
        return sum(float((p.detach() - start[n]).norm()) for n, p in model.named_parameters())

    assert drift(30.0) < drift(3.0) < drift(0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_continuing_after_an_epoch_gives_the_same_bytes(images: Images, momentum: float) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 4, "momentum": momentum, "step_size": 2})
    whole = small()
    saved: dict[str, Any] = {}

    def keep(epochs: tuple, step: Step) -> None:
        if len(epochs) == 2:
            saved["model"] = copy.deepcopy(whole.state_dict())
            saved["step"] = {k: v.clone() for k, v in step.state().items()}
            saved["done"] = epochs

    train(whole, images, recipe, seed=5, after_epoch=keep)
    resumed = small()
    resumed.load_state_dict(saved["model"])
    epochs = train(
        resumed, images, recipe, seed=5, done=saved["done"], optimizer_state=saved["step"]
    )
    assert len(epochs) == 4
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert bool(saved["step"]) == (momentum > 0)


def test_the_schedule_multiplies_the_learning_rate() -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "step_size": 3, "gamma": 0.5})
    assert [recipe.lr_at(e) for e in (0, 2, 3, 6)] == [0.01, 0.01, 0.005, 0.0025]
    assert RECIPE.lr_at(100) == 0.01


def test_a_loss_that_is_not_finite_ends_the_training(images: Images) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "lr": 1e30})
    with pytest.raises(RunError, match=r"training loss is (nan|inf) in epoch \d: lower train.lr"):
        train(small(), images, recipe, seed=5)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"), [(0, False, 0), (0.9, False, 0), (0.9, True, 0.1)]
)
def test_sgd_is_torchs_bit_by_bit(
    momentum: float, nesterov: bool, decay: float, fused: bool | None
) -> None:
    changed = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    model, twin = small(), small()
    ours = Sgd(dict(model.named_parameters()), dataclasses.replace(RECIPE, **changed), fused=fused)
    theirs = torch.optim.SGD(twin.parameters(), lr=RECIPE.lr, fused=fused, **changed)
    draw = torch.Generator().manual_seed(0)
    for step in range(4):
        ours.lr = theirs.param_groups[0]["lr"] = 0.01 / (step + 1)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=draw)
        model[4].bias.grad = twin[4].bias.grad = None  # as of a layer that was not used
        ours.step()
        theirs.step()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a, b)
    assert ours.buffers.keys() == (dict(model.named_parameters()).keys() if momentum else set())


def test_plain_and_chosen_step_agree(images: Images) -> None:
    plain, chosen = small(), small()
    train(plain, images, RECIPE, seed=5, step_for=PlainStep)
    train(chosen, images, RECIPE, seed=5)
    for a, b in zip(plain.parameters(), chosen.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_frozen_parts_do_not_change(images: Images) -> None:
    model = build.build("resnet18", 3)
    build.set_trainable(model, "head")
    before = copy.deepcopy(model.state_dict())
    train(model, images, Recipe(**{**RECIPE.__dict__, "epochs": 1}), seed=5)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["fc.weight", "fc.bias"]


def test_predict_is_without_dropout_and_leaves_the_mode(images: Images) -> None:
    model = small().train()
    (first,) = predict([model], images, batch_size=4)
    assert first.shape == (11, 3)
    assert first.dtype == np.float32
    np.testing.assert_allclose(first.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(first, predict([model], images, batch_size=11)[0], rtol=1e-5)
    assert model.training
    assert model[3].training


def test_models_tested_in_one_pass_give_what_each_gives_alone(images: Images) -> None:
    one, other = small(), small()
    with torch.no_grad():
        other[0].weight.mul_(2)
    both = predict([one, other], images, batch_size=4)
    assert np.array_equal(both[0], predict([one], images, batch_size=4)[0])
    assert np.array_equal(both[1], predict([other], images, batch_size=4)[0])
    assert not np.array_equal(both[0], both[1])


def test_images_kept_on_the_device_are_the_same(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, cpu = torch.tensor([7, 0, 7]), torch.device("cpu")
    kept = read_pixels(images, cpu, keep=True)
    first = kept(batch)
    assert torch.equal(first, images.pixels(batch))
    first.zero_()  # flips are made in place
    assert torch.equal(kept(batch), images.pixels(batch))
    monkeypatch.setattr(loop, "_KEPT_BYTES", 10)
    assert torch.equal(read_pixels(images, cpu, keep=True)(batch), images.pixels(batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trainable", "shared"),
    [
        ("alexnet", "head", True),
        ("alexnet", "classifier", True),
        ("alexnet", "all", False),
        ("resnet18", "head", True),
        ("squeezenet1_1", "head", False),  # pooled after its last layer
    ],
)
def test_models_that_share_a_frozen_part_predict_the_same_bits(
    images: Images, name: str, trainable: str, shared: bool
) -> None:
    torch.manual_seed(3)
    model = build.build(name, 2)
    names = build.set_trainable(model, trainable)
    frozen = share_test(copy.deepcopy(model), names, images, batch_size=8, threads=2)
    assert (frozen is not None) == shared
    if frozen is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        state = model.state_dict()
        trained = {key: state[key] for key in names}
        (whole,) = predict([model], images, batch_size=8)
        assert np.array_equal(frozen.predict(trained), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trainable"), [("alexnet", "head"), ("alexnet", "classifier"), ("resnet18", "head")]
)
@pytest.mark.parametrize("n", [11, 3])  # batches of 4, 4, 3; one batch of 3
def test_features_worked_out_once_train_to_the_same_bits(
    images: Images, name: str, trainable: str, n: int
) -> None:
    """Kept or worked out at each step, against the whole model."""
    shard = images.subset(range(n))
    torch.manual_seed(3)
    whole = build.build(name, 3)
    names = build.set_trainable(whole, trainable)
    untrained = copy.deepcopy(whole)
    momentum = dataclasses.replace(RECIPE, epochs=2, momentum=0.9)
    expected = train(whole, shard, momentum, seed=5)

    for kept in (True, False):
        split = copy.deepcopy(untrained)
        part = find_frozen_part(split, names, normalise(shard.pixels([0])))
        assert part is not None
        size = min(n, 4)
        features = Features(part, shard, work_out(part, shard, size) if kept else None, size)
        epochs = train(split, shard, momentum, seed=5, features=features)

        assert [e.loss for e in epochs] == [e.loss for e in expected]
        for key, value in whole.state_dict().items():
            assert torch.equal(split.state_dict()[key], value), key


def test_the_message_of_a_loss_that_is_not_finite_is_true(images: Images) -> None:
    recipe = dataclasses.replace(RECIPE, momentum=1.0, weight_decay=1e30)
    with pytest.raises(RunError, match=r"lower train.lr or train.momentum or train.weight_decay"):
        train(small(), images, recipe, seed=5)
    broken = small()
    with torch.no_grad():
        broken[4].bias.fill_(torch.nan)
    with pytest.raises(RunError, match="is nan before the first step: the weights that it starts"):
        train(broken, images, recipe, seed=5)
