"""Simulated attacks, through the real clients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import RunError, UserError
from fedcats.merging.fold import has_outgrown
from fedcats.training.attack import Attack

Run = Callable[..., tuple[dict[str, Any], Path]]
FOUR = ["partition.num_shards=4", "mode=federated", "runner=local", "train.epochs=1"]


def models_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.stem: load_file(path) for path in (folder / "models").iterdir()}


def test_what_is_sent_by_hand() -> None:
    start = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    update = {"w": torch.tensor([2.0, 1.0]), "n": torch.tensor(7)}
    sent = Attack("scale", 10.0).update(start, update)
    assert sent["w"].tolist() == [11.0, -8.0]
    assert sent["n"] == 7
    assert Attack("sign_flip", 0.5).update(start, update)["w"].tolist() == [0.5, 2.5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale", "sign_flip"])
def test_only_what_hostile_clients_send_is_another_and_nobody_trains_again(
    run: Run, name: str
) -> None:
    run(*FOUR, folder="honest")
    results, folder = run(*FOUR, f"attack={name}", "attack.clients=[1]", "attack.factor=3")
    honest, hostile = models_of(folder.parent / "honest"), models_of(folder)
    assert results["attack"] == {"name": name, "clients": [1], "factor": 3.0}
    assert results["store"]["trained"] == []
    for client in (0, 2, 3):
        other = honest[f"submodel-{client}"]
        assert all(torch.equal(v, other[k]) for k, v in hostile[f"submodel-{client}"].items())
    honest_one = honest["submodel-1"]
    assert any(not torch.equal(v, honest_one[k]) for k, v in hostile["submodel-1"].items())
    assert any(not torch.equal(hostile["polyak"][k], v) for k, v in honest["polyak"].items())


@pytest.mark.slow
def test_flipped_labels_are_trained_on_by_the_hostile_clients_only(run: Run) -> None:
    run(*FOUR, folder="honest")
    results, folder = run(*FOUR, "attack=label_flip", "attack.clients=2")
    assert len(results["attack"]["clients"]) == 2
    assert len(results["store"]["trained"]) == 2
    again, _ = run(*FOUR, "attack=label_flip", "attack.clients=2", folder="again")
    assert again["attack"] == results["attack"]
    assert again["store"]["trained"] == []
    first = json.loads((folder / "results.json").read_text())
    assert first["models"]["polyak"] == again["models"]["polyak"]


def test_the_median_outvotes_one_client_that_scales_its_update(run: Run) -> None:
    """It stays within what the honest clients sent; the mean does not."""
    rules = "strategy.rules=[fedavg,median]"
    _, folder = run(*FOUR, rules, "attack=scale", "attack.clients=[2]", "attack.factor=1000")
    models = models_of(folder)
    honest = torch.stack(
        [models[f"submodel-{c}"]["classifier.1.weight"].flatten() for c in (0, 1, 3)]
    )
    low, high = honest.min(0).values, honest.max(0).values

    def outside(name: str) -> float:
        merged = models[name]["classifier.1.weight"].flatten()
        return float(((merged < low - 1e-7) | (merged > high + 1e-7)).float().mean())

    assert outside("median") == 0
    assert outside("fedavg") > 0.5


HUGE = ["attack=scale", "attack.clients=[2]", "strategy.trim=0.25", "strategy.malicious=0"]
ROBUST = "strategy.rules=[median,trimmed_mean,krum]"


@pytest.mark.parametrize("factor", ["1e10", "1e30"])
def test_robust_rules_go_on_beside_a_huge_update(run: Run, factor: str) -> None:
    results, folder = run(*FOUR, *HUGE, f"attack.factor={factor}", ROBUST)
    assert "failures" not in results
    for name in ("median", "trimmed_mean", "krum"):
        assert results["models"][name]["clients"] == [0, 1, 2, 3]
    assert results["not_scored"] == {"submodel/2": "the model's outputs are not finite"}
    assert "submodel/2" not in results["models"]
    assert "though its update was merged: submodel/2" in (folder / "report.html").read_text()


@pytest.mark.parametrize("factor", ["1e10", "1e30"])
def test_a_linear_rule_stops_at_a_huge_update_or_leaves_it_out(
    run: Run, factor: str, tmp_path: Path
) -> None:
    huge = [*FOUR, *HUGE, f"attack.factor={factor}", "strategy.rules=[fedavg,median]"]
    why = "its weights are far too large: the model's outputs are not finite"
    with pytest.raises(RunError, match=f"client 2 failed in round 1: {why}"):
        run(*huge)
    assert not (tmp_path / "run/progress.jsonl").exists()
    results, _ = run(*huge, "strategy.on_failure=survivors", folder="survivors")
    assert results["failures"] == {"round 1, client 2": why}
    assert results["models"]["fedavg"]["clients"] == [0, 1, 3]


def test_a_robust_rule_that_does_not_cut_the_huge_update_away_names_its_client(run: Run) -> None:
    cut_none = ["strategy.trim=0", "strategy.rules=[median,trimmed_mean]", "attack.factor=1e30"]
    with pytest.raises(RunError, match=r"round 1: trimmed_mean's merge: .*; client 2's update is"):
        run(*FOUR, *HUGE, *cut_none)


@pytest.mark.slow
def test_a_grid_of_merges_names_the_client_of_a_huge_update(run: Run) -> None:
    run(*FOUR, *HUGE, ROBUST, "attack.factor=1e30", folder="trained")
    grid = ["mode=merge", "strategy.rules=[median]", "attack.factor=1e30"]
    with pytest.raises(RunError, match="client 2 cannot be merged: the model's outputs are not"):
        run(*FOUR[:1], *FOUR[2:], *HUGE, *grid)


def test_honest_large_updates_are_no_failure(run: Run) -> None:
    """Of a fresh layer at a learning rate that no one would take: tried on photos, and merged."""
    large = ["train.lr=50", "train.batch_size=8", "model.trainable=classifier"]
    results, folder = run(*FOUR, *large)
    assert "failures" not in results
    sent = models_of(folder)["submodel-0"]["classifier.1.weight"]
    assert has_outgrown({"w": sent}, {"w": torch.zeros_like(sent)})


def test_reports_say_who_attacks(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = run(*FOUR, "attack=sign_flip", "attack.clients=[0,3]")
    said = "simulates an attack (sign_flip, factor 1) by client(s) 0, 3"
    assert said in (folder / "report.html").read_text()
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("attack=scale attack.clients=11", "attack.clients=11: allowed is a number of clients"),
        ("attack=scale attack.clients=0", "attack.clients=0: allowed is a number of clients"),
        ("attack=scale attack.clients=[0,10]", "attack.clients=.0, 10.: allowed is"),
        ("attack=scale attack.factor=0", "attack.factor=0.0: allowed is a number above 0"),
        ("attack=scale mode=centralized", "attack=scale: not in mode=centralized"),
    ],
)
def test_what_cannot_be_is_refused(overrides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(compose_config(overrides.split()))
