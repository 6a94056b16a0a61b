"""Robust rules against numpy, scipy and brute force; Krum where float32 goes wrong."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcats.merging import robust
from fedcats.merging.rules import Krum, Median, Merge, Round, Rule, TrimmedMean

State = dict[str, torch.Tensor]


def write(folder: Path, states: list[State]) -> list[Path]:
    paths = [folder / f"{i}.safetensors" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        safetensors.torch.save_file(state, path)
    return paths


def merge(rule: Rule, files: list[Path]) -> Merge:
    now = Round({})
    accumulator = now.begin(rule)
    for file in files:
        now.add({}, 1, file)
    return accumulator.finish()


def states(n: int, seed: int = 0, scale: float = 1.0, around: float = 0.0) -> list[State]:
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "w": around + scale * torch.randn(7, 5, 3, generator=draw),
            "b": around + scale * torch.randn(7, generator=draw),
            "number": torch.randn((), generator=draw),
            "counter": torch.randint(0, 100, (), generator=draw),
        }
        for _ in range(n)
    ]


def stacked(own: list[State], name: str) -> np.ndarray:
    return np.stack([state[name].numpy().astype(np.float64) for state in own])


@pytest.fixture(params=[2**22, 40, 1])
def elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tensors, some rows, one row at a time."""
    monkeypatch.setattr(robust, "_ELEMENTS", request.param)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_median_is_numpys(tmp_path: Path, elements: None, n: int) -> None:
    own = states(n)
    merged, steps, key, _ = merge(Median(), write(tmp_path, own))
    assert (steps, key) == ((), "median")
    for name in ("w", "b", "number"):
        expected = np.median(stacked(own, name), axis=0).astype(np.float32)
        assert np.array_equal(merged[name].numpy(), expected)
        assert merged[name].shape == own[0][name].shape
    assert merged["counter"] == round(float(np.median(stacked(own, "counter"))))
    assert merged["counter"].dtype == torch.int64


@pytest.mark.parametrize("n", [1, 4, 5, 10])
@pytest.mark.parametrize("trim", [0.0, 0.2, 0.49])
def test_trimmed_mean_is_scipys(tmp_path: Path, elements: None, n: int, trim: float) -> None:
    own = states(n)
    merged, steps, key, _ = merge(TrimmedMean(trim), write(tmp_path, own))
    assert (steps, key) == ((), f"trimmed mean {trim:g}")
    for name in ("w", "b", "number"):
        expected = scipy.stats.trim_mean(stacked(own, name), trim, axis=0)
        assert np.allclose(merged[name].numpy(), expected, rtol=1e-6, atol=1e-7)


def brute_force(own: list[State], malicious: int) -> int:
    flat = [np.concatenate([s[k].numpy().ravel().astype(np.float64) for k in s]) for s in own]
    scores = []
    for i, one in enumerate(flat):
        distances = sorted(((one - x) ** 2).sum() for j, x in enumerate(flat) if j != i)
        scores.append(sum(distances[: len(own) - malicious - 2]))
    return int(np.argmin(scores))


@given(n=st.integers(3, 10), malicious=st.integers(0, 3), seed=st.integers(0, 10**6))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_krum_is_what_it_says(tmp_path: Path, n: int, malicious: int, seed: int) -> None:
    own = states(n, seed)
    paths = write(tmp_path, own)
    if n < 2 * malicious + 3:
        with pytest.raises(ValueError, match=f"needs at least {2 * malicious + 3} clients"):
            merge(Krum(malicious), paths)
        return
    chosen = brute_force(own, malicious)
    merged, steps, *_ = merge(Krum(malicious), paths)
    assert all(torch.equal(merged[name], own[chosen][name]) for name in merged)
    assert steps == [1.0, *(float(i == chosen) for i in range(1, n))]


def test_krum_sees_small_updates_of_a_large_model(tmp_path: Path) -> None:
    """Weights near 10, updates of 1e-4: the square of their sums hides them in float32."""
    own = [{"w": s["w"].repeat(100, 1, 1)} for s in states(7, 3, scale=1e-4, around=10.0)]
    own[4]["w"] = own[4]["w"] + 1e-3  # the bad one
    chosen = robust.nearest(write(tmp_path, own), 1)
    assert chosen == brute_force(own, 1) != 4
    x = torch.stack([state["w"].flatten() for state in own])
    by_dot_products = (x**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * x @ x.T
    exact = torch.cdist(x.double(), x.double()) ** 2
    assert (by_dot_products.double() - exact).abs().max() > exact.max()  # nothing but noise


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(0.2), Krum(1)])
def test_one_hostile_client_of_seven_moves_no_robust_rule_far(tmp_path: Path, rule: Rule) -> None:
    own = states(7, 5)
    merged = merge(rule, write(tmp_path, own)).state
    own[2] = {name: value * 10**6 for name, value in own[2].items()}
    attacked = merge(rule, write(tmp_path, own)).state
    for name in ("w", "b"):
        assert (attacked[name] - merged[name]).abs().max() < 6
        assert attacked[name].abs().max() < 4


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(Median(), [])
