"""Architectures, and which of their parts are trained."""

import subprocess
import sys

import pytest
import torch
import torchvision

from fedcats.errors import UserError
from fedcats.models import build, weights


def test_alexnet_is_torchvisions_with_another_head() -> None:
    ours = build.build("alexnet", 2).state_dict()
    theirs = torchvision.models.alexnet(num_classes=2).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("alexnet", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("densenet121", "classifier"),
        ("vit_b_32", "heads.head"),
    ],
)
def test_the_head_is_replaced(name: str, head: str) -> None:
    with torch.device("meta"):
        state = build.build(name, 5).state_dict()
    assert state[f"{head}.weight"].shape[0] == 5


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v3_small"])
def test_forward_gives_one_score_a_class(name: str) -> None:
    model = build.build(name, 3).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.slow
def test_the_compiler_is_imported_only_when_it_is_needed() -> None:
    """It is half of what a process that trains would import."""
    code = """
import sys, torch
from fedcats.models import build
from fedcats.training.loop import make_step
from fedcats.training.recipe import Recipe
recipe = Recipe(1, 4, 0.1, 0.9, True, 0.01, 0, 0.1, False)
for name in ("alexnet", "squeezenet1_1", "resnet18", "mobilenet_v3_small"):
    model = build.empty(name, 2, build.build(name, 2).state_dict())
    step = make_step(model, recipe)
    step(torch.ones(2, 3, 64, 64), torch.tensor([0, 1]))
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") == sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
assert sys.modules["torch._dynamo.utils"].__file__
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_torchvisions_stand_in_gives_way_to_the_compiler() -> None:
    code = """
import builtins, sys
real = builtins.__import__
def spy(name, *args):  # as a torchvision would that wants more of it
    if name == "torchvision":
        from torch._dynamo.utils import counters
        assert counters is sys.modules["torch._dynamo.utils"].counters
    return real(name, *args)
builtins.__import__ = spy
import fedcats.models.lazy_torchvision
import torch._dynamo
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.name=resnet19: not a torchvision classifier"):
        build.build("resnet19", 2)
    with pytest.raises(UserError, match=r"model.name=ResNet18: .* for example, resnet18, "):
        build.build("ResNet18", 2)
    for name in ("raft_large", "fcos_resnet50_fpn", "quantized_resnet18", "", "alexnet ", "é"):
        with pytest.raises(UserError, match="not a torchvision classifier; allowed are"):
            build.build(name, 2)


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("head", ["fc.weight", "fc.bias"]),
        ("classifier", ["fc.weight", "fc.bias"]),
    ],
)
def test_head_of_a_model_without_classifier(trainable: str, expected: list[str]) -> None:
    model = build.build("resnet18", 2)
    assert build.set_trainable(model, trainable) == expected
    assert [n for n, p in model.named_parameters() if p.requires_grad] == expected
    assert not model.bn1.training  # frozen statistics stay as they are


def test_trainable_parts_of_alexnet() -> None:
    model = build.build("alexnet", 2)
    names = build.set_trainable(model, "classifier")
    assert names == [f"classifier.{i}.{p}" for i in (1, 4, 6) for p in ("weight", "bias")]
    assert model.classifier[0].training
    assert not model.features.training
    assert build.set_trainable(model, "head") == ["classifier.6.weight", "classifier.6.bias"]
    assert not model.classifier[0].training  # a dropout in front of a frozen layer
    assert build.set_trainable(model, "all") == list(model.state_dict())


def test_batch_norm_statistics_belong_to_the_update() -> None:
    names = build.set_trainable(build.build("resnet18", 2), "all")
    assert "bn1.running_mean" in names
    assert "bn1.num_batches_tracked" in names


def test_empty_takes_the_tensors_as_they_are() -> None:
    state = build.build("squeezenet1_1", 2).state_dict()
    model = build.empty("squeezenet1_1", 2, state)
    assert model.state_dict()["classifier.1.weight"].data_ptr() == (
        state["classifier.1.weight"].data_ptr()
    )


def test_a_vit_takes_weights_for_images_of_our_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_model(name: str, *, weights: object, progress: bool) -> torch.nn.Module:
        asked.append(str(weights))
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    enum = torchvision.models._api.WeightsEnum
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: {})
    for name in ("vit_h_14", "vit_b_16", "alexnet", "swin_v2_t"):
        weights._imagenet(name, lambda _: None)
    assert asked == [
        "ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1",  # the default is for 518 x 518
        "ViT_B_16_Weights.IMAGENET1K_V1",
        "AlexNet_Weights.IMAGENET1K_V1",
        "Swin_V2_T_Weights.IMAGENET1K_V1",
    ]
