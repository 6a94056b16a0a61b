"""The fold and its rules, by hand-computed numbers and by properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcats.merging.fold import (
    Fold,
    check_update,
    effective_number,
    effective_weights,
    has_outgrown,
)
from fedcats.merging.registry import RULES
from fedcats.merging.rules import FedAvg, Polyak, Uniform

NAMES = ("polyak", "fedavg", "uniform")


def fold(name: str, values: list[float], examples: list[int], beta: float = 0.5) -> Fold:
    result = Fold(Polyak(beta) if name == "polyak" else RULES[name]())
    for value, count in zip(values, examples, strict=True):
        result.add({"w": torch.tensor([value])}, count)
    return result


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # ((8 + 4) / 2 + 2) / 2
        ("polyak", 4.0),
        # (8 * 1 + 4 * 2 + 2 * 5) / 8
        ("fedavg", 3.25),
        # (8 + 4 + 2) / 3
        ("uniform", 14 / 3),
    ],
)
def test_three_clients_by_hand(name: str, expected: float) -> None:
    merged = fold(name, [8.0, 4.0, 2.0], [1, 2, 5]).result()
    assert merged["w"].item() == pytest.approx(expected, rel=1e-7)
    assert merged["w"].dtype == torch.float32


def test_beta_multiplies_the_incoming_model_as_in_the_papers_listing() -> None:
    assert fold("polyak", [1.0, 11.0], [1, 1], beta=0.3).result()["w"].item() == pytest.approx(4.0)


def test_effective_weights_of_ten_clients_at_beta_one_half() -> None:
    weights = fold("polyak", [0.0] * 10, [198] * 10).effective_weights
    assert weights[-3:] == [0.125, 0.25, 0.5]
    assert weights[0] == weights[1] == 0.5**9
    assert effective_number(weights) == pytest.approx(3.0, abs=1e-4)


def test_effective_number_of_equal_clients_is_their_number() -> None:
    weights = fold("fedavg", [0.0] * 7, [198] * 7).effective_weights
    assert effective_number(weights) == pytest.approx(7.0)


finite = st.floats(-1e3, 1e3, width=32)
clients = st.lists(st.tuples(finite, st.integers(1, 10**6)), min_size=1, max_size=12)


@given(clients, st.sampled_from(NAMES), st.floats(0, 1))
def test_result_is_the_combination_by_effective_weights(
    drawn: list[tuple[float, int]], name: str, beta: float
) -> None:
    values, examples = [v for v, _ in drawn], [n for _, n in drawn]
    merged = fold(name, values, examples, beta)
    weights = merged.effective_weights
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= 0
    exact = float(np.dot(weights, np.array(values, dtype=np.float32).astype(np.float64)))
    assert merged.result()["w"].item() == pytest.approx(exact, rel=1e-6, abs=1e-4)
    assert min(values) - 1e-3 <= merged.result()["w"].item() <= max(values) + 1e-3


@given(clients)
def test_fedavg_weights_are_the_shares_of_the_examples(drawn: list[tuple[float, int]]) -> None:
    examples = [n for _, n in drawn]
    weights = fold("fedavg", [v for v, _ in drawn], examples).effective_weights
    assert weights == pytest.approx([n / sum(examples) for n in examples])


@given(finite, st.integers(1, 9), st.sampled_from(NAMES), st.floats(0, 1))
def test_merging_equal_models_changes_nothing(
    value: float, count: int, name: str, beta: float
) -> None:
    merged = fold(name, [value] * count, list(range(1, count + 1)), beta).result()
    assert merged["w"].item() == pytest.approx(np.float32(value), rel=1e-7, abs=1e-37)


def test_error_of_the_fold_is_half_a_unit_in_the_last_place() -> None:
    draw = np.random.default_rng(0)
    models = draw.normal(size=(40, 10_000)).astype(np.float32)
    merged = Fold(FedAvg())
    for model in models:
        merged.add({"w": torch.from_numpy(model)}, 3)
    exact = models.astype(np.longdouble).mean(axis=0)
    error = np.abs(merged.result()["w"].numpy().astype(np.longdouble) - exact)
    assert (error <= 0.5001 * np.spacing(np.abs(exact).astype(np.float32))).all()


def test_the_update_is_not_changed_and_not_kept() -> None:
    first = {"w": torch.tensor([1.0], dtype=torch.float64)}
    merged = Fold(Uniform())
    merged.add(first, 1)
    merged.add({"w": torch.tensor([3.0], dtype=torch.float64)}, 1)
    assert first["w"].item() == 1.0
    assert merged.result()["w"].item() == 2.0


def test_integer_counters_are_rounded() -> None:
    merged = Fold(Polyak(beta=0.5))
    for count in (10, 13):
        merged.add({"num_batches_tracked": torch.tensor(count)}, 1)
    result = merged.result()["num_batches_tracked"]
    assert result.dtype == torch.int64
    assert result.item() == 12  # 11.5, to even


def test_empty_and_weightless_input_raises() -> None:
    merged = Fold(FedAvg())
    with pytest.raises(ValueError, match="nothing to merge"):
        merged.result()
    with pytest.raises(ValueError, match="0 examples cannot be merged"):
        merged.add({"w": torch.zeros(1)}, 0)
    merged.add({"w": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="w has another shape"):
        merged.add({"w": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match="keys differ"):
        merged.add({"v": torch.zeros(2)}, 1)
    assert effective_weights([]) == []


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({}, "missing ['w']"),
        ({"w": torch.zeros(2, 3), "x": torch.zeros(1)}, "unknown ['x']"),
        ({"w": torch.zeros(1)}, "w has shape (1,), not (2, 3)"),
        ({"w": torch.zeros(2, 3, dtype=torch.float64)}, "w has dtype torch.float64"),
        ({"w": torch.full((2, 3), torch.nan)}, "w has values that are not finite"),
        ({"w": torch.tensor([[1.0, 2, 3], [4, 5, torch.inf]])}, "not finite"),
    ],
)
def test_updates_that_must_not_be_merged(update: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_update(update, like={"w": torch.zeros(2, 3)})
    assert message in str(caught.value)
    check_update({"w": torch.ones(2, 3)}, like={"w": torch.zeros(2, 3)})


def test_an_update_too_far_from_its_start() -> None:
    like = {"w": torch.ones(2, 3), "b": torch.zeros(1)}
    update = {"w": torch.full((2, 3), 3.0), "b": torch.ones(1)}  # sqrt(6 * 4 + 1) = 5
    check_update(update, like, max_norm=5.0)
    with pytest.raises(
        ValueError, match=r"its update is 5 from where it started, .*max_norm is 4.99"
    ):
        check_update(update, like, max_norm=4.99)


def test_a_fold_that_starts_from_the_global_model_by_hand() -> None:
    fold = Fold(Polyak(beta=0.5, start="global"), {"w": torch.tensor([8.0])})
    for value in (4.0, 2.0):
        fold.add({"w": torch.tensor([value])}, 1)
    assert fold.result()["w"].item() == 0.25 * 8 + 0.25 * 4 + 0.5 * 2
    assert fold.effective_weights == [0.25, 0.5]
    one = Fold(Polyak(beta=1.0, start="global"), {"w": torch.tensor([8.0])})
    one.add({"w": torch.tensor([4.0])}, 1)
    assert one.result()["w"].item() == 4.0
    with pytest.raises(ValueError, match="needs a model to start from"):
        Fold(Polyak(beta=0.5, start="global")).add({"w": torch.zeros(1)}, 1)


@pytest.mark.parametrize(
    ("value", "start", "outgrown"),
    [
        ([10.0, -10.0], [0.0, 0.01], False),
        ([10.1, 0.0], [0.0, 0.01], True),
        ([0.0, -10.1], [1.0, 0.0], True),
        ([1e4, 0.0], [-2e3, 0.0], False),
        ([3e38, 0.0], [-2e3, 0.0], True),
        ([], [], False),
    ],
)
def test_an_update_that_has_outgrown_its_start(
    value: list[float], start: list[float], outgrown: bool
) -> None:
    counter = {"n": torch.tensor(10**9)}  # batch-norm's may grow
    update, like = {"w": torch.tensor(value)}, {"w": torch.tensor(start)}
    assert has_outgrown(update | counter, like | {"n": torch.tensor(0)}) is outgrown
