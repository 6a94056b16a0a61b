"""What clients give beside their updates: on the wire, in the store, and hostile."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import check_results, run_tiny
from flwr.app import ArrayRecord, Message

from fedcats.experiment.run import run
from fedcats.experiment.server_app import configuration
from fedcats.federated.client_app import app
from fedcats.federated.local import LocalGrid
from fedcats.storage import Store
from fedcats.tensors import State
from fedcats.training import parts, update
from fedcats.training.update import Task

ENCODED = ["dare", "ties", "fp16", "int8"]
BESIDE = ["fisher", "regmean", "ridge", "class_means"]


class Sites(LocalGrid):
    """Two sites in this process; counts what travels from them, by record and in all."""

    def __init__(self, photos: Path) -> None:
        super().__init__(app, 2)
        for node, context in self._contexts.items():
            context.node_config = {  # type: ignore[assignment]
                "partition-id": node - 1, "num-partitions": 2, "data-path": str(photos),
            }  # fmt: skip
        self.sent: Counter[str] = Counter()

    def _call(self, message: Message) -> Message:
        reply = super()._call(message)
        if not reply.has_error():
            for name, record in reply.content.items():
                if isinstance(record, ArrayRecord):
                    # Of each array a header of NumPy's, of 128 bytes.
                    self.sent[name] += sum(len(array.data) - 128 for array in record.values())
        return reply


def federate(photos: Path, folder: Path, *rules: str) -> tuple[Any, Counter[str]]:
    overrides = (
        f"data=folder data.root={photos} model.name=mobilenet_v3_small model.weights=none "
        f"model.trainable=classifier train.epochs=1 strategy.rules=[{','.join(rules)}]"
    )
    grid = Sites(photos)
    run(configuration({"overrides": overrides, "home": ""}, simulated=False), folder, grid)
    return check_results(folder), grid.sent


@pytest.mark.slow
def test_the_bytes_on_the_wire_are_those_of_the_report(photos: Path, tmp_path: Path) -> None:
    results, sent = federate(photos, tmp_path / "all", "fedavg", *ENCODED, *BESIDE)
    needs = {
        "fedavg": ["arrays"], "dare": ["dare:0.9"], "ties": ["ties:0.2"], "fp16": ["fp16"],
        "int8": ["int8"], "fisher": ["arrays", "fisher"], "regmean": ["arrays", "inputs"],
        "ridge": ["sums:pooled:1", "gram:pooled"], "class_means": ["sums:pooled:1"],
    }  # fmt: skip
    for rule, names in needs.items():
        assert results["models"][rule]["bytes"]["up"] == sum(sent[name] for name in names), rule
    assert set(sent) == {name for names in needs.values() for name in names}
    whole = results["models"]["fedavg"]["bytes"]["up"]
    assert results["models"]["int8"]["bytes"]["up"] < 0.26 * whole
    assert "Accuracy against bytes" in (tmp_path / "all" / "report.html").read_text()

    # Where no rule reads them, updates do not travel, and for heads nobody trains at all.
    alone, sent = federate(photos, tmp_path / "int8", "int8", "ridge")
    assert set(alone["models"]) == {"int8", "ridge"}
    assert sent["arrays"] == 0
    for rule in ("int8", "ridge"):
        for score in ("accuracy", "loss"):
            assert alone["models"][rule][score] == results["models"][rule][score]
    heads, sent = federate(photos, tmp_path / "heads", "class_means")
    assert set(heads["models"]) == {"class_means"}
    assert heads["store"]["trained"] == heads["store"]["reused"] == []
    assert sum(sent.values()) == heads["models"]["class_means"]["bytes"]["up"]


RULES = "[fedavg,fisher,regmean,int8,dare,ridge,class_means]"


@pytest.mark.slow
def test_parts_are_worked_out_once_and_a_grid_has_what_runs_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = ["runner=local", "seed=71", "model.name=mobilenet_v3_small", "save_models=none"]
    results, one = run_tiny(tmp_path / "run", *same, f"strategy.rules={RULES}")

    def never(*_: object) -> None:
        raise AssertionError("worked out again")

    monkeypatch.setattr(parts, "_work_out", never)
    monkeypatch.setattr(update, "_train", never)
    grid = ["mode=merge", f"merge.rules={RULES}", "merge.orders=[partition]", "figures=[png]"]
    merged, two = run_tiny(tmp_path / "grid", *same, *grid)
    for row in merged["grid"]["rows"]:
        model = results["models"][row["model"]]
        assert row["bytes"] == model["bytes"]["up"] / 2
        assert row["title"] == model["title"]
        assert row["chosen"].startswith(model.get("chosen", "nothing to choose"))
        name = "fedavg-partition" if row["model"] == "fedavg" else row["model"]
        other = (one / f"predictions/{row['model']}.csv").read_bytes()
        assert (two / f"predictions/{name}.csv").read_bytes() == other
    assert {p.name for p in (two / "figures").glob("*.png")} >= {"frontier.png"}


# --- hostile sites ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Store, State]:
    """A task of a small model, without photos: what a server knows."""
    from builders import plain_recipe

    from fedcats.models.weights import initial_weights
    from fedcats.training.update import put_weights

    folder = tmp_path_factory.mktemp("hostile")
    initial = initial_weights("mobilenet_v3_small", 3, "none", 0, folder)
    start = {k: v for k, v in initial.state.items() if k.startswith("classifier")}
    store = Store(folder / "store")
    base, own = put_weights(store, initial.state), put_weights(store, start)
    same = (1, 0, "mobilenet_v3_small", 3, "classifier", base, own, "", (), plain_recipe(), 1)
    return Task("client 0", 0, *same, "cpu", 0.0), store, start


def spoiled(found: State, what: str) -> State:
    name = next(iter(found))
    if what == "nan":
        name = next(n for n, v in found.items() if v.is_floating_point())
        found[name].view(-1)[0] = torch.nan
    elif what == "negative":
        found[name].view(-1)[0] = -1
    elif what == "count":
        found["sums"][0, 0, -1] += 1
    elif what == "half":
        found["sums"][0, 0, -1] += 0.5
    elif what == "rows":
        found[name][0] = 1e9
    elif what == "seed":
        found["seed"] += 1
    elif what == "places":
        found["kept"][0] ^= 1  # more bits could leave as many places as before
    elif what == "far":
        found["scales"][:] = 1e6
    return found


@pytest.mark.parametrize(
    ("part", "what", "message"),
    [
        ("sums:pooled:1", "nan", "sums has values that are not finite"),
        ("sums:pooled:1", "count", "is of 6 photos, not of 5"),
        ("sums:pooled:1", "half", "numbers of photos that are none"),
        ("gram:pooled", "nan", "factor has values that are not finite"),
        ("fisher", "negative", "has negative values"),
        ("inputs", "rows", "has 1e+09 rows"),
        ("dare:0.9", "seed", "has the seed"),
        ("ties:0.2", "places", "values for other places"),
        ("int8", "nan", "scales has values that are not finite"),
        ("int8", "far", r"from where it started, strategy.max_norm is 100"),
    ],
)
def test_a_part_that_must_not_be_merged_is_refused(
    honest: tuple[Task, Store, State], part: str, what: str, message: str
) -> None:
    task, store, start = honest
    names = parts._parameters(task, store, start)
    like = parts.shapes(task, part, names, start, 5)
    draw = np.random.default_rng(0)
    if parts.kind(part) in ("dare", "ties", "int8"):
        from fedcats.merging import encodings

        moved = {k: v + 0.01 * torch.randn(v.shape) for k, v in start.items()}
        found = encodings.encode(part, moved, start, frozenset(start), parts._seed(task, part))
    else:
        found = {n: torch.from_numpy(draw.random(v.shape)).to(v.dtype) for n, v in like.items()}
    if "sums" in found:
        found["sums"][..., -1] = torch.tensor([2, 2, 1])
    for value in found.values() if part == "inputs" else ():
        value[0] = 5
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in like.items()}
    parts.check(task, part, found, names, start, 5, 100.0)
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        parts.check(task, part, spoiled(found, what), names, start, 5, 100.0)


def test_task_with_parts_travels_as_json(honest: tuple[Task, Store, State]) -> None:
    from dataclasses import replace

    task = replace(honest[0], sends=("update", "sums:flat:3"))
    assert Task.from_json(task.to_json()) == task
    assert parts.trains(task)
    assert not parts.trains(replace(task, sends=("sums:flat:3", "gram:flat")))
    assert json.loads(task.to_json())["sends"] == ["update", "sums:flat:3"]
