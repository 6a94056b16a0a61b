"""Whole experiments with other modes, orders, rounds, rules, clients and models."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from builders import fold, model_bytes, weights

from fedcats.errors import RunError, UserError
from fedcats.federated import client as client_module
from fedcats.models import build
from fedcats.models.weights import initial_weights
from fedcats.storage import Store

pytestmark = pytest.mark.slow


Go = Callable[..., tuple[dict[str, Any], Path]]


LOCAL = "runner=local"


@pytest.mark.parametrize(
    ("mode", "models"),
    [
        ("centralized", {"centralized"}),
        ("federated", {"submodel/0", "submodel/1", "polyak", "fedavg"}),
    ],
)
def test_one_half_of_the_comparison(run: Go, mode: str, models: set[str]) -> None:
    results, folder = run(LOCAL, f"mode={mode}")
    assert set(results["models"]) == models
    assert results["comparison"] == {}
    assert (folder / "report.html").is_file()


def test_order_of_the_merge(run: Go) -> None:
    three = [LOCAL, "partition.num_shards=3", "strategy=polyak", "strategy.beta=0.3"]
    results, folder = run(*three, "strategy.order=reversed", "mode=federated")
    own = [weights(folder, f"submodel-{i}") for i in (2, 1, 0)]
    expected = fold(own, 0.3)
    merged = weights(folder, "polyak")
    assert max(np.abs(merged[k].numpy() - v).max() for k, v in expected.items()) < 1e-6
    assert results["models"]["polyak"]["clients"] == [2, 1, 0]
    same, other = run(*three, "strategy.order=[2,1,0]", "mode=federated", folder="list")
    assert (other / "models/polyak.safetensors").read_bytes() == (
        folder / "models/polyak.safetensors"
    ).read_bytes()
    assert same["store"]["trained"] == []
    shuffled, _ = run(*three, "strategy.order=shuffled", "mode=federated", folder="shuffled")
    assert sorted(shuffled["models"]["polyak"]["clients"]) == [0, 1, 2]


def test_several_rounds_start_from_the_rules_own_merge(run: Go) -> None:
    results, _ = run(
        LOCAL, "rounds=2", "seed=9", "train.epochs=1", "save_models=false", "strategy.beta=0.3"
    )
    assert [row["round"] for row in results["rounds"]] == [1, 2]
    assert results["rounds"][1]["polyak"]["loss"] == results["models"]["polyak"]["loss"]
    model = torchvision.models.squeezenet1_1(num_classes=2)
    twice = 2 * sum(value.nbytes for value in model.state_dict().values())
    for row in results["rounds"]:
        assert row["fedavg"]["bytes"] == {"down": twice, "up": twice}
    # the first round is common to both rules, the second is not
    assert sorted(results["store"]["trained"]) == [
        "centralized",
        "fedavg/submodel/0",
        "fedavg/submodel/1",
        "polyak/submodel/0",
        "polyak/submodel/1",
        "submodel/0",
        "submodel/1",
    ]
    assert len(results["models"]["centralized"]["training"]["epochs"]) == 2
    assert results["models"]["polyak"]["file"] is None


def test_robust_rules_beside_the_others(run: Go) -> None:
    five = [LOCAL, "partition.num_shards=5", "data.train_per_class=10"]
    rules = "strategy.rules=[fedavg,median,trimmed_mean,krum]"
    results, folder = run(*five, rules, "rounds=2", "train.epochs=1")
    merged = [name for name in results["models"] if "clients" in results["models"][name]]
    assert merged == ["fedavg", "median", "trimmed_mean", "krum"]
    assert set(results["comparison"]) == set(merged)
    assert "effective_weights" not in results["models"]["median"]
    assert sorted(results["models"]["krum"]["effective_weights"]) == [0.0] * 4 + [1.0]
    assert len({path.read_bytes() for path in (folder / "models").glob("[fmtk]*")}) == 4
    once, folder = run(*five, rules, "mode=federated", "train.epochs=1", folder="once")
    own = [weights(folder, f"submodel-{i}") for i in range(5)]
    for name, value in weights(folder, "median").items():
        stack = np.stack([one[name].numpy() for one in own])
        assert np.array_equal(value.numpy(), np.median(stack, axis=0)), name
    krum = once["models"]["krum"]["effective_weights"].index(1.0)
    assert torch.equal(weights(folder, "krum")["classifier.1.bias"], own[krum]["classifier.1.bias"])
    with pytest.raises(UserError, match=r"krum with .*malicious=2 needs at least 7 clients"):
        run(*five, rules, "strategy.malicious=2", "train.epochs=1", folder="few")


def test_fedprox_is_for_the_clients_and_not_for_the_baseline(run: Go) -> None:
    _, one = run(LOCAL, folder="plain")
    held, two = run(LOCAL, "train.proximal_mu=20", folder="held")
    assert held["store"]["reused"] == ["centralized"]
    plain, other = model_bytes(one), model_bytes(two)
    assert {name for name in plain if plain[name] == other[name]} == {"centralized.safetensors"}
    again, three = run(LOCAL, "train.proximal_mu=0", folder="again")
    assert again["store"]["trained"] == []
    assert model_bytes(three) == plain


def test_a_share_of_the_clients(run: Go) -> None:
    results, _ = run(LOCAL, "partition.num_shards=4", "strategy.fraction=0.5", "mode=federated")
    clients = results["models"]["fedavg"]["clients"]
    assert len(clients) == 2
    assert {f"submodel/{c}" for c in clients} | {"polyak", "fedavg"} == set(results["models"])


@pytest.fixture()
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make client 1 fail: ``raise``, or send ``nan`` or a wrong ``shape``."""

    def break_client(how: str) -> None:
        real = client_module.compute

        def compute(task: Any, store: Any, report: Any) -> Any:
            if task.client != 1:
                return real(task, store, report)
            if how == "raise":
                raise RuntimeError("the camera is broken")
            update = real(task, store, report)
            tensors = {k: v.clone() for k, v in update.tensors.items()}
            name = "features.0.weight"
            tensors[name] = tensors[name] * torch.nan if how == "nan" else torch.zeros(1)
            epochs = [vars(epoch) for epoch in update.epochs]
            store.put(update.key, tensors, {"examples": update.examples, "epochs": epochs})
            return replace(update, tensors=tensors)

        monkeypatch.setattr(client_module, "compute", compute)

    return break_client


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"client 1 failed in round 1: the camera is broken"),
        ("nan", r"client 1 failed in round 1: features\.0\.weight has values that are not finite"),
        ("shape", r"client 1 failed in round 1: features\.0\.weight has shape \(1,\), not \(64,"),
    ],
)
def test_a_failed_client_ends_the_run_and_is_named(
    run: Go, faulty: Callable[[str], None], how: str, message: str
) -> None:
    faulty(how)
    with pytest.raises(RunError, match=message):
        run(LOCAL, "partition.num_shards=3", "mode=federated", "store.enabled=false")


