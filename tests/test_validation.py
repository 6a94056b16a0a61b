"""``validate=true``: scores on held-out photos after each epoch, the same weights as without."""

import csv
import html
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from builders import make_task
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import nn

from fedcats import tensors
from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.data import Images, open_dataset, prepare, synthetic_source
from fedcats.errors import UserError
from fedcats.federated.received import _epoch
from fedcats.models import build
from fedcats.report import loss_figure, tables, validation
from fedcats.results import Results
from fedcats.storage import CHECKPOINT, Store
from fedcats.training.frozen import FrozenPart
from fedcats.training.loop import predict
from fedcats.training.recipe import Epoch
from fedcats.training.update import Task, compute, read
from fedcats.training.validation import validator


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(synthetic_source(6, 1, 7), tmp_path_factory.mktemp("data"), size=40).path


def digest(update: Any) -> str:
    return tensors.digest(update.tensors)


class Stop(Exception):
    pass


# Dropout; batch norm; a frozen part that ends before a dropout and a convolution.
@pytest.mark.parametrize(
    ("model", "trainable"),
    [("squeezenet1_1", "all"), ("mobilenet_v3_small", "all"), ("squeezenet1_1", "classifier")],
)
def test_the_weights_are_those_without_and_what_was_stopped_keeps_its_epochs(
    tmp_path: Path, drawings: Path, model: str, trainable: str
) -> None:
    store = Store(tmp_path / "store")
    off = make_task(store, drawings, model, trainable=trainable)
    on = Task.from_json(replace(off, held=(8, 9, 10, 11)).to_json())
    without = compute(off, store)
    events: list[dict[str, Any]] = []

    def stop(event: dict[str, Any]) -> None:
        events.append(event)
        if event["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        compute(on, store, stop)
    update = compute(on, store, events.append)
    assert (update.resumed, digest(update)) == (2, digest(without))
    assert [e.loss for e in update.epochs] == [e.loss for e in without.epochs]
    assert all(epoch.validation is None for epoch in without.epochs)
    assert events[1]["validation"] == update.epochs[0].validation
    assert events[-1]["validation"] == update.epochs[-1].validation
    found = read(store, update.key, on)
    assert found is not None
    assert found.epochs == update.epochs
    assert update.key != without.key
    entry = store.get(without.key)
    assert entry is not None
    assert {*entry.meta["epochs"][0]} == {"loss", "examples", "steps", "seconds"}
    assert CHECKPOINT + update.key not in store
    # the last one is what the trained model says of these photos
    images = open_dataset(drawings).train.subset(on.held)
    whole = build.empty(model, 2, make_state(store, on) | update.tensors)
    (said,) = predict([whole.to(memory_format=torch.channels_last)], images)
    last = update.epochs[-1].validation
    assert last is not None
    assert last["n"] == 4
    assert last["accuracy"] == np.mean(said.argmax(axis=1) == images.labels)
    assert last["loss"] == pytest.approx(
        log_loss(images.labels, said.astype(float), labels=[0, 1]), rel=1e-5
    )


def make_state(store: Store, task: Task) -> dict[str, torch.Tensor]:
    entry = store.get(f"weights-{task.base}")
    assert entry is not None
    return entry.tensors


def test_a_frozen_part_is_run_once_for_the_same_numbers(drawings: Path) -> None:
    images = open_dataset(drawings).train
    runs = []
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 2, 5, 4), nn.Flatten())
    base.register_forward_hook(lambda *_: runs.append(1))
    model = nn.Sequential(base, nn.Sequential(nn.Dropout(), nn.Linear(162, 2)))
    frozen = validator(model, images, FrozenPart(model, "1"))
    assert frozen is not None
    before, once = torch.get_rng_state(), len(runs)
    first = frozen()
    assert len(runs) == once
    whole = validator(model, images)
    assert whole is not None
    assert first == whole()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        cast(nn.Linear, model.get_submodule("1.1")).weight.mul_(math.inf)
    assert frozen() is None
    assert validator(model, cast(Images, images.subset([]))) is None


