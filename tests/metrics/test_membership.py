"""Membership inference: scores, curves and intervals against what is known of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn

from fedcats.metrics import membership
from fedcats.metrics.membership import (
    Measured,
    Trial,
    auc_difference,
    auc_interval,
    by_lira,
    by_rmia,
    leave_out,
    log_odds,
    resamples,
    shrunken,
    tpr_interval,
)

seeds = st.integers(0, 2**31)


def trial(score, member, photo=None):
    photo = np.arange(len(score)) if photo is None else np.asarray(photo)
    return Trial(np.asarray(score, float), np.asarray(member, bool), photo)


def drawn(photos: int, seed: int = 0, rows: int = 301):
    return resamples([photos], np.random.default_rng(seed))[:rows]


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([2, 3, 100]), st.sampled_from([1.0, 10.0, 25.0]))
def test_log_odds_lose_nothing_in_float32_probabilities(seed, k, size):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=size, size=(20, k)).clip(-40, 40)
    labels = generator.integers(k, size=20)
    probabilities = torch.softmax(torch.from_numpy(logits.astype(np.float32)), 1).numpy()
    logits = logits.astype(np.float32).astype(np.float64)
    others = np.where(np.eye(k, dtype=bool)[labels], -np.inf, logits)
    exact = logits[np.arange(20), labels] - np.logaddexp.reduce(others, axis=1)
    assert log_odds(labels, probabilities) == pytest.approx(exact, abs=2e-5)
    certain = log_odds([0, 1], [[1.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(certain).all() and certain[0] == -certain[1] > 87


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 40), st.integers(1, 6))
def test_the_area_is_sklearns_and_swapped_it_is_the_rest(seed, n, levels):
    generator = np.random.default_rng(seed)
    score = generator.integers(levels, size=n)  # with ties
    member = generator.random(n) < 0.5
    member[:2] = True, False
    weights = drawn(n, seed, 5)
    found = Measured(trial(score, member), weights)
    assert found.auc[0] == pytest.approx(roc_auc_score(member, score))
    for row, auc in zip(weights[1:], found.auc[1:], strict=True):
        if row[member].any() and row[~member].any():
            assert auc == pytest.approx(roc_auc_score(member, score, sample_weight=row))
        else:
            assert np.isnan(auc)
    swapped = Measured(trial(score, ~member), weights)
    assert swapped.auc[0] == pytest.approx(1 - found.auc[0])
    value, low, high = auc_interval(found)
    assert 0 <= low <= value <= high <= 1 and low < high
    assert auc_difference(found, found)[0] == 0


def test_the_rate_is_resolved_only_where_the_non_members_are_many():
    member = np.arange(3013) < 2000
    score = np.random.default_rng(0).normal(size=3013) + 2 * member
    found = Measured(trial(score, member), drawn(3013))
    assert found.tpr[0.001] is None and tpr_interval(found, 0.001) is None
    value, low, high = tpr_interval(found, 0.01)
    assert low < stats.norm.sf(stats.norm.isf(0.01) - 2) < high
    assert np.mean(score[member] > np.sort(score[~member])[-11]) == pytest.approx(value)
    assert found.roc()[-1] == [1.0, 1.0]


def test_intervals_know_which_scores_are_of_the_same_photo():
    generator = np.random.default_rng(1)
    score, member = generator.normal(size=60), np.arange(60) < 30
    once = Measured(trial(score, member), drawn(60))
    tenfold = Measured(trial(*(np.tile(x, 10) for x in (score, member, range(60)))), drawn(60))
    assert auc_interval(tenfold) == pytest.approx(auc_interval(once))


def test_perfect_answers_have_an_interval_too():
    found = Measured(trial([3, 4, 1, 2], [1, 1, 0, 0]), drawn(4))
    value, low, high = auc_interval(found)
    assert (value, high) == (1.0, 1.0) and low < 0.6
    assert auc_difference(found, found)[1] < 0 < auc_difference(found, found)[2]


def test_shrunken_variances():
    generator = np.random.default_rng(2)
    same = 4.0 * generator.chisquare(7, size=5000) / 7
    usual, df = shrunken(same, 7)
    assert df > 200 and usual == pytest.approx(np.full(5000, 4.0), rel=0.1)
    differing = same * np.exp(generator.normal(scale=1.5, size=5000))
    drawn_in, df = shrunken(differing, 7)
    assert 7 < df < 12 and drawn_in.var() < differing.var()
    for variances in ([0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0]):
        found, _ = shrunken(np.array(variances), 1)
        assert np.isfinite(found).all() and (found > 0).all()


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 9), st.integers(1, 30))
def test_lira_and_rmia_rise_with_the_log_odds(seed, k, n):
    generator = np.random.default_rng(seed)
    shadows, phi = generator.normal(2, 2, (k, n)), generator.normal(2, 2, n)
    higher = phi + (np.arange(n) == 0)
    assert by_lira(higher, shadows)[0] > by_lira(phi, shadows)[0]
    assert by_rmia(higher, shadows)[0] >= by_rmia(phi, shadows)[0]
    assert ((by_rmia(phi, shadows) > 0) & (by_rmia(phi, shadows) <= 1)).all()


def test_student_t_of_a_non_member_is_uniform():
    generator = np.random.default_rng(3)
    phi = generator.normal(5, 2, (9, 4000)) * generator.uniform(0.5, 2, 4000)
    t = by_lira(phi[0], phi[1:])
    _, df = shrunken(phi[1:].var(axis=0, ddof=1), 7)
    assert stats.kstest(stats.t.sf(t, df), "uniform").pvalue > 0.001


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_as_many_shadow_models_for_each_photo_and_none_that_trained_on_it(seed, models, count):
    generator = np.random.default_rng(seed)
    eligible, lots = generator.random((2, models, 12))
    chosen, usable = leave_out(eligible > 0.4, min(count, models), lots)
    assert len(chosen) == min(count, models)
    for photo in np.flatnonzero(usable):
        own = chosen[:, photo]
        assert len({*own}) == len(own) and (eligible > 0.4)[own, photo].all()


def test_an_overfitted_model_shows_its_photos_and_noise_shows_nothing():
    """20 photos with labels at random, learnt by heart; then the same weights under huge noise."""
    torch.manual_seed(0)
    x, y = torch.randn(220, 300), torch.randint(2, (220,))
    model = nn.Linear(300, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:20]), y[:20]).backward()
        optimizer.step()

    def attacked():
        with torch.no_grad():
            phi = log_odds(y.numpy(), torch.softmax(model(x), 1).numpy())
        return auc_interval(Measured(trial(phi, np.arange(220) < 20), drawn(220)))

    assert attacked()[0] > 0.7
    with torch.no_grad():
        model.weight.add_(torch.randn(2, 300), alpha=100)
    _, low, high = attacked()
    assert low < 0.5 < high


def test_many_pairs_take_fewer_resamples(monkeypatch):
    monkeypatch.setattr(membership, "_WORK", 1000)
    pairs = trial(np.arange(10), np.arange(10) % 2)
    assert len(Measured(pairs, drawn(10, rows=1001)).auc) == 200
    assert len(Measured(replace(pairs, score=-pairs.score), drawn(10, rows=50)).auc) == 50