def test_survivors_give_what_they_would_give_alone(run: Go, faulty: Callable[[str], None]) -> None:
    # A store of each run's own: in it is what client 1 sends under the key of its task.
    clients = [LOCAL, "partition.num_shards=3", "mode=federated", "store.enabled=false"]
    clients.append("strategy.on_failure=survivors")
    _, whole = run(*clients, folder="whole")
    faulty("nan")
    results, folder = run(*clients, folder="survivors")
    own = [weights(whole, f"submodel-{i}") for i in (0, 2)]
    expected = fold(own, 0.5)
    merged = weights(folder, "polyak")
    assert all(torch.equal(merged[k], torch.from_numpy(v).float()) for k, v in expected.items())
    assert results["models"]["polyak"]["clients"] == [0, 2]
    assert "not finite" in results["failures"]["round 1, client 1"]
    with pytest.raises(RunError, match=r"2 clients finished, strategy.min_clients is 3"):
        run(*clients, "strategy.min_clients=3", folder="too-few")


def test_polyak_may_start_from_the_global_model(run: Go) -> None:
    results, folder = run("strategy.start=global", "mode=federated", LOCAL)
    names = ("submodel-0", "submodel-1", "polyak", "fedavg")
    w = {name: weights(folder, name) for name in names}
    initial = initial_weights("squeezenet1_1", 2, "none", 0, folder).state
    for key, merged in w["polyak"].items():
        by_hand = 0.25 * initial[key] + 0.25 * w["submodel-0"][key] + 0.5 * w["submodel-1"][key]
        torch.testing.assert_close(merged, by_hand, rtol=0, atol=1e-6)
    polyak, fedavg = results["models"]["polyak"], results["models"]["fedavg"]
    assert polyak["effective_weights"] == [0.25, 0.5]
    assert polyak["global_weight"] == 0.25
    assert polyak["n_eff"] == pytest.approx(1 / (0.25**2 + 0.25**2 + 0.5**2))
    assert "global_weight" not in fedavg


def test_models_that_do_not_fit_on_the_disk_are_refused_at_once(
    run: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=10_000_000))
    with pytest.raises(UserError, match="save_models=all: 5 models of 3 MB do not fit into"):
        run(LOCAL)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=5_000_000))
    with pytest.raises(UserError, match=r"save_models=merged: 3 models of .* allowed is none"):
        run(LOCAL, "save_models=merged")
    results, _ = run(LOCAL, "save_models=false", "mode=federated")
    assert results["models"]["polyak"]["file"] is None


