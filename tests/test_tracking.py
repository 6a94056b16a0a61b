"""``tracking=..``: what a tracker's own reader finds equals results.json; off costs nothing."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcats.errors import RunError, UserError
from fedcats.experiment.tracking import PACKAGES, MLflow, TensorBoard


@pytest.mark.slow
def test_tensorboard_has_what_the_results_have(run: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = (
        "runner=local",
        "tracking=tensorboard",
        "seed=31",
        "store.enabled=false",
        "figures=[png]",
    )
    for _ in range(2):  # the second one leaves nothing of the first
        results, folder = run(*given)
    assert len([*(folder / "tensorboard").iterdir()]) == 1
    found = EventAccumulator(str(folder / "tensorboard"), {"images": 0})
    found.Reload()
    for name, model in results["models"].items():
        for key in ("accuracy", "precision", "recall", "f1", "loss"):
            (one,) = found.Scalars(f"test_{key}/{name}")
            assert one.value == pytest.approx(model[key])
    with (folder / "history.csv").open() as file:
        history = [row for row in csv.DictReader(file) if row["model"] == "centralized"]
    curve = found.Scalars("loss/centralized")
    assert [one.step for one in curve][-1] == len(history)
    assert curve[-1].value == pytest.approx(float(history[-1]["loss"]))
    assert "scores" in found.Tags()["images"]


@pytest.mark.slow
def test_mlflow_has_what_the_results_have_and_a_sweep_is_one_run_with_children(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for job in ("multirun/0/.hydra", "multirun/1/.hydra"):
        Path(job).mkdir(parents=True)
        Path(job, "hydra.yaml").write_text("hydra:\n  mode: MULTIRUN\n")
    MLflow(tmp_path / "outputs/alone", tmp_path).close(failed=True)
    given = ("tracking=mlflow", "seed=32", "train.epochs=1", "mode=federated", "figures=[png]")
    results, _ = run("runner=local", *given, folder="multirun/0")
    MLflow(tmp_path / "multirun/1", tmp_path).close(failed=False)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'fedcats'")
    runs = client.search_runs([experiment.experiment_id])
    names = {one.info.run_name.rpartition("/")[2]: one for one in runs}
    assert {name: one.info.status for name, one in names.items()} == {
        "alone": "FAILED", "multirun": "FINISHED", "0": "FINISHED", "1": "FINISHED",
    }  # fmt: skip
    parent = names["multirun"].info.run_id
    above = {name: one.data.tags.get("mlflow.parentRunId") for name, one in names.items()}
    assert above == {"alone": None, "multirun": None, "0": parent, "1": parent}
    found = names["0"].data
    for name, model in results["models"].items():
        for key in ("accuracy", "precision", "recall", "f1", "loss"):
            assert found.metrics[f"test_{key}/{name}"] == model[key]
    assert (found.params["partition.num_shards"], found.params["mode"]) == ("2", "federated")
    assert found.tags["mlflow.note.content"].endswith(".")
    curve = client.get_metric_history(names["0"].info.run_id, "loss/client_0")
    (epoch,) = results["models"]["submodel/0"]["training"]["epochs"]
    assert [(one.step, one.value) for one in curve] == [(1, epoch["loss"])]
    figures = client.list_artifacts(names["0"].info.run_id, "figures")
    assert "figures/scores.png" in [one.path for one in figures]


@pytest.mark.slow
def test_wandb_has_what_the_results_have_and_sends_nothing(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results, _ = run("runner=local", "tracking=wandb", "seed=33", "figures=[png]")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    losses = []
    for record in wandb_records(file):
        summary |= wandb_items(record.summary.update)
        config |= wandb_items(record.config.update)
        losses += [
            v for k, v in wandb_items(record.history.item).items() if k == "loss/centralized"
        ]
    for name, model in results["models"].items():
        for key in ("accuracy", "precision", "recall", "f1", "loss"):
            assert summary[f"test_{key}/{name}"] == model[key]
    assert losses == [one["loss"] for one in results["models"]["centralized"]["training"]["epochs"]]
    assert config["partition"]["num_shards"] == 2
    assert list(file.parent.glob("files/media/images/scores*.png"))


def wandb_items(items: Any) -> dict[str, Any]:
    names = ("/".join(filter(None, [one.key, *one.nested_key])) for one in items)
    return {name: json.loads(one.value_json) for name, one in zip(names, items, strict=True)}


def wandb_records(path: Path) -> Iterator[Any]:
    """What is in its file: LevelDB's log format, behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    kind_of: Any = vars(wandb_internal_pb2)["Record"]  # made when it is imported

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = kind_of()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_a_run_goes_on_without_a_tracker_that_fails(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(self: TensorBoard, tag: str, value: float, step: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoard, "_scalar", full)
    run("runner=local", "tracking=tensorboard", "mode=federated", "train.epochs=1", "seed=32")
    told = [line for line in capsys.readouterr().err.splitlines() if "tracking" in line]
    assert told == ["fedcats: tracking=tensorboard: no space left; the run goes on without it"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(RunError, match=r"^tracking=mlflow: .*nonsense"):
        run("runner=local", "tracking=mlflow")


def test_what_is_not_installed_is_said_before_anything_starts(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, packages in PACKAGES.items():
        with pytest.raises(UserError, match=f"tracking={name}: the package {packages[0]} is not"):
            run("runner=local", f"tracking={name}")


@pytest.mark.slow
def test_without_it_nothing_of_it_is_imported() -> None:
    names = "{'tensorboard', 'mlflow', 'wandb'}"
    code = f"import sys, fedcats.experiment.run; print({names} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
