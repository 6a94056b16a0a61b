"""Differences over seeds and photos: by hand, against statsmodels, under every symmetry."""

import dataclasses
from random import Random

import numpy as np
import pandas as pd
import pytest
from builders import replication
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import t
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from fedcats.errors import UserError
from fedcats.metrics import compare
from fedcats.metrics.measures import LOSSES, MEASURES
from fedcats.metrics.replication import Effects, Replication, crossed, differences, replicate
from fedcats.metrics.verdict import holm, judge

NOTHING_UNSEEN = np.zeros((1, 4))


def runs(n: int, seeds: int, seed: int, k: int = 2, gap: float = 0.4):
    """Labels, and by seed the probabilities of a merged and of a centralized model."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % k
    easy = generator.normal(1.5, 1.0, size=n)

    def model(skill: float) -> np.ndarray:
        logits = generator.normal(size=(n, k)) + (easy + skill)[:, None] * np.eye(k)[labels]
        p = np.exp(logits)
        return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)

    return labels, {s: {"merged": model(0), "centralized": model(gap)} for s in range(seeds)}


def test_components_by_hand():
    # three seeds, photos of one class: d = 0.1 + seed (-0.1, 0, 0.1) + photo (-0.2, 0, 0.2)
    values = 0.1 + np.array([-0.1, 0, 0.1])[:, None] + np.array([-0.2, 0, 0.2])
    found = crossed(values, NOTHING_UNSEEN, np.zeros(3, dtype=int))
    assert found.difference == pytest.approx(0.1)
    assert found.by_seed == pytest.approx([0, 0.1, 0.2])
    assert found.effects[:3] == pytest.approx((0.01, 0.04, 0), abs=1e-12)
    assert found.standard_error == pytest.approx(np.sqrt(0.01 / 3 + 0.04 / 3))
    # Satterthwaite: (a + b)^2 / (a^2 / 2 + b^2 / 2) with a : b = 1 : 4
    assert found.df == pytest.approx(25 / (1 / 2 + 16 / 2))
    half = t.ppf(0.975, found.df) * found.standard_error
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert found.deviation["seed"] == pytest.approx(0.1)
    # a new seed: Student's t with 2 degrees of freedom, spread 0.1 * sqrt(1 + 1/3)
    assert found.at_least_as_good == pytest.approx(t.cdf(1 / np.sqrt(4 / 3), 2))


@pytest.mark.parametrize(("seeds", "photos"), [(3, 12), (5, 20)])
def test_components_are_those_of_statsmodels_mean_squares(seeds, photos):
    generator = np.random.default_rng(seeds)
    values = (
        generator.normal(size=(seeds, 1))
        + generator.normal(size=photos)
        + generator.normal(size=(seeds, photos))
    ) / 10
    at = np.indices(values.shape)
    table = pd.DataFrame({"value": values.ravel(), "seed": at[0].ravel(), "photo": at[1].ravel()})
    squares = anova_lm(ols("value ~ C(seed) + C(photo)", table).fit())["mean_sq"]
    of_seed, of_photo, rest = squares["C(seed)"], squares["C(photo)"], squares["Residual"]
    found = crossed(values, NOTHING_UNSEEN, np.zeros(photos, dtype=int))
    expected = ((of_seed - rest) / photos, (of_photo - rest) / seeds, rest)
    assert min(expected) > 0
    assert found.effects[:3] == pytest.approx(expected)
    assert found.standard_error**2 == pytest.approx((of_seed + of_photo - rest) / values.size)


def test_photos_that_are_all_alike_are_a_t_test_over_seeds():
    """The words then are those of statsmodels' one-sample tests, two-sided and twice one-sided."""
    by_seed = np.array([-0.011, -0.017, -0.021, -0.019, -0.018])
    values = np.repeat(by_seed[:, None], 2000, axis=1)
    found = crossed(values, NOTHING_UNSEEN, np.arange(2000) % 2)
    own = DescrStatsW(by_seed)
    assert found.df == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx(own.tconfint_mean())
    for margin in (0.005, 0.02, 0.022, 0.03):
        verdict = judge({"merged": found}, margin)["merged"]
        assert verdict.p_difference == pytest.approx(own.ttest_mean(0)[1])
        assert verdict.p_equivalence == pytest.approx(own.ttost_mean(-margin, margin)[0])
        low, high = found.interval(0.9)
        assert (verdict.word == "equivalent") == (-margin < low and high < margin)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)  # theirs collects all garbage, each time
