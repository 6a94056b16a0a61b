"""What the report says beside the first difference: its parts, thresholds, choices, sources."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fedcats.experiment.comparisons import record_comparisons
from fedcats.experiment.seeds import Found, records
from fedcats.merging.rules import Polyak, TrimmedMean
from fedcats.metrics import choice, scores
from fedcats.metrics.measures import MEASURES
from fedcats.metrics.replication import replicate
from fedcats.metrics.verdict import holm
from fedcats.report import (
    cautions,
    drawing,
    sources,
    split,
    sweep_rows,
    tables,
    thresholds,
    verdict,
    view,
)
from fedcats.report.sweep import sweep_verdict

N = 60
LABELS = np.arange(N) % 2


class Inputs:
    """What is compared, as a run has it: the test photos, of which the last ones are held out."""

    positive = 1

    class Photos:
        def __init__(self, count: int) -> None:
            self.labels = LABELS[:count]

        def __len__(self) -> int:
            return len(self.labels)

    def __init__(self, held: int, classes: int = 2) -> None:
        draws = type("Draws", (), {"own": 0})
        self.dataset = type("Data", (), {"test": self.Photos(N), "classes": [*range(classes)]})
        self.held, self.validation = range(held), self.Photos(held)
        self.config = type("Config", (), {"draws": draws})


def answers(wrong: int, tilt: float = 0.0) -> np.ndarray:
    """Wrong on so many of the first photos; probabilities of class 1 raised by ``tilt``."""
    right = np.where(np.arange(N) < wrong, 1 - LABELS, LABELS)
    p = np.clip(0.5 + 0.3 * (2 * right - 1) + 0.001 * np.arange(N) / N + tilt, 0, 1)
    return np.stack([1 - p, p], axis=1)


def results_of(models: dict[str, np.ndarray], held: int = 0) -> dict[str, Any]:
    """The results of a run with these answers."""
    found: dict[str, Any] = {"data": {"classes": ["a", "b"], "source": "folder"}, "seed": 0}
    found["data"] |= {"train": {}, "test": {}, "shards": []}
    found["models"] = {
        name: {**scores(LABELS, p, ["a", "b"]), "training": {"steps": 10, "examples": 9}}
        for name, p in models.items()
    }
    for name, p in models.items():
        if held:
            short = scores(LABELS[:held], p[:held], ["a", "b"])
            found["models"][name]["validation"] = {k: short[k] for k in ("accuracy", "loss", "n")}
    predicted = {name: [p, *([p[:held]] if held else [])] for name, p in models.items()}
    record_comparisons(Inputs(held), predicted, found)  # type: ignore[arg-type]
    return found


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, N), min_size=4, max_size=4), st.sampled_from([0, 20]))
def test_two_parts_make_the_whole_and_rules_are_adjusted_together(
    wrong: list[int], held: int
) -> None:
    names = ("centralized", "same_steps", "polyak", "fedavg")
    results: Any = results_of(dict(zip(names, map(answers, wrong), strict=True)), held)
    steps, apart = results["split"]["fewer_steps"], results["split"]["photos_apart"]
    for rule in ("polyak", "fedavg"):
        for key in ("accuracy", "precision", "recall", "f1"):
            parts = steps[key]["difference"] + apart[rule][key]["difference"]
            assert parts == pytest.approx(results["comparison"][rule][key]["difference"])
        said, *areas = split.sentences(results, rule)
        both = (steps, apart[rule])
        assert len(areas) == sum(
            one["accuracy"]["difference"] * one["thresholdless"]["roc_auc"]["difference"] < 0
            for one in both
        )
        assert view.points(apart[rule]["accuracy"]["difference"]) in said
    for family in (results["comparison"], apart):
        plain = [one["mcnemar_p"] for one in family.values()]
        assert [one["mcnemar_p_holm"] for one in family.values()] == holm(plain)
    assert steps["mcnemar_p_holm"] == steps["mcnemar_p"]
    assert ("at_thresholds" in steps) == ("threshold" in results["models"]["polyak"]) == (held > 0)
    table = thresholds.table(results)
    assert table is not None and len(table.rows) == 4 + 2 and len(table.header) == 6 + (held > 0)


def test_without_the_second_reference_nothing_is_split() -> None:
    results: Any = results_of({"centralized": answers(3), "polyak": answers(5)})
    assert "split" not in results and split.in_one_run(results) is None
    assert split.sentences(results, "polyak") == [] and split.over_seeds_of(results) is None
    alone: Any = results_of({"centralized": answers(3), "same_steps": answers(5)})
    assert "split" not in alone and alone["comparison"] == {}


def test_the_adjusted_p_is_in_the_first_lines() -> None:
    models = {"centralized": answers(0), "polyak": answers(6), "fedavg": answers(9)}
    results: Any = results_of(models)
    said = verdict.of_one_seed("Polyak", results["comparison"]["polyak"])
    assert "exact McNemar p = 0.031, p = 0.031 by Holm" not in said  # as large as the plain one
    assert "exact McNemar p = 0.031" in said
    said = verdict.of_one_seed("FedAvg", results["comparison"]["fedavg"])
    assert "exact McNemar p = 0.0039, p = 0.0078 by Holm" in said


@pytest.mark.parametrize("held", [0, 20])
def test_another_sign_without_threshold_is_said(held: int) -> None:
    tilted = answers(0, 0.3)  # takes every photo for class 1, and ranks them without a fault
    tilted[:, 1] = np.where(LABELS == 1, 0.9, 0.7)
    tilted[:, 0] = 1 - tilted[:, 1]
    results: Any = results_of({"centralized": answers(10), "polyak": tilted}, held)
    assert results["comparison"]["polyak"]["accuracy"]["difference"] < 0
    said = thresholds.sentences(results, "polyak")
    assert "differs the other way, by +" in said[0] and len(said) == 1 + (held > 0)
    if held:
        at = results["comparison"]["polyak"]["at_thresholds"]
        assert at["difference"] > 0 and results["models"]["polyak"]["threshold"]["accuracy"] == 1
    same: Any = results_of({"centralized": answers(10), "polyak": answers(20)}, held)
    assert thresholds.sentences(same, "polyak") == []


def test_a_threshold_is_chosen_for_two_classes_only() -> None:
    p = np.full((N, 3), 1 / 3)
    found: Any = {"models": {"centralized": {}}, "data": {"classes": ["a", "b", "c"]}}
    record_comparisons(Inputs(10, classes=3), {"centralized": [p, p[:10]]}, found)  # type: ignore[arg-type]
    assert "threshold" not in found["models"]["centralized"]


def test_a_chosen_beta_says_on_what_and_against_what() -> None:
    results: Any = results_of({"centralized": answers(3), "polyak": answers(5)}, held=20)
    model = results["models"]["polyak"]
    model |= {"beta": 0.3, "beta_chosen_from": {"0.1": 0.7, "0.3": 0.75, "0.5": 0.75, "0.9": 0.6}}
    said = verdict.answer(results)[-1]
    assert said == (
        "β = 0.3 was chosen among 4 values, as that with the lowest loss of 2 equally good ones, "
        "on 20 held-out training photos: 15 right, with β = 0.5 15."
    )
    model |= {"beta_chosen_from": {"0.1": 0.7, "0.3": 0.75}}
    assert verdict.answer(results)[-1].endswith("15 right, with the others 14 to 14.")


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 80)), min_size=2, max_size=6))
def test_one_number_orders_as_the_pair_does(found: list[tuple[int, float]]) -> None:
    scored = [{"accuracy": right / 50, "loss": loss, "n": 50} for right, loss in found]
    top = max(scored, key=choice.as_one_number)
    assert top["accuracy"] == max(one["accuracy"] for one in scored)
    equal = [one["loss"] for one in scored if one["accuracy"] == top["accuracy"]]
    assert top["loss"] <= min(equal) + 1e-9 * (1 + min(equal)) ** 2  # the rest is rounding


def grid_row(accuracy: float, validation: float, loss: float, beta: float) -> dict[str, Any]:
    row = dict.fromkeys(("precision", "recall", "f1"), accuracy) | {"accuracy": accuracy, "n": 50}
    row |= {"model": "polyak", "strategy.beta": beta, "loss": 0.1}  # type: ignore[dict-item]
    return row | {"validation": validation, "validation_loss": loss}


def test_of_equal_points_the_lower_loss_is_chosen() -> None:
    rows = [grid_row(0.9, 0.8, 0.5, 0.1), grid_row(0.7, 0.8, 0.4, 0.3), grid_row(0.9, 0.7, 0, 0.5)]
    said = sweep_verdict(rows)[0]
    assert "Polyak (beta 0.3) is chosen" in said and "of 2 with that the lowest loss" in said


def test_the_best_sub_model_is_chosen_where_photos_are_held_out() -> None:
    results: Any = results_of(
        {"centralized": answers(3), "submodel/0": answers(30), "submodel/1": answers(25)}, held=20
    )
    own = results["models"]["submodel/0"]["validation"]
    own |= {"accuracy": results["models"]["submodel/1"]["validation"]["accuracy"], "loss": 0.0}
    (row,) = (r for r in sweep_rows([({}, results)]) if r["model"] == "best_submodel")
    assert row["accuracy"] == results["models"]["submodel/0"]["accuracy"]
    for model in results["models"].values():
        del model["validation"]
    (row,) = (r for r in sweep_rows([({}, results)]) if r["model"] == "best_submodel")
    assert row["accuracy"] == results["models"]["submodel/1"]["accuracy"]


def replicated(errors: list[int], title: str) -> Any:
    runs: Any = {
        seed: {"polyak": answers(wrong), "centralized": answers(5)}
        for seed, wrong in enumerate(errors)
    }
    by_measure = {name: replicate(LABELS, runs, "polyak", measure=name) for name in MEASURES}
    return records({"": Found(title, [*runs], by_measure)}, 1.0)[""]


def test_sources_stand_side_by_side() -> None:
    same, moved = replicated([7, 7, 7], "Polyak (vary init)"), replicated([1, 7, 4], "Polyak (s)")
    assert sources.table([("init", same)]) is None and sources.table([]) is None
    table = sources.table([("training", same), ("shards", moved)])
    assert table is not None
    assert [row[1:4] for row in table.rows] == [
        ("who has which photos", "3", "5.00"),  # of 60 photos 1 to 7 wrong, the middle one 4
        ("order, flips, dropout", "3", "0.00"),
    ]
    assert table.rows[0][4] == "2.60 to 31.42"  # chi-squared with 2 degrees of freedom
    assert sources.table([("init", replicated([7], "one")), ("all", moved)]).rows[1][3] == "–"  # type: ignore[union-attr]


def test_numbers_are_what_a_reader_means() -> None:
    assert [TrimmedMean(0.29).cut(100), TrimmedMean(0.2).cut(9), TrimmedMean(0.49).cut(2)] == [
        29, 1, 0,
    ]  # fmt: skip
    assert TrimmedMean(0.5 - 1e-12).cut(2) == 0  # one is left
    labels = [Polyak(beta).label for beta in (0.5, 0.3745401188473625, "auto")]
    assert labels == ["Polyak β = 0.5", "Polyak β = 0.37454", "Polyak β = auto"]


def test_a_linear_head_is_said_to_be_an_ensemble() -> None:
    results: Any = results_of({"centralized": answers(3), "polyak": answers(5)})
    results["weights"] = {"only_linear": True}
    assert not any("logit ensemble" in line for line in cautions.warnings(results))
    other = copy.deepcopy(results)
    other["models"]["polyak"]["effective_weights"] = [0.5, 0.5]
    assert any("logit ensemble" in line for line in cautions.warnings(other))
    assert tables.rounds(results) is None


def test_a_value_is_shown_where_the_pointer_is(tmp_path: Path) -> None:
    """Whatever letters its name has, and at nothing else of the figure."""
    name = 'd\'or "a" <b> & c ü'

    def draw() -> Figure:
        figure = Figure()
        ax = figure.subplots()
        drawing.on_hover(name, *ax.plot(1, 2, "o"), *ax.bar([1], [2]))
        return figure

    (drawn,) = drawing.write(tmp_path, {"one": ("Caption.", draw)})
    for text in (drawn.svg, (tmp_path / "one.svg").read_text(encoding="utf-8")):
        parsed = ElementTree.fromstring(text)
        titles = [one.text for one in parsed.iter("{http://www.w3.org/2000/svg}title")]
        assert titles == [name] * 2
        assert "hover:" not in text
