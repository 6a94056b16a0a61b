"""Whole experiments, through the real pipeline: Flower, Ray, the store, the report."""

import csv
import errno
import json
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
from conftest import run_tiny
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.data import Images
from fedcats.errors import RunError, UserError
from fedcats.experiment import baseline_process, evaluate, predictions
from fedcats.experiment import results as results_module
from fedcats.federated import client as client_module
from fedcats.metrics import read_predictions, scores
from fedcats.models import build
from fedcats.models.weights import initial_weights
from fedcats.results import Results
from fedcats.storage import Store
from fedcats.training.loop import predict

pytestmark = pytest.mark.slow

Go = Callable[..., tuple[dict[str, Any], Path]]
LOCAL = "runner=local"


def weights(folder: Path, model: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "models" / f"{model}.safetensors")


def model_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}


def fold(models: list[dict[str, torch.Tensor]], beta: float) -> dict[str, np.ndarray]:
    """The paper's listing, in float64."""
    merged = {k: v.double().numpy() for k, v in models[0].items()}
    for model in models[1:]:
        for key in merged:
            merged[key] = beta * model[key].double().numpy() + (1 - beta) * merged[key]
    return merged


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """One run with three clients of different size, looked at by several tests."""
    overrides = [LOCAL, "partition=iid", "partition.num_shards=3", "data.train_per_class=10"]
    # AlexNet's sizes are not needed here; twenty images do not divide by three.
    return run_tiny(tmp_path_factory.mktemp("three"), *overrides, "figures=[png,svg]")


@pytest.mark.ray
def test_ray_with_one_worker_two_workers_and_no_ray_give_the_same_bytes(run: Go) -> None:
    off = ["store.enabled=false", "partition.num_shards=3"]  # so that every run trains
    two, first = run("runner.workers=2", *off, folder="two")
    one, second = run("runner.workers=1", *off, folder="one")
    none, third = run("runner=local", *off, folder="none")
    for results in (two, one, none):
        assert sorted(results["store"]["trained"]) == [
            "centralized",
            "submodel/0",
            "submodel/1",
            "submodel/2",
        ]
    expected = model_bytes(first)
    assert sorted(expected) == [
        "centralized.safetensors",
        "fedavg.safetensors",
        "polyak.safetensors",
        "submodel-0.safetensors",
        "submodel-1.safetensors",
        "submodel-2.safetensors",
    ]
    assert model_bytes(second) == expected
    assert model_bytes(third) == expected
    for name in ("polyak", "centralized", "submodel-1"):
        file = f"predictions/{name}.csv"
        assert (second / file).read_bytes() == (first / file).read_bytes()
    assert not [p for p in first.iterdir() if p.name.startswith(".")]


def test_merges_recomputed_from_the_saved_submodels(three: tuple[dict[str, Any], Path]) -> None:
    _, folder = three
    own = [weights(folder, f"submodel-{i}") for i in range(3)]
    polyak, expected = weights(folder, "polyak"), fold(own, 0.5)
    assert max(np.abs(polyak[k].numpy() - v).max() for k, v in expected.items()) < 1e-6


def test_fedavg_agrees_with_flowers_own(three: tuple[dict[str, Any], Path]) -> None:
    results, folder = three
    records = []
    for i in range(3):
        arrays = {k: Array(v.numpy()) for k, v in weights(folder, f"submodel-{i}").items()}
        examples = results["data"]["shards"][i]["examples"]
        records.append(
            RecordDict({"a": ArrayRecord(arrays), "m": MetricRecord({"num-examples": examples})})
        )
    theirs = aggregate_arrayrecords(records, "num-examples")
    ours = weights(folder, "fedavg")
    assert max(np.abs(ours[k].numpy() - theirs[k].numpy()).max() for k in ours) < 1e-6
    shares = [shard["examples"] / 20 for shard in results["data"]["shards"]]
    assert sorted(round(20 * s) for s in shares) == [6, 7, 7]
    assert results["models"]["fedavg"]["effective_weights"] == pytest.approx(shares)


def test_scores_recomputed_from_the_predictions(three: tuple[dict[str, Any], Path]) -> None:
    results, folder = three
    assert len(results["models"]) == 6
    for model in results["models"].values():
        found = read_predictions(folder / model["predictions"])
        again = scores(found.labels, found.probabilities, found.classes)
        assert {key: model[key] for key in again} == again
        assert model["n"] == 12


