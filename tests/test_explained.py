"""``mode=explain``: by hand, by brute force, as properties, and one whole run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import check_results
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import fake_run

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import RunError, UserError
from fedcats.experiment.geometry import directions
from fedcats.experiment.own_photos import on_own_photos
from fedcats.merging.fold import Fold, effective_number, effective_weights
from fedcats.merging.mixture import Mixture
from fedcats.merging.rules import FedAvg, Polyak
from fedcats.metrics import explained as metrics
from fedcats.models import build
from fedcats.report import drawing, explain_figures, write_report
from fedcats.report import explained as words
from fedcats.storage import Store

# --- orders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["first", "global"])
@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_polyak_over_all_orders_is_the_plain_mean_of_n_eff_clients_drawn_at_random(
    n: int, start: str
) -> None:
    """docs/explain.md: E[w] and Var[w] of a weight, over every permutation."""
    draw = np.random.default_rng(n)
    own, before = draw.normal(size=n), draw.normal()
    for beta in (0.1, 0.18, 0.5, 0.9):
        rule = Polyak(beta=beta, start=start)
        shares = np.array(effective_weights([rule.step(i, 1, i) for i in range(1, n + 1)]))
        rest = 1 - shares.sum()
        merged = [rest * before + shares @ own[list(p)] for p in itertools.permutations(range(n))]
        kept = (1 - beta) ** n if start == "global" else 0.0
        assert rest == pytest.approx(kept)
        assert np.mean(merged) == pytest.approx(kept * before + (1 - kept) * own.mean())
        among = own.var(ddof=1)
        if start == "first":
            expected = among * (1 / effective_number(shares) - 1 / n)
        else:
            expected = among * ((shares**2).sum() - shares.sum() ** 2 / n)
        assert np.var(merged) == pytest.approx(expected, abs=1e-12)


def test_n_eff_of_ten_clients_as_the_documents_say() -> None:
    found = {}
    for beta in (0.1, 0.18, 0.5, 0.9):
        steps = [Polyak(beta=beta).step(i, 1, i) for i in range(1, 11)]
        found[beta] = round(effective_number(effective_weights(steps)), 2)
    assert found == {0.1: 5.13, 0.18: 8.05, 0.5: 3.0, 0.9: 1.22}


def test_orders_are_all_or_different_ones_from_the_seed() -> None:
    assert metrics.draw_orders([3, 5], 200, 0) == [(3, 5), (5, 3)]
    assert metrics.draw_orders([0, 1, 2], 0, 0) == []
    many = metrics.draw_orders(range(100), 30, 1)
    assert len({*many}) == 30
    assert many == metrics.draw_orders(range(100), 30, 1) != metrics.draw_orders(range(100), 30, 2)
    assert all(sorted(one) == [*range(100)] for one in many)
    assert len({*metrics.draw_orders(range(4), 23, 0)}) == 23


def test_the_variance_goes_with_who_makes_it() -> None:
    orders = metrics.draw_orders(range(5), 200, 0)
    assert len(orders) == 120
    by_last = [float(one[-1] ** 2) for one in orders]
    assert metrics.explained_by_last(orders, by_last, 1) == pytest.approx(1)
    by_two = [one[-1] + 3.0 * one[-2] for one in orders]
    assert metrics.explained_by_last(orders, by_two, 1) < 0.9
    assert metrics.explained_by_last(orders, by_two, 2) == pytest.approx(1)
    assert metrics.explained_by_last(orders, [0.5] * 120, 3) is None
    some = metrics.draw_orders(range(10), 200, 0)
    noise = np.random.default_rng(0).normal(size=200)
    assert metrics.explained_by_last(some, noise, 3) < 0.15  # it is adjusted: 27 effects of 200
    assert metrics.explained_by_last(some[:20], noise[:20], 3) is None


# --- mixtures ---------------------------------------------------------------------------------


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    """Six models with a weight in 3 chunks, a counter and nothing."""
    store, draw = Store(tmp_path / "store"), torch.Generator().manual_seed(0)
    for i in range(6):
        state = {
            "a.weight": torch.randn(3, 50_000, generator=draw),
            "b.count": torch.tensor(10 * i),
            "c.weight": torch.zeros(0),
        }
        store.put(f"u{i}", state, {})
    return store


def read(store: Store, key: str) -> dict[str, torch.Tensor]:
    entry = store.get(key)
    assert entry is not None
    return entry.tensors


def test_a_mixture_is_the_fold_to_rounding(store: Store) -> None:
    keys = [f"u{i}" for i in (3, 1, 0, 4)]
    for rule in (Polyak(beta=0.3), Polyak(beta=0.3, start="global"), FedAvg()):
        fold = Fold(rule, read(store, "u5"))
        for size, key in enumerate(keys, 2):
            fold.add(read(store, key), size)
        mixed = Mixture.of_fold(keys, fold.steps, "u5").state(store)
        for name, value in fold.result().items():
            assert mixed[name].dtype == value.dtype
            assert mixed[name].shape == value.shape
            assert torch.allclose(mixed[name].double(), value.double(), rtol=1e-6, atol=1e-7)


def test_equal_shares_are_one_mixture_and_a_line_ends_where_it_should(store: Store) -> None:
    steps = [1.0, 0.5, 0.5]
    one = Mixture.of_fold(["u0", "u1", "u2"], steps, "u5")
    assert one == Mixture.of_fold(["u1", "u0", "u2"], steps, "u5")  # the first two count alike
    assert one != Mixture.of_fold(["u0", "u2", "u1"], steps, "u5")
    assert Mixture.mean(["u0", "u1"]) == Mixture.of([("u1", 0.25), ("u0", 0.5), ("u1", 0.25)])
    other = Mixture.of([("u3", 1.0)])
    assert one.towards(other, 0.0) == one
    assert one.towards(other, 1.0) == other
    assert one.towards(one, 0.3) == one
    middle = other.towards(Mixture.of([("u4", 1.0)]), 0.5).state(store)
    assert middle["b.count"] == 35
    with pytest.raises(RunError, match="gone"):
        Mixture.of([("u3", 0.5), ("nowhere", 0.5)]).state(store)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_pooling_first_changes_no_bit(name: str) -> None:
    torch.manual_seed(0)
    model = build.build(name, 3).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(x)
        build.pool_first(model)
        kinds = [type(one).__name__ for one in model.modules()]
        assert ("MaxPool2d", "ReLU") in itertools.pairwise(kinds)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18"])
@pytest.mark.parametrize("images", [1, 15, 33])
def test_in_pieces_a_model_says_the_same(name: str, images: int) -> None:
    torch.manual_seed(0)
    model = build.build(name, 3).eval()
    x = torch.randn(images, 3, 64, 64)
    with torch.inference_mode():
        before = model(x)
        build.in_pieces(model)
        torch.testing.assert_close(model(x), before)


def test_directions_by_hand(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for key, a, b in (("w", [3.0, 4.0], [0.0]), ("x", [3, 5], [2.0]), ("y", [4, 4], [-1.0])):
        state = {"l.a": torch.tensor(a, dtype=torch.float32), "m.b": torch.tensor(b)}
        store.put(key, state | {"m.n": torch.tensor(7)}, {})
    layers, cosines = directions(store, ["x", "y"], "w", ["l.a", "m.b", "m.n"])
    first, second = layers
    assert first == {
        "layer": "l", "weights": 2, "length": [1, 1], "relative": 0.2, "cosine": 0
    }  # fmt: skip
    assert (second["length"], second["relative"], second["cosine"]) == ([2, 1], None, -1)
    assert cosines[0][1] == pytest.approx(-2 / math.sqrt(5 * 2))
    (alone, _), same = directions(store, ["w"], "w", ["l.a", "m.b"])
    assert (alone["cosine"], same) == (None, [[0]])


# --- barriers, Shapley values -----------------------------------------------------------------


def test_barriers_by_hand() -> None:
    assert metrics.excess([1, 3, 2], [0, 0.5, 1]) == pytest.approx(1.5)
    assert metrics.excess([1, 1, 2], [0, 0.5, 1]) == 0  # below the line
    assert metrics.excess([1, 3], [0, 1]) == 0


numbers = st.floats(-1e3, 1e3)


@given(numbers, st.integers(3, 40), st.lists(numbers, min_size=3, max_size=3))
def test_a_barrier_is_0_on_a_line_and_for_equal_ends(level: float, n: int, three: Any) -> None:
    points = np.linspace(0, 1, n)
    assert metrics.excess([level] * n, points) == 0
    assert metrics.excess(three[0] + points * level, points) <= 1e-9
    assert metrics.excess(three, [0, 0.5, 1]) >= 0


def test_shapley_values_by_hand() -> None:
    """A pair of gloves: 0 has a left one, 1 and 2 have right ones."""

    def gloves(one: frozenset[int]) -> float:
        return float(0 in one and len(one) > 1)

    found = metrics.shapley([0, 1, 2], gloves)
    assert found.values == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert (found.errors, found.pairs) == ([0, 0, 0], 0)
    assert metrics.shapley([7], lambda one: 5.0 if one else 2.0).values == [3]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 2**31), st.integers(1, 40))
def test_shapley_values_add_up_and_all_orders_give_the_exact_ones(
    n: int, seed: int, most: int
) -> None:
    draw, players = np.random.default_rng(seed), list(range(10, 10 + n))
    worth = {one: float(draw.normal()) for one in metrics.coalitions(players, [])}
    worth[frozenset()] = float(draw.normal())
    total = worth[frozenset(players)] - worth[frozenset()]
    exact = metrics.shapley(players, worth)
    assert sum(exact.values) == pytest.approx(total)
    orders = metrics.draw_pairs(players, most, seed)
    assert (not orders) == (2**n - 1 <= most)
    assert {*metrics.coalitions(players, orders)} <= worth.keys()
    assert sum(metrics.shapley(players, worth, orders).values) == pytest.approx(total)
    every = [*itertools.permutations(players)]
    if n > 1:
        assert metrics.shapley(players, worth, every).values == pytest.approx(exact.values)


def test_so_many_coalitions_are_drawn_as_are_wanted() -> None:
    for n, most in ((10, 256), (100, 256), (100, 1000)):
        orders = metrics.draw_pairs(range(n), most, 0)
        count = len(metrics.coalitions(range(n), orders))
        assert len(orders) % 2 == 0
        assert count <= most or len(orders) == 4
        assert orders[1] == orders[0][::-1]


# --- a whole run ------------------------------------------------------------------------------

SMALL = ["runner=local", "train.epochs=1", "mode=explain", "figures=[png]"]
FEW = ["explain.points=3", "explain.orders=4", "explain.coalitions=5", "explain.clients=2"]


@pytest.mark.slow
def test_a_run_explains_itself_and_a_second_one_from_the_store(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own: list[Any] = []

    def kept(predictor: Any, candidates: Any) -> Any:
        own.append((predictor, on_own_photos(predictor, candidates)))
        return own[-1][1]

    monkeypatch.setattr("fedcats.experiment.explain.on_own_photos", kept)
    asked = [
        *SMALL, *FEW, "partition.num_shards=3", "hold_out=0.3", "explain.betas=[0.5,1]",
        "strategy.rules=[ridge,polyak,median]", "explain.precision=bfloat16",
    ]  # fmt: skip
    results, folder = run(*asked)
    found = check_results(folder)["explained"]
    assert found["precision"] == "bfloat16"
    assert len(found["clients"]) == 2
    assert [(one["first"], one["second"]) for one in found["lines"]][-1] == (
        "polyak", "centralized"
    )  # fmt: skip
    assert len(found["lines"]) == 6
    assert [len(one["accuracies"]) for one in found["orders"]] == [4, 4]
    assert all(one["worst"] <= one["mean"] <= one["best"] for one in found["orders"])
    assert list(found["without"]) == ["polyak"]
    game = found["shapley"]
    assert game is not None
    assert sum(game["values"]) == pytest.approx(game["everybody"] - game["nobody"])
    predictor, answers = own[0]
    assert [len(one) for one in answers[0]] == [len(s) for s in predictor.inputs.shards]
    by_model = {one["model"]: one for one in found["own"]}
    assert by_model.keys() == results["models"].keys() == found["thresholds"].keys()
    for name, one in by_model.items():
        assert one["held_out"] == results["models"][name]["by_client"]
        sizes = [shard["per_class"].values() for shard in results["data"]["shards"]]
        for whole, classes, counts in zip(
            one["trained"], one["trained_by_class"], sizes, strict=True
        ):
            hits = sum((share or 0) * n for share, n in zip(classes, counts, strict=True))
            assert whole == pytest.approx(hits / sum(counts))
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"orders", "barriers", "lines", "updates", "clients", "without", "curves"} <= drawn

    def fail(*_: Any) -> None:
        raise AssertionError("mixed again")

    monkeypatch.setattr(Mixture, "state", fail)
    again, _ = run(*asked, folder="again")
    assert again["explained"] | {"seconds": 0} == found | {"seconds": 0}
    assert again["store"]["trained"] == []


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("explain.points=2", "0, or a number from 3 to 1001"),
        ("explain.orders=-1", "from 0"),
        ("explain.clients=0", "from 1"),
        ("explain.betas=[]", "different numbers from 0 to 1"),
        ("explain.betas=[0.5,0.5]", "different numbers from 0 to 1"),
        ("explain.precision=int8", "auto | float32 | bfloat16"),
        ("rounds=2", "mode=explain merges once; allowed is 1"),
        ("seeds=3", "allowed is mode=compare"),
    ],
)
def test_what_cannot_be_explained_is_refused(override: str, allowed: str) -> None:
    with pytest.raises(UserError) as refused:
        load(compose_config(["mode=explain", override]))
    assert allowed in str(refused.value)
    with pytest.raises(UserError, match=r"strategy\.beta=auto decides nothing"):
        load(compose_config(["mode=explain", "strategy.beta=auto", "strategy.rules=[fedavg]"]))


# --- the report -------------------------------------------------------------------------------


def fake_explained(results: dict[str, Any], *, exact: bool = False) -> dict[str, Any]:
    """What `explain` might say of a made-up run."""
    draw = np.random.default_rng(5)
    models, classes = list(results["models"]), results["data"]["classes"]
    clients = [int(n.split("/")[1]) for n in models if n.startswith("submodel/")]
    rules = [n for n in models if n in ("polyak", "fedavg")]
    some, n = clients[:10], len(clients)
    names = [*(f"submodel/{c}" for c in some), *rules[:1], "centralized"]
    points = np.linspace(0, 1, 11)

    def line(first: str, second: str) -> dict[str, Any]:
        loss = 0.2 + draw.normal() * 0.02 + 0.1 * points * (1 - points) * draw.normal()
        barrier = metrics.excess(loss, points)
        return {
            "first": first, "second": second, "loss": loss.tolist(), "barrier": barrier,
            "accuracy": (1 - loss / 3).tolist(), "drop": barrier / 3,
        }  # fmt: skip

    def shares() -> list[float | None]:
        return [None if draw.random() < 0.1 else float(draw.uniform(0.8, 1)) for _ in clients]

    def ends(scale: float) -> dict[str, Any]:
        value = float(draw.normal() * scale)
        return {"difference": value, "low": value - scale, "high": value + scale}

    orders = metrics.draw_orders(clients, 200, 0)
    values = (0.94 + 0.01 * draw.normal(size=len(orders))).tolist()
    last = dict.fromkeys(("last", "last_two", "last_three"), 0.4)
    measures = dict.fromkeys(("roc_auc", "average_precision", "log_loss", "brier", "ece"), 0.9)
    cosines = np.clip(0.3 + 0.1 * draw.normal(size=(len(some), len(some))), -1, 1)
    added = [float(draw.normal() * 0.01) for _ in clients]
    return {
        "precision": "bfloat16",
        "disagreement": 0.001,
        "clients": some,
        "orders": [
            {
                "beta": beta, "n_eff": 3.0, "every": len(orders) < 200, "accuracies": values,
                "last": [one[-1] for one in orders], "mean": float(np.mean(values)),
                "sd": float(np.std(values)), "worst": min(values), "best": max(values),
                "reported": values[0], "below": 0.5, "plain_mean": 0.95, "explained": last,
            }
            for beta in (0.1, 0.5)
        ],
        "points": points.tolist(),
        "lines": [line(a, b) for a, b in itertools.combinations(names, 2)],
        "layers": [
            {
                "layer": f"features.{i}", "weights": 1000 + i, "length": [1.0] * len(some),
                "relative": float(draw.uniform(0, 0.1)),
                "cosine": float(draw.uniform(0, 1)) if n > 1 else None,
            }
            for i in range(60 if n > 20 else 8)
        ],
        "cosines": ((cosines + cosines.T) / 2).tolist(),
        "own": [
            {
                "model": name, "trained": shares(), "held_out": shares(),
                "trained_by_class": [[0.9] * len(classes)] * n,
                "held_out_by_class": [[None] * len(classes)] * n,
            }
            for name in models
        ],
        "without": {rule: [{"client": c, **ends(0.01)} for c in clients] for rule in rules},
        "shapley": {
            "clients": clients, "values": added, "low": [v - 0.01 for v in added],
            "high": [v + 0.01 for v in added], "nobody": 0.5, "everybody": 0.5 + sum(added),
            "coalitions": 255, "exact": exact,
        },
        "thresholds": {
            name: {
                "measures": measures,
                "against": {} if name == "centralized" else {m: ends(0.01) for m in measures},
                "at_own": None if n > 20 else {"threshold": 0.4, "accuracy": 0.9, **ends(0.01)},
            }
            for name in models
        },
        "seconds": {"tests": 1.0},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "k"), [(1, 2), (30, 20)])
def test_the_page_shows_and_says_it(tmp_path: Path, clients: int, k: int) -> None:
    classes = ("cat", "dog") if k == 2 else tuple(f"class {i}" for i in range(k))
    results: Any = fake_run(tmp_path, clients=clients, classes=classes, per_class=4, epochs=1)
    results["explained"] = fake_explained(results)
    drawn = drawing.write(tmp_path / "figures", explain_figures.all_figures(results, tmp_path))
    expected = {"orders", "barriers", "lines", "updates", "clients", "without", "curves"}
    assert {one.name for one in drawn} == expected | {"reliability"}
    said = words.sections(results)
    assert {name for one in said for name in one.figures} >= expected - {"updates"}
    for one in said:
        assert "nan" not in one.text
        assert one.text.endswith(".")
    if clients == 1:
        write_report(tmp_path, results)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert all(f"<h3>{one.title}</h3>" in page for one in said)


def test_the_sentences_follow_from_the_numbers(tmp_path: Path) -> None:
    results: Any = fake_run(tmp_path, clients=3, per_class=20, epochs=1)
    found: Any = fake_explained(results, exact=True)
    results["explained"] = found
    found["orders"] = found["orders"][:1]
    found["orders"][0] |= {
        "accuracies": [0.9, 0.8] * 3, "every": True, "worst": 0.8, "best": 0.9, "mean": 0.85,
        "sd": 0.0548, "reported": 0.9, "below": 0.75,
        "explained": {"last": 1.0, "last_two": None, "last_three": None},
    }  # fmt: skip
    assert words.order(results, found) == (
        "Polyak β = 0.1 over all 6 orders of the clients has 80.0% to 90.0% accuracy, mean 85.0%, "
        "SD 5.48 points; the plain mean, which the merges are on average, has 95.0%. The run's own "
        "order, 90.0%, is better than 75% of them (equal ones count half). Who is merged last goes "
        "with 100% of the variance."
    )
    found["orders"][0] |= {"worst": 0.9, "mean": 0.9}
    assert "always has 90.0% accuracy" in words.order(results, found)
    (line, *_) = found["lines"]
    found["lines"] = [line | {"loss": [1, 0.5, 1.5], "barrier": 0.25, "drop": 0.1}]
    assert words.between(results, found) == (
        "Between two sub-models the barrier is 0.250 nats, and on the way the loss is lower than "
        "at both ends."
    )
    found["lines"] = [line | {"barrier": 0.0}] * 2
    assert words.between(results, found) == (
        "Between two sub-models the 2 lines have no barrier; on 2 the loss is somewhere lower than "
        "at both ends."
    )
    for low, word in ((-0.01, "not shown"), (0.001, "ranks the photos better"), (None, "")):
        area = {"difference": 0.005, "low": low, "high": 0.01}
        found["thresholds"]["polyak"]["against"]["roc_auc"] = area
        text = words.thresholds(results, found).split("FedAvg")[0]
        assert word in text if word else "rank" not in text
    same = {"difference": 0.0, "low": -0.1, "high": 0.1}
    found["without"] = {"polyak": [{"client": c, **same} for c in range(3)]}
    found["shapley"] |= {"values": [0.3, 0.1, 0.0], "nobody": 0.5, "everybody": 0.9}
    assert words.helps(results, found) == (
        "In Polyak β = 0.5 every client adds as much as every other, 0.0 points. "
        "Of the +40.0 points that the plain mean of all has over the start, by Shapley values "
        "(exact) client 0 is worth most, +30.0 and client 2 is worth least, 0.0."
    )