@given(st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_holm_is_that_of_statsmodels(percents):
    p_values = [one / 100 for one in percents]
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9))
def test_mcnemar_is_that_of_statsmodels(gained, lost, both):
    right = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [gained, lost, both, 1], axis=0)
    p, q = np.eye(2)[right[:, 0]], np.eye(2)[right[:, 1]]
    found = compare(np.ones(len(right), dtype=int), p, q, seed=0, resamples=10)
    table = [[both, gained], [lost, 1]]
    assert found["mcnemar_p"] == pytest.approx(mcnemar(table, exact=True).pvalue)


def shape(found: Replication) -> list[float]:
    return [found.difference, found.low, found.high, found.standard_error, found.df]


@settings(max_examples=25, deadline=None)
@example(seed=80, seeds=3, k=2, measure="recall", random=Random(0))  # the same with every seed
@given(
    st.integers(0, 99), st.integers(3, 5), st.integers(2, 3), st.sampled_from(list(MEASURES)),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_only_the_pairs_count_neither_order_nor_side(seed, seeds, k, measure, random):
    y, by_seed = runs(30, seeds, seed, k)
    found = replicate(y, by_seed, "merged", measure=measure)
    assert found.low <= found.difference <= found.high
    assert found.low < found.high

    order, shuffled = np.array(random.sample(range(30), 30)), random.sample(list(by_seed), seeds)
    again = {s: {name: p[order] for name, p in by_seed[s].items()} for s in shuffled}
    other = replicate(y[order], again, "merged", measure=measure)
    assert shape(other) == pytest.approx(shape(found), abs=1e-9)

    swapped = replicate(y, by_seed, "centralized", "merged", measure=measure)
    assert shape(swapped)[:3] == pytest.approx([-found.difference, -found.high, -found.low])
    assert shape(swapped)[3:] == pytest.approx(shape(found)[3:])
    if max(map(abs, found.by_seed)) < 1e-12:  # equal with every seed: each as good as the other
        assert (found.at_least_as_good, swapped.at_least_as_good) == (1, 1)
    else:
        assert swapped.at_least_as_good == pytest.approx(1 - found.at_least_as_good)
    words = [judge({"": one}, 0.01)[""].word for one in (found, swapped)]
    mirror = {"worse": "better", "better": "worse"}
    assert words[1] == mirror.get(words[0], words[0])


@pytest.mark.parametrize("measure", MEASURES)
def test_the_difference_is_the_mean_of_the_measures(measure):
    y, by_seed = runs(50, 3, seed=2)
    found = replicate(y, by_seed, "merged", measure=measure)
    of = [
        [MEASURES[measure](y, one[name], np.ones(50)).value for name in ("merged", "centralized")]
        for one in by_seed.values()
    ]
    assert found.by_seed == pytest.approx([a - b for a, b in of])
    assert found.difference == pytest.approx(np.mean([a - b for a, b in of]))


def test_of_a_loss_less_is_better():
    y, by_seed = runs(400, 4, seed=1, gap=1.5)
    for measure in MEASURES:
        found = replicate(y, by_seed, "merged", measure=measure)
        if measure == "ece":  # how far off, not in which direction
            continue
        assert (found.difference > 0) == (measure in LOSSES)
        assert judge({"": found}, 1e-6)[""].word == "worse"
        assert found.at_least_as_good < 0.05


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_give_no_interval(seeds):
    y, by_seed = runs(50, seeds, seed=3)
    found = replicate(y, by_seed, "merged")
    assert len(found.by_seed) == seeds
    assert (found.low, found.high, found.standard_error, found.deviation) == (None,) * 4
    assert judge({"merged": found}, 0.01) == {"merged": None}


def test_models_that_never_differ_are_equivalent_only_on_many_photos():
    def same(n: int) -> str:
        y, by_seed = runs(n, 5, seed=4)
        one = {s: p | {"merged": p["centralized"]} for s, p in by_seed.items()}
        found = replicate(y, one, "merged")
        assert found.difference == 0
        assert found.low < 0 < found.high
        return judge({"": found}, 0.01)[""].word

    assert (same(40), same(200), same(1012)) == ("undecided", "undecided", "equivalent")


def test_one_photo_a_class_says_nothing():
    y, by_seed = runs(2, 4, seed=4)
    assert replicate(y, by_seed, "merged").low is None


@pytest.mark.parametrize(("seeds", "photos"), [(3, 300), (5, 300), (10, 1000)])
def test_the_interval_covers_what_it_says_and_no_word_is_wrong_more_often(seeds, photos):
    """A small piece of benchmarks/verdict.py: models alike on average, right on most photos."""
    generator, strata = np.random.default_rng(seeds), np.arange(photos) % 2
    unseen = np.tile([1.0, -1.0], (seeds, 2))
    found = []
    for _ in range(300):
        easy = generator.normal(1.7, 1, size=photos)
        right = [
            easy
            + 0.3 * generator.normal(size=photos)
            + 0.05 * generator.normal(size=(seeds, 1))
            + 0.4 * generator.normal(size=(seeds, photos))
            > 0
            for _ in range(2)
        ]
        found.append(crossed(right[0].astype(float) - right[1], unseen, strata))
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93
    assert np.mean([one.standard_error for one in found]) == pytest.approx(
        np.std([one.difference for one in found]), rel=0.15
    )
    words = [judge({"": one}, 0.01)[""].word for one in found]
    assert np.mean([word in ("worse", "better") for word in words]) <= 0.07


def test_what_is_missing_is_named():
    y, by_seed = runs(20, 3, seed=5)
    with pytest.raises(UserError, match=r"seed 1: no predictions of krum \(there are merged"):
        replicate(y, by_seed | {0: by_seed[0] | {"krum": by_seed[0]["merged"]}}, "krum")
    del by_seed[2]["centralized"]
    with pytest.raises(UserError, match="seed 2: no predictions of centralized"):
        replicate(y, by_seed, "merged")
    by_seed[2]["centralized"] = by_seed[1]["centralized"][:-1]
    with pytest.raises(UserError, match=r"seed 2, centralized: labels \(20,\)"):
        replicate(y, by_seed, "merged")
    by_seed[2]["centralized"] = np.eye(3)[y]
    with pytest.raises(UserError, match="models of 2 and 3 classes"):
        replicate(y, by_seed, "merged")
    with pytest.raises(ValueError, match="no seed"):
        replicate(y, {}, "merged")
    with pytest.raises(ValueError, match="measure 'speed': one of accuracy"):
        replicate(y, {0: by_seed[0]}, "merged", measure="speed")


def test_undefined_on_these_photos_gives_no_interval():
    y, by_seed = runs(20, 3, seed=6)
    found = replicate(np.ones_like(y), by_seed, "merged", measure="roc_auc")
    assert np.isnan(found.difference)
    assert judge({"": found}, 0.01) == {"": None}


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-0.03, 0.03), st.floats(0, 1e-4), st.floats(1e-3, 0.05), st.floats(0, 0.1),
    st.integers(3, 12),
)  # fmt: skip
def test_the_number_of_seeds_that_would_decide_would(difference, seed, photo, rest, seeds):
    effects = Effects(seed, photo, rest, 1012, 1010)
    verdict = judge({"": replication(difference, effects, seeds)}, 0.01)[""]
    if verdict.word != "undecided":
        assert verdict.seeds_to_decide is None
    elif verdict.seeds_to_decide is None:
        many = replication(difference, effects, seeds + 1000)
        assert judge({"": many}, 0.01)[""].word == "undecided"
    else:
        enough = seeds + verdict.seeds_to_decide
        assert judge({"": replication(difference, effects, enough)}, 0.01)[""].word != "undecided"
        if verdict.seeds_to_decide > 1:
            fewer = replication(difference, effects, enough - 1)
            assert judge({"": fewer}, 0.01)[""].word == "undecided"


