"""Whole experiments, through the real pipeline: Flower, Ray, the store, the report."""

import csv
import errno
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from builders import fold, model_bytes, weights
from conftest import run_tiny
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.data import Images
from fedcats.errors import RunError, UserError
from fedcats.experiment import baseline_process, evaluate, predictions
from fedcats.experiment import results as results_module
from fedcats.metrics import read_predictions, scores
from fedcats.results import Results
from fedcats.storage import Store
from fedcats.text import size_text
from fedcats.training.loop import predict

pytestmark = pytest.mark.slow

Go = Callable[..., tuple[dict[str, Any], Path]]
LOCAL = "runner=local"


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

    def counted(
        models: list[torch.nn.Module], images: Images, *batch_size: int
    ) -> list[np.ndarray]:
        if len(images) > 4:  # so many are only tried on
            tested.extend(models)
        return predict(models, images, *batch_size)

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


def test_versions_are_of_what_is_installed() -> None:
    """Without Ray, which ``runner=local`` does not need, too."""
    found = results_module._versions("torch", "no-such-package")
    assert found == {"torch": version("torch")}


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


def test_what_a_run_drops_of_earlier_ones_is_said(
    run: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDCATS_HOME", str(tmp_path / "home"))
    room = [LOCAL, "mode=centralized", "save_models=none", "store.max_gb=0.014"]
    for seed in (1, 2):
        run(*room, f"seed={seed}")
    assert "before this run" not in capsys.readouterr().err
    before = Store(tmp_path / "home" / "store").sizes()
    run(*room, "seed=3")
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "before this run" in one]
    left = Store(tmp_path / "home" / "store").sizes()
    gone = {key: size for key, size in before.items() if key not in left}
    assert size_text(sum(gone.values())) in line
    assert line.endswith("above store.max_gb=0.014 what was used longest ago is dropped")


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