def test_results_table_history_and_trackers_have_every_epoch(run: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results, folder = run(
        *("runner=local", "hold_out=0.25", "validate=true", "seed=41", "rounds=2"),
        *("strategy.rules=[fedavg]", "tracking=tensorboard", "store.enabled=false"),
        "figures=[svg]",
    )
    one = results["models"]["centralized"]
    assert one["training"]["epochs"][-1]["validation"] == pytest.approx(one["validation"])
    for client in range(2):
        model = results["models"][f"submodel/{client}"]
        tested = [epoch["validation"] for epoch in model["training"]["epochs"]]
        assert [one["n"] for one in tested] == [2, 2]
        assert tested[-1]["accuracy"] == model["by_client"][client]
    with (folder / "history.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert all(row["validation_loss"] and row["validation_accuracy"] for row in rows)
    last = [float(row["validation_loss"]) for row in rows if row["model"].startswith("fedavg/")]
    later = results["rounds"][1]["fedavg"]["training"]["validation"]
    assert later["loss"] == pytest.approx(np.mean(last[1::2]))
    table = tables.cost(results)
    assert table is not None
    assert table.header[5:7] == ("held out", "lowest after")
    assert table.rows[0][5] == f"{one['validation']['loss']:.4f}"
    page = html.unescape((folder / "report.html").read_text())
    for sentence in validation.sentences(results):
        assert sentence in page
    assert "dashed: on held-out drawings" in page
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    for key in ("loss", "accuracy"):
        curve = [point.value for point in found.Scalars(f"validation_{key}/centralized")]
        epochs = one["training"]["epochs"]
        assert curve[-1] == pytest.approx(epochs[-1]["validation"][key])


@pytest.mark.parametrize("mode", ["compare", "centralized", "merge"])
def test_without_held_out_photos_it_is_refused(mode: str) -> None:
    given = ["validate=true", f"mode={mode}", "hold_out=0"]
    given += ["merge.rules=[fedavg]"] * (mode == "merge")
    with pytest.raises(UserError, match=r"^validate=true: no photos .* hold_out=0\.2"):
        load(compose_config(given))
    assert load(compose_config([*given, "hold_out=0.1"])).validate


@pytest.mark.parametrize(
    "values",
    [
        {"accuracy": 0.5, "loss": 0.1},
        {"accuracy": 1.5, "loss": 0.1, "n": 3},
        {"accuracy": 0.5, "loss": math.nan, "n": 3},
        {"accuracy": 0.5, "loss": 0.1, "n": 4},
        {"accuracy": True, "loss": 0.1, "n": 3},
        {"accuracy": 0.5, "loss": 0.1, "n": 3, "more": 0},
        [],
    ],
)
def test_a_client_cannot_say_what_was_not_asked(values: object) -> None:
    honest = {"loss": 0.5, "examples": 8, "steps": 2, "seconds": 0.1}
    good = {"accuracy": 0.5, "loss": 0.1, "n": 3}
    assert _epoch(honest, 8, 3) == Epoch(0.5, 8, 2, 0.1)
    assert _epoch({**honest, "validation": good}, 8, 3).validation == good
    with pytest.raises(ValueError, match="its "):
        _epoch({**honest, "validation": good}, 8, 0)
    with pytest.raises(ValueError, match="its "):
        _epoch({**honest, "validation": values}, 8, 3)


losses = st.floats(0, 100, allow_nan=False)
curves = st.lists(st.tuples(losses, st.none() | losses), min_size=1, max_size=4)


@given(base=st.none() | curves, own=st.lists(curves, max_size=4))
def test_what_is_said_is_true_of_any_losses(base: Any, own: list[Any]) -> None:
    def model(curve: Any) -> dict[str, Any]:
        epochs = [
            {"loss": loss, "seconds": 1.0}
            | ({} if held is None else {"validation": {"accuracy": 0.5, "loss": held, "n": 3}})
            for loss, held in curve
        ]
        return {"training": {"examples": 8, "steps": 4, "epochs": epochs}}

    models = {f"submodel/{i}": model(curve) for i, curve in enumerate(own)}
    if base is not None:
        models["centralized"] = model(base)
    results = cast(Results, {"seed": 0, "models": models, "data": {"source": "folder"}})
    said = validation.sentences(results)
    table = tables.cost(results)
    drawn = loss_figure.history(Path("nowhere"), results, "validation_loss")
    assert bool(said) == bool(drawn) == (table is not None and "held out" in table.header)
    assert all(text.endswith(".") and "nan" not in text for text in said)
    if base is None or all(held is None for _, held in base):
        return
    tested = [held for _, held in base if held is not None]
    text, last = said[0], base[-1][1]
    if len(base) > 1:
        assert ("after the last of" in text) == (last == min(tested))
    best = validation.lowest(models["centralized"]["training"]["epochs"])
    assert best is not None
    assert base[best - 1][1] == min(tested)
    if "overfit" in text:
        assert last is not None
        assert last > min(tested)
        assert base[-1][0] < base[best - 1][0]