def test_several_models_need_stronger_evidence():
    effects = Effects(1e-5, 0.01, 0.01, 1012, 1010)
    one = replication(-0.0095, effects, 10)
    alone = judge({"a": one}, 0.001)["a"]
    assert (alone.word, alone.p_difference) == ("worse", alone.p_difference_holm)
    weaker = dataclasses.replace(one, difference=-0.0025)
    for name, verdict in judge({"a": one, "b": weaker, "c": weaker}, 0.001).items():
        assert verdict.p_difference_holm > verdict.p_difference
        assert (name, verdict.word) in {
            ("a", "worse"),
            ("a", "undecided"),
            ("b", "undecided"),
            ("c", "undecided"),
        }
    assert judge({"a": one, "b": weaker}, 0.001)["a"].p_difference_holm == 2 * alone.p_difference


def test_a_margin_must_be_above_zero():
    with pytest.raises(ValueError, match="margin 0"):
        judge({}, 0)


def test_no_model_no_verdict():
    assert judge({}, 0.01) == {}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(2, 4))
def test_contributions_average_to_the_difference(seed, k):
    y, by_seed = runs(24, 1, seed, k)
    pairs = [(by_seed[0]["merged"], by_seed[0]["centralized"])]
    for measure, of in MEASURES.items():
        values, unseen = differences(y, pairs, measure)
        ones = np.ones(24)
        expected = of(y, pairs[0][0], ones).value - of(y, pairs[0][1], ones).value
        assert values.mean() == pytest.approx(expected, abs=1e-9)
        assert unseen.shape == (1, 2 * k)
    assert differences(y, pairs, "accuracy")[1].tolist() == [[1, -1] * k]
