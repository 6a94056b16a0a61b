"""The report of a run: tables, figures, page, terminal, from a results dict and a folder."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from fedcats.metrics import compare, read_predictions, scores, write_predictions
from fedcats.report import (
    Progress,
    Work,
    cautions,
    confusion,
    drawing,
    figures,
    print_summary,
    tables,
    verdict,
    view,
    write_report,
)

PAPER = OmegaConf.to_container(
    OmegaConf.load(Path(__file__).parents[1] / "conf" / "paper" / "cats_dogs.yaml")
)


def predictions(
    labels: np.ndarray, k: int, skill: float, generator: np.random.Generator, shared: np.ndarray
) -> np.ndarray:
    """Probabilities of a made-up model; ``shared`` makes some photos hard for every model."""
    logits = skill * np.eye(k)[labels] + 0.9 * shared + 0.5 * generator.normal(size=shared.shape)
    exp = np.exp(2 * logits)
    return exp / exp.sum(axis=1, keepdims=True)


def fake_run(
    folder: Path,
    *,
    clients: int = 10,
    classes: tuple[str, ...] = ("cat", "dog"),
    rules: tuple[str, ...] = ("polyak", "fedavg"),
    with_centralized: bool = True,
    rounds: int = 1,
    epochs: int = 10,
    source: str = "folder",
    paper: dict[str, Any] | None = None,
    per_class: int = 506,
) -> dict[str, Any]:
    """Build a run folder as a real run leaves it, with scores of random predictions."""
    generator = np.random.default_rng(11)
    k = len(classes)
    labels = np.repeat(np.arange(k), per_class)
    shared = generator.normal(size=(len(labels), k))
    files = [f"test/{classes[y]}/{i:05d}.jpg" for i, y in enumerate(labels)]
    history: list[list[Any]] = []
    probabilities: dict[str, np.ndarray] = {}

    def model(name: str, skill: float) -> dict[str, Any]:
        probabilities[name] = predictions(labels, k, skill, generator, shared)
        path = f"predictions/{name}.csv"
        write_predictions(folder / path, files, labels, probabilities[name], classes)
        return {
            **scores(labels, probabilities[name], classes),
            "file": f"models/{name}.safetensors",
            "predictions": path,
        }

    def trained(name: str, examples: int, skill: float, level: float) -> dict[str, Any]:
        for number in range(1, rounds + 1):
            curve = [
                {
                    "loss": float(level * np.exp(-0.28 * (e + 3 * (number - 1))) + 0.012)
                    * float(generator.uniform(0.85, 1.15)),
                    "seconds": examples * 0.02,
                }
                for e in range(epochs)
            ]
            if name == "centralized" and number > 1:
                break
            # from the second round on every rule trains on from its own merge
            for prefix in rules if number > 1 else ("",):
                label = f"{prefix}/{name}".lstrip("/")
                for e, one in enumerate(curve):
                    history.append([label, number, e + 1, one["loss"], one["seconds"]])
        training = {"examples": examples, "steps": epochs * -(-examples // 4), "epochs": curve}
        return {**model(name, skill), "training": training}

    models: dict[str, Any] = {}
    if with_centralized:
        models["centralized"] = trained("centralized", 1001 * k, 2.55, 0.35)
    for client in range(clients if rules else 0):
        skill = 1.9 + 0.4 * float(generator.random())
        models[f"submodel/{client}"] = trained(f"submodel/{client}", 99 * k, skill, 0.5)
    weights = {
        "polyak": [0.5 ** max(clients - 1, 0), *(0.5 ** (clients - i) for i in range(1, clients))],
        "fedavg": [1 / clients] * clients,
    }
    after = []
    for number in range(1, rounds + 1):
        entry: dict[str, Any] = {"round": number}
        for rule in rules:
            one = model(rule, 2.3 + 0.06 * number + 0.05 * (rule == "fedavg"))
            models[rule] = {
                **one,
                "title": {"polyak": "Polyak β = 0.5", "fedavg": "FedAvg"}.get(rule, rule),
                "effective_weights": weights[rule],
                "n_eff": 1 / sum(w * w for w in weights[rule]),
            }
            entry[rule] = {
                key: one[key] for key in ("accuracy", "precision", "recall", "f1", "loss", "n")
            } | {"bytes": {"down": 2 * 10**8, "up": 10**8}}
        after.append(entry)

    with (folder / "history.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["model", "round", "epoch", "loss", "seconds"], *history])
    results: dict[str, Any] = {
        "schema": 1,
        "status": "complete",
        "config": {"strategy": {"rules": list(rules), "beta": 0.5}, "train": {"lr": 0.001}},
        "seed": 0,
        "versions": {"python": "3.11.7", "torch": "2.14.1", "flwr": "1.42.0"},
        "data": {
            "source": source,
            "note": "",
            "classes": list(classes),
            "train": dict.fromkeys(classes, 1001),
            "test": dict.fromkeys(classes, per_class),
            "shards": [
                {"client": i, "examples": 99 * k, "per_class": dict.fromkeys(classes, 99)}
                for i in range(clients)
            ],
        },
        "weights": {"source": "imagenet_features", "sha256": "443c5bc35326b81e" * 4},
        "models": models,
        "store": {"trained": list(models)[:3], "reused": list(models)[3:]},
        "seconds": {"data": 12.3, "centralized": 405.0, "clients": 431.9, "total": 880.1},
    }
    if with_centralized:
        results["comparison"] = {
            rule: compare(labels, probabilities[rule], probabilities["centralized"], seed=1)
            for rule in rules
        }
    if rounds > 1:
        results["rounds"] = after
    if paper:
        results["paper"] = paper
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    return results


def small(**more: Any) -> dict[str, Any]:
    """A results dict by hand: centralized 0.96, merged 0.95, two sub-models."""

    def model(accuracy: float, precision: float, recall: float, **rest: Any) -> dict[str, Any]:
        return {
            "accuracy": accuracy, "precision": precision, "recall": recall, "f1": 0.9,
            "loss": 0.1, "n": 200, "confusion_matrix": [[95, 5], [3, 97]], **rest,
        }  # fmt: skip

    interval = {"difference": -0.01, "low": -0.03, "high": 0.012}
    training = {"examples": 2003, "steps": 501, "epochs": []}
    return {
        "data": {
            "source": "folder",
            "classes": ["cat", "dog"],
            "train": {"cat": 999, "dog": 1004},
            "test": {"cat": 100, "dog": 100},
            "shards": [{"client": i, "examples": n} for i, n in enumerate((1000, 1003))],
        },
        "config": {"strategy": {"beta": 0.5}},
        "models": {
            "centralized": model(0.96, 0.95, 0.97, training=training),
            "submodel/0": model(0.90, 0.91, 0.92),
            "submodel/1": model(0.92, 0.93, 0.94),
            "polyak": model(
                0.95, 0.955, 0.94, title="Polyak β = 0.5", effective_weights=[0.5, 0.5], n_eff=2.0
            ),
        },
        "comparison": {
            "polyak": {
                "n": 200, "only_model_right": 3, "only_reference_right": 5, "mcnemar_p": 0.7266,
                "confidence": 0.95,
                "accuracy": interval,
                "precision": {"difference": 0.005, "low": -0.01, "high": 0.02},
                "recall": {"difference": -0.03, "low": -0.05, "high": -0.01},
            }
        },
        **more,
    }  # fmt: skip


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


# --- figures and page ------------------------------------------------------------------------

ALL = {"scores", "difference", "confusion", "loss", "weights", "confusion_submodels"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"paper": PAPER}, ALL),
        ({"with_centralized": False, "clients": 3}, ALL - {"difference"}),
        ({"rules": ()}, {"scores", "confusion", "loss"}),
        ({"rounds": 2, "clients": 3}, ALL | {"rounds"}),
        ({"clients": 40, "per_class": 50}, ALL - {"confusion_submodels"}),
        ({"classes": ("a", "b", "c"), "clients": 2, "per_class": 40}, ALL),
    ],
    ids=["paper", "federated", "centralized", "rounds", "many-clients", "three-classes"],
)
def test_every_mode_has_its_report(tmp_path: Path, options: dict[str, Any], expected: set[str]):
    results = fake_run(tmp_path, **options)
    write_report(tmp_path, results)
    for suffix in ("png", "svg"):
        assert {path.stem for path in (tmp_path / "figures").glob(f"*.{suffix}")} == expected
    for path in (tmp_path / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == border[0]).all(), f"{path.name} is cut off"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == len(expected)
    for name, model in results["models"].items():
        assert view.title(results, name) in page
        assert f"{model['accuracy']:.4f}" in page


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path):
    write_report(tmp_path, fake_run(tmp_path, clients=2, per_class=50))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    named = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert named <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script\s|link|img(?! src=.data:)|iframe)|@import|url\((?!#)", page)
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert references <= set(re.findall(r'\bid="([^"]+)"', page))
    assert "prefers-color-scheme: dark" in page
    assert not re.search(f"fill: {drawing.INK}|stroke: {drawing.BLUE}", page)


def test_the_page_begins_with_the_answer(tmp_path: Path):
    results = fake_run(tmp_path, clients=2, per_class=50, source="synthetic")
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    answer, *_ = verdict.answer(results)
    assert "drawings" in answer
    assert page.index("not photos") < page.index(answer) < page.index("<table>")


def test_odd_class_names_do_no_harm(tmp_path: Path):
    odd = ("<script>alert(1)</script>", "50$ & 60$ --> |")
    write_report(tmp_path, fake_run(tmp_path, classes=odd, clients=2, per_class=30))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.slow
def test_figures_are_the_same_bytes_again(tmp_path: Path):
    results = fake_run(tmp_path, clients=3, per_class=50, paper=PAPER)
    results["config"] |= {"figures": ["svg", "pdf", "png"]}
    written = []
    for _ in range(2):
        write_report(tmp_path, results)
        files = sorted([*(tmp_path / "figures").iterdir(), tmp_path / "report.html"])
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert b"<dc:date>" not in b"".join(written[0].values())
    suffixes = [Path(name).suffix for name in written[0] if name != "report.html"]
    assert len(suffixes) == 18 and {*suffixes} == {".pdf", ".png", ".svg"}


@pytest.mark.parametrize("width", [5, 7.25])
@pytest.mark.parametrize("options", [{}, {"clients": 40}, {"classes": tuple("abcde")}])
def test_figures_of_a_width_for_a_paper(tmp_path: Path, options: dict[str, Any], width: float):
    results = fake_run(tmp_path, per_class=20, paper={} if options else PAPER, **options)
    pages = []
    for config in ({}, {"figure_width": width}):
        results["config"] |= {"figures": ["svg"], **config}
        write_report(tmp_path, results)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        pages.append(re.findall(r"<figure.*?</figure>", page, re.DOTALL))
    assert pages[0] == pages[1] != []  # on the page figures are as wide as without it
    results["config"]["figures"] = ["png"]
    write_report(tmp_path, results)
    widths = {}
    for path in (tmp_path / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == border[0]).all(), f"{path.name} is cut off"
        widths[path.stem] = pixels.shape[1]
    assert widths["scores"] == max(widths.values()) == round(160 * width)


@given(
    st.lists(st.text("abc W", min_size=1, max_size=24), min_size=1, max_size=9), st.floats(3, 12)
)
def test_a_legend_has_room_in_its_figure(labels: list[str], width: float):
    with drawing.style():
        figure = Figure(figsize=(width, 3), layout="constrained")
        figure.subplots()
        handles = [Line2D([], [], marker="o", label=label) for label in labels]
        drawing.legend_beside(figure, handles)
        for narrower in (width, max(3, width / 2)):
            drawing.fit(figure, narrower)
            figure.draw_without_rendering()
            (legend,) = figure.legends
            box = legend.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= figure.bbox.width
            assert [text.get_text() for text in legend.get_texts()] == labels


def test_a_page_without_figures(tmp_path: Path):
    write_report(
        tmp_path, fake_run(tmp_path, clients=2, per_class=20) | {"config": {"figures": []}}
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<figure" not in page and "figures/" not in page and "Scores" in page
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("k", "clients"), [(2, 1000), (7, 40), (37, 3), (300, 2), (300, 100)])
def test_many_classes_and_clients_are_few_shapes(tmp_path: Path, k: int, clients: int):
    classes = [f"{c:03d}. a rather long name of a class" for c in range(k)]
    draw = np.random.default_rng(1)
    matrix = (draw.integers(0, 3, (k, k)) + 5 * np.eye(k, dtype=int)).tolist()
    results = small()
    results["data"]["classes"] = classes
    rows = draw.integers(0, 9, (clients, k)).tolist()
    shards = [dict(zip(classes, row, strict=True)) for row in rows]
    results["data"]["shards"] = [
        {"client": client, "examples": k, "per_class": shard} for client, shard in enumerate(shards)
    ]
    for model in results["models"].values():
        model |= {"confusion_matrix": matrix, "by_client": draw.random(clients).tolist()}
    drawn = drawing.write(
        tmp_path,
        {
            "confusion": ("", lambda: confusion.confusion(results)),
            "who": ("", lambda: figures.who_has_what(shards, classes)),
            "by-client": ("", lambda: figures.by_client(results)),
        },
    )
    for one in drawn:
        assert len(one.svg) < 800_000
        pixels = np.asarray(Image.open(tmp_path / f"{one.name}.png").convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all(), f"{one.name} is cut off"
    for row in tables.shards(results).rows:
        assert len(row) <= 2 + view.MANY_CLASSES + 2


def test_the_loss_figure_shows_the_history(tmp_path: Path):
    results = fake_run(tmp_path, clients=3, epochs=4)
    curves = figures.history(tmp_path, results)
    assert set(curves) == {"centralized", "submodel/0", "submodel/1", "submodel/2"}
    figure = figures.loss(results, curves)
    left, right = figure.axes
    losses = [epoch["loss"] for epoch in results["models"]["centralized"]["training"]["epochs"]]
    assert list(left.lines[0].get_ydata()) == losses
    own = [line.get_ydata() for line in right.lines[:3]]
    np.testing.assert_allclose(right.lines[3].get_ydata(), np.median(own, axis=0))
    (tmp_path / "history.csv").unlink()
    assert figures.history(tmp_path, results) == curves


def test_the_loss_figure_joins_the_rounds_of_each_rule(tmp_path: Path):
    results = fake_run(tmp_path, clients=2, epochs=3, rounds=2)
    with drawing.style():
        figure = figures.loss(results, figures.history(tmp_path, results))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["centralized", "sub-models, Polyak β = 0.5", "sub-models, FedAvg"]
    assert [len(ax.lines[0].get_ydata()) for ax in figure.axes] == [3, 6, 6]


def test_a_client_is_drawn_at_the_rounds_it_was_in(tmp_path: Path):
    results = fake_run(tmp_path, clients=3, epochs=2, rounds=2)
    both = [(number, epoch, float(number)) for number in (1, 2) for epoch in (1, 2)]
    curves = {"submodel/0": both[:2], "submodel/1": both[:2]}
    curves |= {"fedavg/submodel/1": both[2:], "fedavg/submodel/2": both[2:]}
    with drawing.style():
        (ax,) = figures.loss(results, curves).axes
    drawn = [list(line.get_xdata()) for line in ax.lines]
    assert drawn[:3] == [[1, 2], [1, 2, 3, 4], [3, 4]]
    assert drawn[3] == [1, 2, 3, 4]  # the median
    assert drawn[4] == [2.5, 2.5]  # where the second round begins


def test_wilson_intervals_of_the_three_scores():
    results = small()
    model = results["models"]["centralized"]  # matrix [[95, 5], [3, 97]]
    assert figures._wilson(results, model, "accuracy") == figures.wilson(192, 200)
    assert figures._wilson(results, model, "precision") == figures.wilson(97, 102)
    assert figures._wilson(results, model, "recall") == figures.wilson(97, 100)
    results["data"]["positive"] = results["data"]["classes"][0]
    assert figures._wilson(results, model, "precision") == figures.wilson(95, 98)
    assert figures._wilson(results, model, "recall") == figures.wilson(95, 100)


def test_scores_of_the_fixture_agree_with_its_predictions(tmp_path: Path):
    results = fake_run(tmp_path, clients=2, per_class=50)
    for model in results["models"].values():
        read = read_predictions(tmp_path / model["predictions"])
        for key, value in scores(read.labels, read.probabilities, read.classes).items():
            assert model[key] == value


# --- terminal --------------------------------------------------------------------------------


def terminal(**options: Any) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, **options), stream


def test_the_summary_fits_a_plain_terminal_and_ends_with_the_folder(tmp_path: Path):
    folder = tmp_path / ("a rather long folder name " * 4)
    folder.mkdir()
    results = fake_run(folder, paper=PAPER, source="synthetic")
    console, stream = terminal(width=80)
    print_summary(results, folder, console)
    *lines, last = stream.getvalue().splitlines()
    assert last == str(folder.resolve())
    assert max(map(len, lines)) <= 80
    assert "not photos" in lines[0]
    text = " ".join(stream.getvalue().split())
    assert " ".join(verdict.answer(results)) in text
    assert "centralized 0.9644 0.9417 +2.3" in text
    assert "3 trained, 10 taken from the store" in text


def test_progress_without_a_terminal_is_a_few_lines():
    now = 0.0
    console, stream = terminal()
    tasks = {f"client {i}": Work(198, 10, "clients") for i in range(10)}
    with Progress(tasks, console, every=30, clock=lambda: now) as progress:
        for step in range(1, 101):
            now = float(step)
            for name in tasks:
                progress.update(name, step // 10, 10, 0.5 / step, "training")
        for name in tasks:
            progress.update(name, 10, 10, 0.005, "done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 + 10 + 1  # every 30 s, each end, the total
    # all ten at once, in 100 s
    assert lines[0] == (
        "client 0: training, epoch 3 of 10, loss 0.0167  "
        "(0 of 10 done, 0:30 elapsed, about 1:10 left)"
    )
    assert lines[3].startswith("client 0: done, epoch 10 of 10, loss 0.0050  (1 of 10 done")
    assert lines[-1] == "10 of 10 done, 1:40 elapsed"


def test_no_time_left_is_shown_before_there_is_a_basis():
    now = 0.0
    console, stream = terminal()
    tasks = {"centralized": Work(2000, 10, "centralized"), "client 0": Work(200, 10, "clients")}
    with Progress(tasks, console, clock=lambda: now, every=1) as progress:
        for at, event in {
            20.0: ("images", 2000, 2000, None, "done"),
            21.0: ("centralized", 0, 10, None, "training"),
            30.0: ("client 0", 0, 10, None, "training"),
            32.0: ("client 0", 1, 10, None, "training"),
            34.0: ("client 0", 2, 10, None, "training"),
        }.items():
            now = at
            progress.update(*event)
    *before, basis, last = stream.getvalue().splitlines()
    assert not any("left" in line for line in before)
    # 2 s for 200 images: the baseline takes 200 s, of which the first epoch's 13 s are spent
    assert "1 of 3 done, 0:34 elapsed, about 3:07 left" in basis
    assert "about 3:07 left" in last


def test_a_failure_is_shown_at_once_and_many_tasks_make_no_flood():
    console, stream = terminal()
    with Progress(
        {f"client {i}": Work() for i in range(500)}, console, clock=lambda: 0.0
    ) as progress:
        for i in range(499):
            progress.update(f"client {i}", 10, 10, 0.1, "reused")
        progress.update("client 499", 3, 10, 0.1, "failed")
        progress.message("[odd] message")
    assert stream.getvalue().splitlines() == [
        "client 499: failed, epoch 3 of 10, loss 0.1000  "
        "(499 of 500 done, 499 from the store, 1 failed, 0:00 elapsed)",
        "[odd] message",
        "499 of 500 done, 499 from the store, 1 failed, 0:00 elapsed",
    ]


def test_the_live_display_shows_what_is_at_work_and_fits_the_screen():
    console, stream = terminal(force_terminal=True, width=90, height=16, color_system=None)
    with pytest.raises(KeyError), Progress(console=console) as progress:
        progress.expect({f"client {i}": Work(198, 10, "clients") for i in range(100)})
        with ThreadPoolExecutor(4) as pool:
            for i in range(90):
                pool.submit(progress.update, f"client {i}", 10, 10, 0.0123, "done")
        progress.update("client 97", 4, 10, 0.25, "training")
        progress.message("a message")
        raise KeyError
    last = stream.getvalue().split("\x1b[2K")[-1]
    shown = [line for line in last.splitlines() if "client" in line]
    assert 4 <= len(shown) <= 16 - 3
    assert any("client 97" in line and "4/10" in line and "0.2500" in line for line in shown)
    assert "90 of 100 done" in last
    assert "a message" in stream.getvalue()


def test_importing_the_report_is_cheap():
    code = "import sys, fedcats.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "jinja2", "rich", "torch", "scipy", "sklearn"} & set(loaded)
