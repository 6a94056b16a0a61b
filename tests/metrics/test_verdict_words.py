"""The sentences say what the numbers say: every number in them on the right side of every line."""

import re

import numpy as np
import pytest
from builders import replication
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats.metrics import compare
from fedcats.metrics.replication import Effects, crossed
from fedcats.metrics.verdict import judge
from fedcats.report.verdict import of_one_seed, over_seeds

# ten seeds: standard error sqrt(1e-5 / 10 + 0.01 / 1012 + 0.01 / 10120), 0.345 points
ALIKE = Effects(1e-5, 0.01, 0.01, 1012, 1010)


@pytest.mark.parametrize(
    ("difference", "effects", "margin", "sentence"),
    [
        (
            -0.017,
            ALIKE,
            0.01,
            "Polyak is worse: it gets 1.7 points less than training in one place (10 seeds, 1,012 "
            "test photos; 95% interval −2.38 to −1.02 points, t test p < 0.001).",
        ),
        (
            0.0,
            ALIKE,
            0.01,
            "Polyak and training in one place are equivalent within 1 point of accuracy: Polyak "
            "gets the same as training in one place (10 seeds, 1,012 test photos; 90% interval "
            "−0.57 to +0.57 points, two one-sided tests p = 0.002).",
        ),
    ],
)
def test_by_hand(difference, effects, margin, sentence):
    found = replication(difference, effects, 10)
    assert over_seeds("Polyak", found, judge({"": found}, margin)[""]) == sentence


def numbers(text: str) -> list[float]:
    low, high = re.findall(r"interval (\S+) to (\S+) points", text)[0]
    return [float(one.replace("\N{MINUS SIGN}", "-")) for one in (low, high)]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-400, 400), st.integers(1, 100), st.integers(0, 100), st.integers(3, 20),
    st.sampled_from([0.005, 0.01, 0.02]), st.integers(1, 3),
)  # fmt: skip
def test_every_sentence_is_true(hundredths, seed, photo, seeds, margin, models):
    effects = Effects(seed * 1e-7, photo * 1e-4, 0.01, 1012, 1010)
    found = replication(hundredths / 1e4, effects, seeds)
    verdict = judge({str(i): found for i in range(models)}, margin)["0"]
    text = over_seeds("It", found, verdict)
    low, high = numbers(text)
    if "worse" in text:
        assert verdict.word == "worse" and high < 0
    elif "better" in text:
        assert verdict.word == "better" and low > 0
    elif "equivalent" in text:
        assert verdict.word == "equivalent" and -100 * margin < low and high < 100 * margin
        assert ("but not the same" in text) == (verdict.p_difference_holm < 0.05)
    else:
        assert text.startswith("Undecided") and verdict.word == "undecided"
        assert ("not even" in text) == (verdict.seeds_to_decide is None)
    assert ("by Holm" in text) <= (models > 1)
    assert f"{seeds} seeds, 1,012 test photos" in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_say_so(seeds):
    values = np.zeros((seeds, 40))
    found = crossed(values, np.tile([1.0, -1.0], (seeds, 2)), np.arange(40) % 2)
    text = over_seeds("FedAvg", found, judge({"": found}, 0.01)[""])
    several = "s" if seeds > 1 else ""
    assert text == (
        f"FedAvg gets the same as training in one place ({seeds} seed{several}, 40 test photos); "
        "what other seeds would give takes at least 3 seeds to say."
    )


def test_too_few_photos_say_so():
    found = crossed(np.zeros((4, 2)), np.tile([1.0, -1.0], (4, 2)), np.arange(2))
    text = over_seeds("FedAvg", found, judge({"": found}, 0.01)[""], "drawings")
    assert text.endswith("(4 seeds, 2 test drawings); so few drawings give no interval.")


def test_one_seed_speaks_of_two_trained_models():
    labels = np.zeros(200, dtype=int)
    p, q = np.eye(2)[np.repeat([0, 1], [190, 10])], np.eye(2)[np.repeat([0, 1], [195, 5])]
    text = of_one_seed("FedAvg", compare(labels, p, q, seed=1))
    assert text.startswith(
        "This one FedAvg model gets 2.5 points less than this one centralized model (200 test "
        "photos, 95% interval "
    )
    assert "exact McNemar p = 0.062" in text
    assert text.endswith("What other seeds would give, one seed cannot say: that takes at least 3.")
