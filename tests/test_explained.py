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

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import RunError, UserError
from fedcats.experiment.geometry import directions
from fedcats.experiment.own_photos import on_own_photos
from fedcats.merging.fold import Fold, effective_number, effective_weights
from fedcats.merging.mixture import Mixture, stored_models
from fedcats.merging.rules import FedAvg, Polyak
from fedcats.metrics import explained as metrics
from fedcats.models import build
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
        mixture = Mixture.of_fold(keys, fold.steps, "u5")
        with stored_models(store) as stored:
            mixed, small = mixture.state(stored), mixture.state(stored, torch.bfloat16)
        for name, value in fold.result().items():
            assert mixed[name].dtype == value.dtype
            floating = value.is_floating_point()
            assert torch.equal(small[name], mixed[name].bfloat16() if floating else mixed[name])
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
    with stored_models(store) as stored:
        middle = other.towards(Mixture.of([("u4", 1.0)]), 0.5).state(stored)
        assert middle["b.count"] == 35
        with pytest.raises(RunError, match="gone"):
            Mixture.of([("u3", 0.5), ("nowhere", 0.5)]).state(stored)


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
        assert not build.takes_pieces(model)
        build.in_pieces(model)
        assert build.takes_pieces(model) == (name != "resnet18")
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
