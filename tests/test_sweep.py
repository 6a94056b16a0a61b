"""Sweeps: nothing trained twice, every launcher reports, nothing chosen on the test images."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import TINY, TINY_DRAWINGS, python, run_tiny
from omegaconf import OmegaConf
from PIL import Image

from fedcats.metrics import read_predictions
from fedcats.metrics.choice import as_one_number
from fedcats.results import Results

pytestmark = pytest.mark.slow

Go = Callable[..., tuple[dict[str, Any], Path]]


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, with tiny jobs."""
    parallel = "hydra/launcher=joblib" in arguments  # which starts processes of its own
    start = sys.executable if parallel else python()
    command = [start, "-m", "fedcats.cli", "-m", *TINY, *TINY_DRAWINGS]
    given = [*command, "save_models=false", *arguments, f"hydra.sweep.dir={folder}"]
    return subprocess.run(given, capture_output=True, text=True, check=False)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def trained(folder: Path) -> list[str]:
    """What the jobs of a sweep trained, of all of them."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]
    return sorted(name for one in results for name in one["store"]["trained"])


def test_a_sweep_trains_each_model_once_and_reports(tmp_path: Path) -> None:
    done = sweep(
        tmp_path, "seed=31", "runner=local", "strategy.beta=0.2,0.8",
        "partition.num_shards=2,3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    clients = ["submodel/0", "submodel/0", "submodel/1", "submodel/1", "submodel/2"]
    assert trained(tmp_path) == ["centralized", *clients]
    rows = read(tmp_path / "sweep.csv")
    count = {name: sum(row["model"] == name for row in rows) for name in ("centralized", "polyak")}
    assert count == {"centralized": 1, "polyak": 4}
    assert {(row["strategy.beta"], row["partition.num_shards"]) for row in rows} >= {
        ("0.2", "2"), ("0.8", "2"), ("0.2", "3"), ("0.8", "3"), ("", "")
    }  # fmt: skip
    assert (tmp_path / "sweep.html").is_file()
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"sweep", "heat"}  # and no gaps, since nobody has learned
    assert "Nobody has learned" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "4 jobs: 6 trained" in done.stdout
    assert done.stdout.rstrip().endswith(str(tmp_path))


@pytest.mark.ray
def test_parallel_jobs_share_one_training(tmp_path: Path) -> None:
    done = sweep(
        tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=32",
        "strategy.beta=0.2,0.8", "runner.workers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert trained(tmp_path) == ["centralized", "submodel/0", "submodel/1"]
    assert len([row for row in read(tmp_path / "sweep.csv") if row["model"] == "polyak"]) == 2
    whole = subprocess.run(
        [sys.executable, "-m", "fedcats.cli.store", "verify"], capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stdout


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_one_failed_job_fails_the_sweep_but_not_the_others(tmp_path: Path, launcher: str) -> None:
    done = sweep(
        tmp_path, f"hydra/launcher={launcher}", "runner=local", "seed=34",
        "partition.num_shards=40,2",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "job 0: partition.num_shards=40" in done.stderr
    assert "Traceback" not in done.stderr
    assert [row["model"] for row in read(tmp_path / "sweep.csv")].count("polyak") == 1


def test_optuna_is_given_held_out_accuracy_and_refused_the_test_images(tmp_path: Path) -> None:
    search = ["search=beta", "runner=local", "hydra.sweeper.n_trials=2"]
    done = sweep(tmp_path / "a", *search)
    assert done.returncode == 0, done.stderr
    best = OmegaConf.load(tmp_path / "a" / "optimization_results.yaml")["best_value"]  # type: ignore[index]
    rows = [row for row in read(tmp_path / "a" / "sweep.csv") if row["model"] == "polyak"]
    assert len(rows) == 2
    jobs = [json.loads(path.read_text()) for path in (tmp_path / "a").glob("*/results.json")]
    assert best == max(as_one_number(one["models"]["polyak"]["validation"]) for one in jobs)
    refused = sweep(tmp_path / "b", *search, "hold_out=0")
    assert refused.returncode == 2
    assert "hold_out=0: a sweeper that chooses" in refused.stderr


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """A grid with everything in it; what its sub-models are was not trained before."""
    return run_tiny(tmp_path_factory.mktemp("grid"), *GRID)


GRID = [
    "mode=merge",
    "runner=local",
    "seed=33",
    "partition.num_shards=3",
    "data.train_per_class=15",
    "merge.rules=[polyak,fedavg,uniform,soup,best,ensemble]",
    "merge.betas=[0.25,0.75]",
    "merge.orders=[partition,reversed]",
]


def test_a_grid_trains_once_and_scores_every_different_merge(
    merged: tuple[dict[str, Any], Path],
) -> None:
    results, folder = merged
    assert len(results["store"]["trained"]) == 4
    rows = results["grid"]["rows"]
    assert results["grid"]["points"] == 3 * 2 * 2 + 3
    assert len(rows) == 4 + 2 + 2 + 3
    assert results["data"]["held_out"] == {"cat": 3, "dog": 3}
    assert results["data"]["train"] == {"cat": 12, "dog": 12}
    for row in rows:
        found = read_predictions(folder / row["predictions"])
        assert np.mean(found.probabilities.argmax(1) == found.labels) == row["accuracy"]
        assert row["validation"]["n"] == 6
    assert [row["model"] for row in read(folder / "sweep.csv")].count("polyak") == 4


def test_a_point_is_the_run_with_that_setting(merged: tuple[dict[str, Any], Path], run: Go) -> None:
    _, folder = merged
    settings = ["strategy.beta=0.75", "strategy.order=reversed", "hold_out=0.2"]
    results, own = run(*GRID, "mode=compare", *settings)
    assert results["store"]["trained"] == []
    for rule, name in (("polyak", "polyak-beta0.75-reversed"), ("fedavg", "fedavg-reversed")):
        one = (own / f"predictions/{rule}.csv").read_bytes()
        assert one == (folder / f"predictions/{name}.csv").read_bytes()


def test_the_same_grid_again_merges_and_tests_nothing(
    merged: tuple[dict[str, Any], Path], run: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedcats.experiment import merges, predictions

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(merges, "merge_points", never)
    monkeypatch.setattr(predictions, "predict", never)
    results, _ = run(*GRID)
    assert results["grid"] == merged[0]["grid"]


def test_soup_and_best_follow_from_the_held_out_predictions(
    merged: tuple[dict[str, Any], Path],
) -> None:
    results, _ = merged
    rows = {row["model"]: row for row in results["grid"]["rows"]}
    own = {
        int(name.split("/")[1]): model["validation"]
        for name, model in results["models"].items()
        if name.startswith("submodel/")
    }
    best = max(own, key=lambda client: (own[client]["accuracy"], -own[client]["loss"]))
    assert rows["best"]["clients"] == [best]
    assert rows["best"]["accuracy"] == results["models"][f"submodel/{best}"]["accuracy"]
    soup = rows["soup"]
    assert soup["clients"][0] == best
    ranks = [(m["accuracy"], -m["loss"]) for m in (soup["validation"], own[best])]
    assert ranks[0] >= ranks[1]


def test_auto_takes_the_best_beta_on_held_out_images_whatever_the_test_says(
    run: Go, photos: Path, tmp_path: Path
) -> None:
    off = ["data=folder", "runner=local", "partition.num_shards=2", "strategy.beta=auto"]
    betas = "merge.betas=[0.1,0.4,0.8]"
    one, first = run(*off, betas, f"data.root={photos}", folder="one")
    model = one["models"]["polyak"]
    table = model["beta_chosen_from"]
    assert table[f"{model['beta']:g}"] == max(table.values()) == model["validation"]["accuracy"]
    again, second = run(*off[:3], f"data.root={photos}", "hold_out=0.2",
                        f"strategy.beta={model['beta']}", folder="two")  # fmt: skip
    polyak = "models/polyak.safetensors"
    assert (first / polyak).read_bytes() == (second / polyak).read_bytes()
    assert again["store"]["trained"] == []

    other = tmp_path / "other"  # the same training photos, and test photos that are all black
    other.mkdir()
    shutil.copytree(photos / "train", other / "train")
    for name in ("ant", "bee", "cow"):
        (other / "test" / name).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(other / "test" / name / "0.png")
    black, _ = run(*off, betas, f"data.root={other}", folder="three")
    assert black["models"]["polyak"]["beta_chosen_from"] == table
    assert black["models"]["polyak"]["beta"] == model["beta"]


def test_held_out_images_are_trained_on_by_nobody(run: Go) -> None:
    results, folder = run("runner=local", "hold_out=0.25", "partition.num_shards=2")
    files = {row["file"] for row in read(folder / "shards.csv")}
    assert results["data"]["held_out"] == {"cat": 2, "dog": 2}
    assert len(files) == 12
    assert results["models"]["centralized"]["training"]["examples"] == 12
    state = safetensors.torch.load_file(folder / "models/polyak.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
