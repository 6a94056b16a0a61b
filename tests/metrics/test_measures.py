"""Measures and influence values against scikit-learn and its weights; thresholds by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fedcats.metrics import compare, scores
from fedcats.metrics.measures import MEASURES
from fedcats.metrics.replication import replicate
from fedcats.metrics.thresholds import (
    THRESHOLDLESS,
    best_threshold,
    compare_at_thresholds,
    compare_thresholdless,
    thresholdless,
)


def models(n: int, k: int, seed: int, count: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels, and probabilities with ties of as many models, on photos easy or hard for all."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % k
    easy = generator.normal(1.5, 1.5, size=n)
    found = []
    for _ in range(count):
        logits = generator.normal(size=(n, k)) + easy[:, None] * np.eye(k)[labels]
        p = np.exp(logits.round(1))
        found.append((p / p.sum(axis=1, keepdims=True)).astype(np.float32))
    return labels, found


def of_sklearn(y: np.ndarray, p: np.ndarray) -> dict[str, Callable[[np.ndarray], float]]:
    k = p.shape[1]
    exact = p.astype(np.float64) / p.astype(np.float64).sum(axis=1, keepdims=True)
    guess, average = p.argmax(axis=1), "binary" if k == 2 else "macro"
    classes = [1] if k == 2 else range(k)

    def ranked(of: Callable[..., float], w: np.ndarray) -> float:
        return float(np.mean([of(y == c, p[:, c], sample_weight=w) for c in classes]))

    def of_guess(of: Callable[..., float], w: np.ndarray) -> float:
        return of(y, guess, average=average, sample_weight=w, zero_division=0)

    return {
        "accuracy": lambda w: sk.accuracy_score(y, guess, sample_weight=w),
        "precision": lambda w: of_guess(sk.precision_score, w),
        "recall": lambda w: of_guess(sk.recall_score, w),
        "f1": lambda w: of_guess(sk.f1_score, w),
        "roc_auc": lambda w: ranked(sk.roc_auc_score, w),
        "average_precision": lambda w: ranked(sk.average_precision_score, w),
        "log_loss": lambda w: sk.log_loss(y, exact, sample_weight=w),
        "brier": lambda w: sk.brier_score_loss(
            y, exact[:, 1] if k == 2 else exact, sample_weight=w
        ),
    }


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", [name for name in MEASURES if name != "ece"])
def test_a_measure_is_scikit_learns_and_its_influence_the_derivative(name, k):
    y, (p,) = models(40, k, seed=5)
    of, ones = of_sklearn(y, p)[name], np.ones(40)
    value, influence = MEASURES[name](y, p, ones)
    assert value == pytest.approx(of(ones), abs=1e-6)
    step = 1e-4 * np.eye(40)
    slopes = [(of(ones + one) - of(ones - one)) / 2e-4 * 40 for one in step]
    np.testing.assert_allclose(influence, slopes, atol=1e-5)
    assert influence.sum() == pytest.approx(0, abs=1e-9)


def test_the_calibration_error_by_hand():
    # one bin with three photos of confidence 0.75, two right; one with 0.95, right
    y = np.array([1, 1, 0, 1])
    p = np.array([[0.25, 0.75], [0.25, 0.75], [0.25, 0.75], [0.05, 0.95]], dtype=np.float32)
    value, influence = MEASURES["ece"](y, p, np.ones(4))
    assert value == pytest.approx((3 * (0.75 - 2 / 3) + 0.05) / 4, abs=1e-6)
    assert influence == pytest.approx(np.array([-0.25, -0.25, 0.75, 0.05]) - value, abs=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_measures_of_answers_are_those_of_scores(k):
    y, (p,) = models(60, k, seed=8)
    found = scores(y, p)
    for name in ("accuracy", "precision", "recall", "f1"):
        assert MEASURES[name](y, p, np.ones(60)).value == pytest.approx(found[name], abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_the_other_class_is_the_one_of_swapped_columns(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2
    p, q = (np.stack([1 - a, a], 1) for a in generator.uniform(size=(2, n)).astype(np.float32))
    other = (1 - y, p[:, ::-1])
    for name, measure in MEASURES.items():
        one, two = measure(y, p, np.ones(n), 0), measure(*other, np.ones(n))
        assert one.value == pytest.approx(two.value)
        assert one.influence == pytest.approx(two.influence)
        mine = replicate(y, {0: {"a": p, "b": q}}, "a", "b", measure=name, positive=0)
        its = replicate(1 - y, {0: {"a": p[:, ::-1], "b": q[:, ::-1]}}, "a", "b", measure=name)
        assert mine.difference == pytest.approx(its.difference)
    kept = ("accuracy", "precision", "recall", "f1", "loss", "macro")
    mine, its = scores(y, p, positive=0), scores(*other)
    assert [mine[key] for key in kept] == [pytest.approx(its[key]) for key in kept]
    compared = compare(y, p, q, seed=0, resamples=1000, positive=0)
    turned = compare(*other, q[:, ::-1], seed=0, resamples=1000)
    for key in kept[:4]:
        assert compared[key]["difference"] == pytest.approx(turned[key]["difference"])
    assert compared["recall"] == pytest.approx(turned["recall"])  # its interval is exact
    best = best_threshold(y, p, positive=0)
    at = compare_at_thresholds(y, p, q, (best, best), positive=0)
    assert at == compare_at_thresholds(*other, q[:, ::-1], (best, best))
    assert at["accuracy"] >= mine["accuracy"]


def test_what_photos_of_one_class_do_not_define_is_none():
    y, p = np.ones(5, dtype=np.int64), np.full((5, 2), 0.5)
    assert thresholdless(y, p)["roc_auc"] is None
    assert thresholdless(y, p)["brier"] == 0.25
    found = compare_thresholdless(y, p, p)
    assert found["roc_auc"] == {"difference": None, "low": None, "high": None}
    assert found["log_loss"] == {"difference": 0.0, "low": None, "high": None}  # the same model


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 3), st.permutations(range(30)))
def test_swapped_models_are_mirrored_and_the_order_of_photos_is_nothing(seed, k, order):
    y, (p, q) = models(30, k, seed, 2)
    found, swapped = compare_thresholdless(y, p, q), compare_thresholdless(y, q, p)
    again = compare_thresholdless(y[order], p[order], q[order])
    for name in THRESHOLDLESS:
        one, other = found[name], swapped[name]
        assert one["low"] <= one["difference"] <= one["high"]
        mirrored = [-other["difference"], -other["high"], -other["low"]]
        expected = [one["difference"], one["low"], one["high"]]
        assert mirrored == pytest.approx(expected, abs=1e-12)
        assert list(again[name].values()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "brier"])
def test_an_interval_is_about_that_of_a_paired_bootstrap(name):
    n = 400
    y, (p, q) = models(n, 2, 3, 2)
    generator, drawn = np.random.default_rng(1), []
    for _ in range(600):
        own = [generator.choice(np.flatnonzero(y == c), n // 2) for c in (0, 1)]
        weights = np.bincount(np.concatenate(own), minlength=n).astype(float)
        drawn.append(MEASURES[name](y, p, weights).value - MEASURES[name](y, q, weights).value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = compare_thresholdless(y, p, q)[name]
    assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.15)


def test_two_perfect_models_are_not_known_to_rank_alike():
    y = np.arange(40) % 2
    p = np.eye(2)[y] * 0.8 + 0.1
    found = compare_thresholdless(y, p, p)["roc_auc"]
    assert found["difference"] == 0
    assert found["low"] < -0.01 and found["high"] > 0.01


def test_the_best_threshold_by_hand():
    y = np.array([0, 0, 1, 0, 1, 1])
    p1 = np.array([0.1, 0.2, 0.25, 0.3, 0.35, 0.9])
    p = np.stack([1 - p1, p1], axis=1)
    # above 0.225 or above 0.325 five are right, at 0.5 four; 0.325 is nearer to 0.5
    assert best_threshold(y, p) == pytest.approx(0.325)
    found = compare_at_thresholds(y, p, p, (0.325, 0.5))
    assert (found["accuracy"], found["reference_accuracy"]) == (5 / 6, 4 / 6)
    assert found["difference"] == pytest.approx(1 / 6)
    assert found["low"] <= 1 / 6 <= found["high"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=12))
def test_no_threshold_is_better_than_the_best(photos):
    y, eighths = (np.array(one, dtype=np.int64) for one in zip(*photos, strict=True))
    p = np.stack([1 - eighths / 8, eighths / 8], axis=1)
    every = [compare_at_thresholds(y, p, p, (t, t))["accuracy"] for t in np.arange(-1, 19) / 16]
    chosen = best_threshold(y, p)
    assert compare_at_thresholds(y, p, p, (chosen, chosen))["accuracy"] == max(every)
    if compare_at_thresholds(y, p, p, (0.5, 0.5))["accuracy"] == max(every):
        assert chosen == 0.5


def test_a_threshold_is_for_two_classes():
    y, (p,) = models(9, 3, seed=1)
    with pytest.raises(ValueError, match="two classes, not 3"):
        best_threshold(y, p)
