"""``privacy=measure``: what is attacked, what is written, and what is refused."""

import csv
import re

import numpy as np
import pytest

from fedcats.errors import UserError
from fedcats.experiment.privacy import _attack, _judge
from fedcats.metrics.membership import resamples
from fedcats.report import privacy


def judged(clients: int, photos: int = 40, gap: float = 3.0):
    """Of clients with the same number of photos; what each trained on is ``gap`` surer."""
    generator = np.random.default_rng(clients)
    n = clients * photos + 1100
    members = {f"submodel/{c}": (np.arange(n) // photos) == c for c in range(clients)}
    members |= {name: np.arange(n) < clients * photos for name in ("centralized", "polyak")}
    usual = generator.normal(2, 2, n)
    size = {"centralized": gap / 2, "polyak": gap / 4}
    phi = {
        name: usual + generator.normal(size=n) + size.get(name, gap) * mine
        for name, mine in members.items()
    }
    attacked = _attack(phi, members, generator.random((clients, n)))
    return attacked, _judge(attacked, resamples([clients * photos, 1100], generator)[:201])


def test_all_models_are_attacked_and_merging_hides_something():
    attacked, found = judged(5)
    assert {name: one.shadows for name, one in attacked.items()} == {
        **{f"submodel/{c}": 3 for c in range(5)},
        "centralized": 4,
        "polyak": 4,
    }
    everyone = found["clients"]
    assert (everyone["members"], everyone["nonmembers"]) == (200, 5 * 1260)
    assert everyone["left_out"] == 0
    of = {name: one["attacks"]["lira"]["auc"]["value"] for name, one in found["models"].items()}
    assert of["submodel/0"] > of["centralized"] > of["polyak"] > 0.5
    assert found["hidden"]["polyak"]["lira"]["low"] > 0
    assert everyone["attacks"]["lira"]["auc"]["value"] > everyone["attacks"]["loss"]["auc"]["value"]
    rates = found["models"]["polyak"]["attacks"]["loss"]["tpr"]
    assert rates["0.01"] is not None and rates["0.001"] is None


@pytest.mark.parametrize("clients", [1, 2, 3, 20])
def test_any_number_of_clients(clients):
    attacked, found = judged(clients, photos=1)
    few = clients < 4
    assert {*attacked["submodel/0"].scores} == ({"loss"} if few else {"loss", "lira", "rmia"})
    assert ("polyak" in found["hidden"]) == (clients > 1)


def test_a_photo_of_several_clients_has_too_few_shadow_models_elsewhere():
    generator = np.random.default_rng(0)
    members = {f"submodel/{c}": np.arange(30) // 3 == c for c in range(5)}
    for name in ("submodel/0", "submodel/1"):
        members[name][0] = True
    phi = {name: generator.normal(size=30) for name in members}
    attacked = _attack(phi, members, generator.random((5, 30)))
    assert [int((~one.usable).sum()) for one in attacked.values()] == [0, 0, 1, 1, 1]


@pytest.mark.slow
def test_in_results_report_and_folder(run):
    overrides = ["partition.num_shards=4", "train.epochs=1", "runner=local", "privacy=measure"]
    overrides += ["reference=[full,same_steps]", "strategy.rules=[polyak]"]
    results, folder = run(*overrides, "privacy.exposed=3", "figures=[png]")
    found = results["privacy"]
    assert {*found["models"]} == {*results["models"]} - {"same_steps"}
    assert {*found["hidden"]} == {"polyak"}
    assert {*found["clients"]["attacks"]} == {"loss", "lira", "rmia"}
    assert (found["clients"]["members"], found["clients"]["nonmembers"]) == (16, 3 * 16 + 4 * 12)
    assert found["models"]["centralized"]["members"] == 16
    page = (folder / "report.html").read_text()
    assert "What the weights give away" in page and "exposed" not in re.sub("(?s)<pre.*", "", page)
    assert "what Polyak β = 0.5 hides" in page and "not resolvable" in page
    with (folder / "exposed.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "shards.csv").open() as file:
        owner = {row["file"]: row["client"] for row in csv.DictReader(file)}
    assert len(rows) == 3 and all(owner[row["file"]] == row["client"] for row in rows)
    assert (folder / "exposed.png").is_file() and (folder / "figures/membership.png").is_file()
    again, folder = run(*overrides, "strategy.rules=[polyak]", folder="again")
    assert again["privacy"] == found and not again["store"]["trained"]
    assert not (folder / "exposed.png").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mode=merge"], "privacy=measure: not in mode=merge"),
        (["privacy.exposed=-1"], "privacy.exposed=-1: allowed is a number from 0 to 1000"),
    ],
)
def test_refused(run, overrides, words):
    with pytest.raises(UserError, match=re.escape(words)):
        run("privacy=measure", *overrides)


def test_words_follow_from_the_numbers():
    _, found = judged(5)
    results = {
        "privacy": found,
        "models": {n: {} for n in found["models"]},
        "data": {"source": "folder"},
    }
    said = privacy.sentences(results)
    assert said[0].startswith(
        "All clients' updates: the strongest attack (LiRA / FedMIA) is better"
    )
    assert "hides part of that" in said[-1]
    for one in found["hidden"]["polyak"].values():
        one |= {"value": -0.1, "low": -0.2, "high": -0.01}
    for one in found["clients"]["attacks"].values():
        one["auc"] |= {"value": 0.4, "low": 0.3, "high": 0.45}
    said = privacy.sentences(results)
    assert "worse than guessing" in said[0] and "adds to it" in said[-1]
    assert privacy.sentences({"data": {}}) == []
