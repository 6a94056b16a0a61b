"""Figures and page of a report, from a results dict and a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import PAPER, fake_run, small
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fedcats.metrics import read_predictions, scores
from fedcats.report import (
    confusion,
    drawing,
    figures,
    tables,
    verdict,
    view,
    write_report,
)

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
