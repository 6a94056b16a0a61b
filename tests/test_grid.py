"""Grids of merges from stored sub-models, soup, ensemble: against the fold and by hand."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcats.errors import RunError
from fedcats.merging import many
from fedcats.merging.fold import Fold
from fedcats.merging.many import Point, distinct_points, ensemble, greedy_soup, merge_points
from fedcats.merging.rules import FedAvg, Polyak, Uniform
from fedcats.storage import Store

EXAMPLES = {0: 3, 1: 5, 2: 8, 3: 2}
ORDERS = [("partition", [0, 1, 2, 3]), ("reversed", [3, 2, 1, 0]), ("same", [0, 1, 2, 3])]


def submodels() -> list[dict[str, torch.Tensor]]:
    """Four models with a matrix, a vector and a step counter."""
    draw = torch.Generator().manual_seed(4)
    return [
        {
            "matrix": torch.randn(40, 7, generator=draw),
            "vector": torch.randn(5, generator=draw) * 1e-6,
            "steps": torch.tensor(10 + 3 * i),
        }
        for i in range(4)
    ]


def test_every_point_has_the_bytes_of_a_fold_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "_CHUNK", 64)  # several chunks, the last one not full
    store, own = Store(tmp_path), submodels()
    for i, model in enumerate(own):
        store.put(f"key{i}", model, {})
    rules = [*Polyak("auto").choices([0.0, 0.3, 1.0]), FedAvg(), Uniform()]
    points = distinct_points(rules, ORDERS)
    assert len(points) == 3 * 2 + 2 + 2  # beta for polyak alone; an order that repeats is dropped
    keys = {i: f"key{i}" for i in range(4)}
    with ThreadPoolExecutor(3) as pool:
        merged = merge_points(store, keys, EXAMPLES, points, pool)
    for point, state in zip(points, merged, strict=True):
        fold = Fold(point.rule)
        for client in point.clients:
            fold.add(own[client], EXAMPLES[client])
        assert point.steps(EXAMPLES) == fold.steps
        assert state.keys() == fold.result().keys()
        for name, value in fold.result().items():
            assert state[name].dtype == value.dtype
            assert torch.equal(state[name], value), (point, name)


def test_a_submodel_that_is_gone_is_named(tmp_path: Path) -> None:
    point = Point(Uniform(), "partition", (0,))
    with ThreadPoolExecutor(1) as pool, pytest.raises(RunError, match="a sub-model is gone"):
        merge_points(Store(tmp_path), {0: "no"}, {0: 1}, [point], pool)


def test_greedy_soup_takes_what_does_not_hurt() -> None:
    value = {0: 0.7, 1: 0.9, 2: 0.8, 3: 0.6}

    def score(chosen: Sequence[int]) -> tuple[float, float]:
        return (0.95 if set(chosen) == {1, 0} else value[chosen[-1]] - 0.1 * len(chosen), 0.0)

    assert greedy_soup([1, 2, 0, 3], score) == [1, 0]  # 2 lowers it, 0 raises it, 3 lowers it
    assert greedy_soup([2], score) == [2]


def test_ensemble_is_the_softmax_of_the_mean_logits() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(3, 20, 4, generator=draw, dtype=torch.float64)
    given = [torch.softmax(one, 1).to(torch.float32).numpy() for one in logits]
    expected = torch.softmax(logits.mean(0), 1).numpy()
    found = ensemble(given)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6
    certain = np.array([[1.0, 0.0]], dtype=np.float32)  # a model that is quite sure
    assert np.isfinite(ensemble([certain, 1 - certain])).all()