def test_the_comparison_is_of_what_was_predicted_not_of_the_files(
    run: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(LOCAL, "seed=62", folder="as it is")

    def other(path: Path, *_: Any) -> None:
        """What another command would write there."""
        path.parent.mkdir(exist_ok=True)
        path.write_text("file,label,prediction,p_cat,p_dog\n")

    monkeypatch.setattr(evaluate, "write_predictions", other)
    assert run(LOCAL, "seed=62")[0]["comparison"] == first["comparison"]


def test_equal_merges_are_tested_once(run: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = []

    def counted(models: list[torch.nn.Module], images: Images) -> list[np.ndarray]:
        if len(images) > 4:  # so many are only tried on
            tested.extend(models)
        return predict(models, images)

    monkeypatch.setattr(predictions, "predict", counted)
    rules = "strategy.rules=[polyak,fedavg,uniform]"
    results, folder = run(LOCAL, "mode=federated", "seed=61", rules)
    merged = [
        model_bytes(folder)[f"{name}.safetensors"] for name in ("polyak", "fedavg", "uniform")
    ]
    assert len({*merged}) == 1  # two shards of one size, beta 0.5
    assert len(tested) == 2 + 1
    scored = [results["models"][name]["loss"] for name in ("polyak", "fedavg", "uniform")]
    assert len({*scored}) == 1


def test_without_its_report_a_run_is_not_complete(
    run: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results_module, "write_report", full)
    with pytest.raises(RunError, match=r"results.json is there, .*No space"):
        run(LOCAL, "seed=62")
    kept = json.loads((tmp_path / "run" / "results.json").read_text())
    assert kept["status"] == "without its report"
    assert kept["models"]["polyak"]["n"] == 12
    monkeypatch.undo()
    results, folder = run(LOCAL, "seed=62")
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["status"] == "complete"


def test_torchvision_loads_the_saved_models(three: tuple[dict[str, Any], Path]) -> None:
    _, folder = three
    model = torchvision.models.squeezenet1_1(num_classes=2)
    for name in ("centralized", "polyak", "submodel-2"):
        model.load_state_dict(weights(folder, name), strict=True)


def test_results_have_their_form(three: tuple[dict[str, Any], Path]) -> None:
    results, folder = three
    assert json.loads((folder / "results.json").read_text()) == results
    assert (results["schema"], results["status"], results["seed"]) == (1, "complete", 0)
    data = results["data"]
    assert data["source"] == "synthetic"
    assert "not photos" in data["note"]
    assert data["classes"] == ["cat", "dog"]
    assert data["train"] == {"cat": 10, "dog": 10}
    assert sum(shard["examples"] for shard in data["shards"]) == 20
    assert results["weights"]["source"] == "none"
    assert len(results["weights"]["sha256"]) == 64
    training = results["models"]["centralized"]["training"]
    assert (training["examples"], training["steps"], len(training["epochs"])) == (20, 10, 2)
    polyak = results["models"]["polyak"]
    assert polyak["effective_weights"] == [0.25, 0.25, 0.5]
    assert polyak["n_eff"] == pytest.approx(8 / 3)
    assert set(results["comparison"]) == {"polyak", "fedavg"}
    assert results["config"]["train"]["lr"] == 0.001


def test_the_run_records_which_file_went_where(three: tuple[dict[str, Any], Path]) -> None:
    _, folder = three
    with (folder / "shards.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == len(rows) == 20
    assert {row["client"] for row in rows} == {"0", "1", "2"}
    assert all(len(row["sha256"]) == 64 and row["label"] in row["file"] for row in rows)
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history if row["model"] == "submodel/1"] == ["1", "2"]
    assert len(history) == 8


def test_the_report_is_there_and_says_drawings(three: tuple[dict[str, Any], Path]) -> None:
    _, folder = three
    page = (folder / "report.html").read_text()
    assert "drawings" in page
    assert "<script src" not in page
    assert 'src="http' not in page
    figures = {path.suffix for path in (folder / "figures").iterdir()}
    assert figures == {".png", ".svg"}


def test_the_same_run_again_trains_nothing(run: Go) -> None:
    first, a = run(LOCAL, "seed=3", folder="a")
    again, b = run("seed=3", folder="b")  # runner=ray: not even started
    assert len(first["store"]["trained"]) == 3
    assert again["store"]["trained"] == []
    assert sorted(again["store"]["reused"]) == sorted(first["store"]["trained"])
    assert model_bytes(a) == model_bytes(b)
    cats, c = run("seed=3", "data.positive=cat", folder="c")  # is asked of the scores alone
    assert cats["store"]["trained"] == []
    assert model_bytes(a) == model_bytes(c)
    for name, model in cats["models"].items():
        of_cats = model["per_class"]["cat"]
        assert (model["precision"], model["recall"]) == (of_cats["precision"], of_cats["recall"])
        assert model["accuracy"] == first["models"][name]["accuracy"]
    assert "Precision, recall and F1 of the class cat" in (c / "report.html").read_text()
    with pytest.raises(UserError, match=r"data.positive=cow: .*; allowed here is cat, dog"):
        run("seed=3", "data.positive=cow", folder="d")


def test_a_baseline_that_is_there_needs_no_process_whatever_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDCATS_HOME", str(tmp_path))
    monkeypatch.setattr(
        baseline_process, "_start_process", lambda *_: pytest.fail("a process was started")
    )
    baseline_process.remember_trained(load(compose_config(["seed=3"])))
    baseline_process.start(load(compose_config(["seed=3", "data.positive=cat"])), tmp_path)


def test_a_store_too_small_for_the_run_is_refused_before_anything_is_trained(
    run: Go, home: Path
) -> None:
    run(LOCAL, "mode=federated", "seed=40")
    before = {entry.path for entry in Store(home / "store").entries()}
    with pytest.raises(UserError, match=r"store.max_gb=0.001: this run needs .* GB at one time"):
        run(LOCAL, "store.max_gb=0.001", "seed=41")
    rules = ["mode=federated", "strategy.rules=[fp16,ridge]", "seed=41", "store.max_gb=0.01"]
    with pytest.raises(UserError, match=r"0.01: this .* 0.02 GB .*, 3 MB of what rules read"):
        run(LOCAL, *rules)
    assert before <= {entry.path for entry in Store(home / "store").entries()}  # nothing made room


def test_a_damaged_entry_is_noticed_and_computed_anew(run: Go, home: Path) -> None:
    _, a = run(LOCAL, "seed=4", folder="a")
    updates = [e for e in Store(home / "store").entries() if e.meta["kind"] == "update"]
    for entry in updates[-3:]:
        content = bytearray(entry.path.read_bytes())
        content[-1] ^= 1
        entry.path.write_bytes(content)
    again, b = run(LOCAL, "seed=4", folder="b")
    assert sorted(again["store"]["damaged"]) == ["centralized", "submodel/0", "submodel/1"]
    assert model_bytes(a) == model_bytes(b)


def test_photos_of_three_classes_in_a_folder(run: Go, photos: Path) -> None:
    own = ["mode=federated", "data=folder", f"data.root={photos}"]
    results, folder = run(LOCAL, *own, folder="photos")
    assert results["data"]["classes"] == ["ant", "bee", "cow"]
    model = results["models"]["polyak"]
    assert set(model["per_class"]) == {"ant", "bee", "cow"}
    assert np.array(model["confusion_matrix"]).shape == (3, 3)
    assert "drawings" not in (folder / "report.html").read_text()
    with pytest.raises(UserError, match=r"data.positive=bee: .* null: of 3 classes they are means"):
        run(LOCAL, *own, "data.positive=bee", folder="bees")


def test_files_that_cannot_be_used_are_left_out_and_named(
    run: Go, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "dirty"
    shutil.copytree(photos, root)
    whole = (root / "train/ant/0.jpg").read_bytes()
    (root / "train/ant/broken.jpg").write_bytes(whole[: len(whole) // 2])
    shutil.copy(root / "test/bee/1.jpg", root / "train/bee/leaked.jpg")
    own = [LOCAL, "mode=federated", "data=folder", f"data.root={root}"]
    results, _ = run(*own, folder="dirty-run")
    ((file, reason),) = results["data"]["audit"]["quarantined"]
    assert file == "train/ant/broken.jpg"
    assert reason
    assert results["data"]["train"] == {"ant": 9, "bee": 9, "cow": 9}
    shown = " ".join(capsys.readouterr().err.split())
    assert "1 of 41 files cannot be used and are left out, e.g. train/ant/broken.jpg" in shown
    assert "train/bee/leaked.jpg = test/bee/1.jpg" in shown
    with pytest.raises(UserError, match=r"more than data.max_bad_fraction=0.01"):
        run(*own, "data.max_bad_fraction=0.01")


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