def test_sub_models_stay_in_the_store_and_the_merged_ones_are_saved(run: Go, home: Path) -> None:
    results, folder = run(LOCAL, "save_models=merged", "train.epochs=1")
    models = results["models"]
    saved = {name for name, model in models.items() if model["file"]}
    assert saved == {"centralized", "polyak", "fedavg"}
    assert {path.stem for path in (folder / "models").iterdir()} == saved
    store = Store(home / "store")
    for name in ("submodel/0", "submodel/1", "centralized"):
        assert store.get(models[name]["key"]) is not None
    kept = store.get(models["centralized"]["key"]).tensors
    saved_one = safetensors.torch.load_file(folder / models["centralized"]["file"])
    assert all(torch.equal(kept[key], value) for key, value in saved_one.items())
    assert "key" not in models["polyak"]
    again, other = run(LOCAL, "save_models=true", "train.epochs=1", folder="all")
    assert len(again["store"]["trained"]) == 0
    assert len([*(other / "models").iterdir()]) == 5
    assert "3 in models/" in (folder / "report.html").read_text()


def test_every_model_is_tested_on_every_clients_own_part(run: Go) -> None:
    results, folder = run(LOCAL, "hold_out=0.25", "train.epochs=1", "figures=[svg]")
    sizes = {name: len(model["by_client"]) for name, model in results["models"].items()}
    assert set(sizes.values()) == {2}
    assert {"centralized", "submodel/0", "submodel/1", "polyak", "fedavg"} == sizes.keys()
    for model in results["models"].values():  # both parts have 2 images
        assert model["validation"]["n"] == 4
        assert np.mean(model["by_client"]) == pytest.approx(model["validation"]["accuracy"])
    assert (folder / "figures" / "by-client.svg").is_file()
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".svg"}
    assert "Each model at each client" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.batch_size=7", "of 8 training images of client 0 .*train.drop_last=true, or"),
        ("train.batch_size=1", "train.batch_size=1: .*allowed is a larger train.batch_size"),
        ("partition=iid partition.num_shards=16", "of 1 training images of client 0 .*counts"),
        ("model.name=vit_b_32", "cannot be trained on images of 224 x 224: no"),
    ],
)
def test_a_model_that_cannot_take_a_step_is_refused_before_training(
    run: Go, monkeypatch: pytest.MonkeyPatch, overrides: str, message: str
) -> None:
    real = build.refusal

    def refusal(model: torch.nn.Module, images: int, size: int) -> str:
        if type(model).__name__ == "VisionTransformer":
            return "no"
        pooled = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.BatchNorm2d(3), torch.nn.Flatten()]
        return real(torch.nn.Sequential(*pooled), images, size)

    monkeypatch.setattr(build, "refusal", refusal)
    with pytest.raises(UserError, match=message):
        run(LOCAL, *overrides.split())


def test_nobody_trains_on_nothing(run: Go) -> None:
    for mode, who in (("compare", "client 0 has 8"), ("centralized", "centralized has 16")):
        with pytest.raises(UserError, match=f"train.drop_last=true: {who} training images"):
            run(LOCAL, f"mode={mode}", "train.batch_size=17", "train.drop_last=true")


def test_the_baseline_has_the_clients_photos_or_all_of_them(
    run: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = [
        LOCAL,
        "seed=64",
        "partition=paper",
        "partition.per_class=3",
    ]  # of 8: 2 x 2 are on no device
    same, folder = run(*paper, folder="same")
    assert same["data"]["left_out"]["partition"] == {"cat": 2, "dog": 2}
    assert same["models"]["centralized"]["training"]["examples"] == 12
    every, other = run(*paper, "centralized.photos=all", folder="all")
    assert every["store"]["trained"] == ["centralized"]
    assert every["models"]["centralized"]["training"]["examples"] == 16
    said = " ".join(capsys.readouterr().out.split())
    for where, word in ((folder, "lacks"), (other, "has")):
        sentence = (
            "Warning: Of 16 training drawings 4 (2 cat, 2 dog) are on no device (partition paper: "
            f"num_shards=2, per_class=3); the centralized model {word} them."
        )
        assert sentence in said
        assert sentence in (where / "report.html").read_text()
    uneven = [LOCAL, "seed=64", "partition.num_shards=3"]
    same, _ = run(*uneven)
    assert sorted(shard["examples"] for shard in same["data"]["shards"]) == [5, 5, 6]
    assert not any(same["data"]["left_out"]["partition"].values())
    assert run(*uneven, "centralized.photos=all")[0]["store"]["trained"] == []  # the same key
    held, _ = run(*paper, "centralized.photos=all", "hold_out=0.34")
    assert held["models"]["centralized"]["training"]["examples"] == 12
    assert held["data"]["held_out"] == {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    "overrides",
    [
        "model.name=googlenet train.batch_size=17",
        "model.name=mobilenet_v2 model.trainable=classifier train.batch_size=3",
        "model.name=regnet_y_400mf model.trainable=head train.proximal_mu=0.1",
    ],
)
def test_families_end_to_end(run: Go, overrides: str) -> None:
    fewer = ("train.epochs=1", "data.train_per_class=5", "data.test_per_class=2")
    results, _ = run(LOCAL, *fewer, "mode=federated", "save_models=false", *overrides.split())
    assert {*results["models"]} >= {"submodel/0", "submodel/1", "polyak", "fedavg"}
