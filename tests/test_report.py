"""The report in words and tables, from a results dict."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import PAPER, small

from fedcats.metrics import compare, scores
from fedcats.report import (
    cautions,
    tables,
    verdict,
    view,
)

# --- the answer ------------------------------------------------------------------------------


def test_the_answer_by_hand():
    assert verdict.answer(small()) == [
        "Training on 2 devices and merging only the weights (Polyak β = 0.5) gives 95.0% accuracy, "
        "training on all 2,003 photos in one place 96.0%.",
        "This one Polyak β = 0.5 model gets 1.0 points less than this one centralized model (200 "
        "test photos, 95% interval −3.0 to +1.2 points, exact McNemar p = 0.73). What other seeds "
        "would give, one seed cannot say: that takes at least 3.",
        "Precision differs by +0.5 points (−1.0 to +2.0), recall by −3.0 (−5.0 to −1.0).",
    ]


def test_photos_that_are_on_no_device_are_named_and_counted():
    results = small()
    results["data"] |= {
        "left_out": {"limit": {"cat": 0, "dog": 0}, "partition": {"cat": 9, "dog": 14}},
        "held_out": {"cat": 0, "dog": 0},
        "shards": [{"client": i, "examples": 198} for i in range(10)],
    }
    results["config"]["partition"] = {"name": "paper", "num_shards": 10, "per_class": 99}
    nobody = "Of 2,003 training photos 23 (9 cat, 14 dog) are on no device (partition paper: "
    nobody += "num_shards=10, per_class=99); the centralized model"
    assert cautions.warnings(results) == [f"Warning: {nobody} has them."]
    assert "training on all 2,003 photos in one place" in verdict.answer(results)[0]
    results["models"]["centralized"]["training"]["examples"] = 1980
    assert cautions.warnings(results) == [f"Warning: {nobody} lacks them."]
    assert "on the 1,980 photos of all 10 devices in one place" in verdict.answer(results)[0]
    results["data"]["left_out"]["partition"] = {"cat": 0, "dog": 1}
    (one,) = cautions.warnings(results)
    assert one.startswith("Of 2,003 training photos 1 (1 dog) is on no device (partition paper: ")
    assert one.endswith("; the centralized model lacks it.")
    results["data"]["left_out"]["limit"]["dog"] = 500
    results["config"]["data"] = {"limit": 1004, "counts": None}
    results["data"]["train"] = {"cat": 989, "dog": 1004}
    results["data"]["held_out"]["cat"] = 10
    results["models"]["centralized"]["training"]["examples"] = 1993
    limit, _, held = cautions.warnings(results)
    assert limit == "Warning: Of 2,503 training photos 500 (500 dog) are not used (data.limit)."
    assert held == "Of 2,003 training photos 10 (10 cat) are held out of all training (hold_out)."
    assert "training on 1,993 photos in one place" in verdict.answer(results)[0]
    del results["models"]["centralized"]
    assert cautions.warnings(results)[1].endswith("(partition paper: num_shards=10, per_class=99).")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=60), st.data())
def test_every_sentence_about_a_difference_is_true(rows: list[tuple[int, int, int]], data: Any):
    repeat = data.draw(st.sampled_from([1, 3, 40]))  # so that small differences occur, too
    labels, first, second = np.repeat(np.array(rows), repeat, axis=0).T
    p, q = np.eye(2)[first], np.eye(2)[second]
    results = small()
    for name, predicted in (("polyak", p), ("centralized", q)):
        results["models"][name] |= scores(labels, predicted, ["cat", "dog"])
    found = compare(labels, p, q, seed=1, resamples=50)
    results["comparison"] = {"polyak": found}
    _, first_sentence, second_sentence, *more = verdict.answer(results)
    low, high = found["accuracy"]["low"], found["accuracy"]["high"]
    excluded = low > 0 or high < 0
    difference = results["models"]["polyak"]["accuracy"]
    difference -= results["models"]["centralized"]["accuracy"]
    # the words, the printed interval and the printed p say one thing
    assert excluded == (found["mcnemar_p"] < 0.05)
    assert ("the same as" in first_sentence) == (difference == 0)
    ends = re.search(r"interval ([−+\d.]+) to ([−+\d.]+) points", first_sentence)
    printed = [float(end.replace(view.MINUS, "-")) for end in ends.groups()]
    assert (printed[0] > 0 or printed[1] < 0) == excluded
    assert printed[0] < printed[1]
    said = re.search(r"p ([=<]) ([\d.]+)\)", first_sentence)
    assert (float(said[2]) < 0.05) == excluded
    nowhere = [who for who, one in (("centralized", second), ("merged", first)) if 1 not in one]
    assert [sentence.split()[1] for sentence in more] == nowhere
    assert second_sentence.startswith("Recall differs by ") == (
        bool(nowhere) or len({*labels.tolist()}) < 2
    )
    for table in (tables.comparison(results), tables.scores(results)):
        assert "None" not in str(table)


def test_the_answer_without_a_centralized_model():
    results = small()
    del results["models"]["centralized"], results["comparison"]
    assert verdict.answer(results) == [
        "Training on 2 devices and merging only the weights (Polyak β = 0.5) gives 95.0% accuracy "
        "on 200 test photos, single sub-models 0.9000 to 0.9200; there is no centralized model in "
        "this run to compare with."
    ]


def test_the_answer_without_a_merged_model():
    results = small()
    results["models"] = {"centralized": results["models"]["centralized"]}
    results["data"]["source"] = "synthetic"
    (sentence,) = verdict.answer(results)
    assert sentence.startswith("The centralized model reaches 96.0% accuracy on 200 test drawings")


def test_warnings_name_drawings_and_clients_left_out():
    results = small(failures={"round 1, client 3": "its weights are not finite"})
    results["data"] |= {"source": "synthetic", "note": "drawings made by fedcats, not photos"}
    drawings, left_out = cautions.warnings(results)
    assert drawings.startswith("Drawings made by fedcats, not photos: the numbers show")
    assert left_out == "Left out of the merge: round 1, client 3 (its weights are not finite)."


def test_warnings_of_several_runs_say_of_how_many():
    plain = [small() for _ in range(3)]
    attacked = small(attack={"name": "label_flip", "clients": [2]})
    common = cautions.warnings(plain[0])
    (own,) = set(cautions.warnings(attacked)) - set(common)
    assert cautions.of_runs(plain) == common
    assert cautions.of_runs([*plain, attacked]) == [*common, f"In 1 of 4 runs: {own}"]
    for count, shown in ((7, 7), (8, 7), (20, 7)):
        runs = [small(failures={f"client {i}": "gone"}) for i in range(count)]
        found = cautions.of_runs(runs)
        assert len(found) == shown
        assert ("more such lines" in found[-1]) == (count > 7)
        assert count == 7 or found[-1].startswith(f"{count - 6} more")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (view.points(-0.0074), "−0.7"),
        (view.points(0.0074), "+0.7"),
        (view.points(-0.0001), "0.0"),
        (view.percent(0.94166), "94.2%"),
        (view.duration(8.44), "8.4 s"),
        (view.duration(59.7), "1 min 00 s"),
        (view.duration(125), "2 min 05 s"),
        (view.duration(3780), "1 h 03 min"),
        (view.p_value(0.0004), "p < 0.001"),
        (view.p_value(0.0312), "p = 0.031"),
        (view.p_value(0.04996), "p = 0.04996"),
        (view.p_value(0.0504), "p = 0.05"),
        (view.apart(-0.0004), "under 0.1 points less than"),
        (view.interval({"low": -0.0123, "high": 0.0004}), "−1.23 to +0.04"),
        (view.interval({"low": None, "high": None}), "no interval"),
        (view.interval({"low": -0.251, "high": 2.8e-18}), "−25.1 to 0.0"),
        (view.p_value(0.7266), "p = 0.73"),
    ],
)
def test_numbers_as_text(text: str, expected: str):
    assert text == expected


# --- tables ----------------------------------------------------------------------------------


def test_the_table_of_scores_in_markdown():
    lines = tables.to_markdown(tables.scores(small(), submodels=False)).splitlines()
    assert lines[0] == ("| model | accuracy | precision | recall | F1 | loss | tn | fp | fn | tp |")
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| centralized | 0.9600 | 0.9500 | 0.9700 |")
    assert lines[2].endswith("| 95 | 5 | 3 | 97 |")
    assert lines[4].startswith("| median of 2 | 0.9100 | 0.9200 | 0.9300 |")


def test_the_paper_stands_beside_every_score():
    table = tables.paper(small(paper=PAPER))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["centralized"] == (
        "0.9600", "0.9417", "+1.8", "0.9500", "0.9627", "−1.3", "0.9700", "0.9190", "+5.1",
    )  # fmt: skip
    assert rows["Polyak β = 0.5"][:3] == ("0.9500", "0.9348", "+1.5")
    assert rows["sub-model 1"][:3] == ("0.9200", "0.8804", "+4.0")
    assert rows["median of 2"][:3] == ("0.9100", "0.8503", "+6.0")
    assert tables.paper(small()) is None
    assert tables.paper(small(paper={"name": "none"})) is None


def test_the_comparison_names_interval_and_p():
    (row,) = tables.comparison(small()).rows
    assert row == (
        "Polyak β = 0.5", "−1.0 (−3.0 to +1.2)", "+0.5 (−1.0 to +2.0)", "−3.0 (−5.0 to −1.0)",
        "3 : 5", "0.73",
    )  # fmt: skip


def test_shards_show_the_weight_of_each_client():
    results = small()
    shards = [{"client": c, "examples": 198, "per_class": {"cat": 99, "dog": 99}} for c in (0, 1)]
    results["data"]["shards"] = shards
    # a merge in another order: the first weight belongs to client 1
    results["models"]["polyak"] |= {"clients": [1, 0], "effective_weights": [0.3, 0.7]}
    table = tables.shards(results)
    assert table.header[-1] == "in Polyak β = 0.5"
    assert [row[-1] for row in table.rows] == ["70.0%", "30.0%"]


def test_cells_are_escaped():
    table = tables.Table("t", ("a|b", "<i>"), [("x|y", "<script>")])
    assert "a\\|b" in tables.to_markdown(table)
    assert "&lt;script&gt;" in tables.to_html(table)
    assert "<script>" not in tables.to_html(table)


def test_the_papers_numbers_follow_from_its_matrices():
    for name in ("centralized", "polyak"):
        printed = PAPER["models"][name]
        (tn, fp), (fn, tp) = printed["confusion_matrix"]
        assert tn + fp + fn + tp == PAPER["n"] == 1012
        assert printed["accuracy"] == pytest.approx((tn + tp) / 1012, abs=6e-5)
        assert printed["precision"] == pytest.approx(tp / (tp + fp), abs=6e-5)
        assert printed["recall"] == pytest.approx(tp / (tp + fn), abs=6e-5)
    assert sum(name.startswith("submodel/") for name in PAPER["models"]) == 10
