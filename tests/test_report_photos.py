"""The page's gallery of photos that models get wrong, its data section, and what is cautioned."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import fake_run
from rich.console import Console

from fedcats.report import cautions, photos, tables, verdict, view, write_report
from fedcats.report.rich_table import to_rich


class Pixels:
    """Stands in for the test images."""

    def pixels(self, indices: list[int]) -> torch.Tensor:
        shape = (len(indices), 3, 224, 224)
        return torch.from_numpy(np.random.default_rng(indices).integers(0, 256, shape, np.uint8))


def test_the_gallery_has_the_photos_of_the_comparison(tmp_path: Path) -> None:
    results = fake_run(tmp_path, clients=3, per_class=60) | {"config": {"gallery": 4}}
    lost, won, both = photos.gallery(results, tmp_path, Pixels())
    found = results["comparison"]["polyak"]
    counts = [found["only_reference_right"], found["only_model_right"], found["both_wrong"]]
    for group, count in zip((lost, won, both), counts, strict=True):
        assert group.text.startswith(f"{count} of 120 test photos" if count else "None of 120")
        assert len(group.photos) == min(count, 4)
    for one in lost.photos:
        (base, *_), (merged, *_) = ((row[2], row) for row in one.table.rows[:2])
        assert (base, merged) == ("right", "wrong")
        assert re.search(r"centralized says \w+ \d+\.\d%, Polyak .* says \w+ \d+", one.alt)
        assert len(one.table.rows) == 2 + 1 + 3  # the clients' own models, too
    write_report(tmp_path, results, Pixels())
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") == sum(min(count, 4) for count in counts)
    # Without images at hand, or when it is not wanted, there is none.
    assert photos.gallery(results, tmp_path, None) == []
    assert photos.gallery(results | {"config": {"gallery": 0}}, tmp_path, Pixels()) == []


@pytest.mark.parametrize("k", [2, 7, 40])
def test_the_gallery_is_bounded(tmp_path: Path, k: int) -> None:
    classes = tuple(f"class {i}" for i in range(k))
    results = fake_run(tmp_path, clients=40, classes=classes, per_class=10)
    results["config"] = {"gallery": 12}
    groups = photos.gallery(results, tmp_path, Pixels())
    assert sum(len(one.thumbnail) for group in groups for one in group.photos) < 36 * 9000  # noise
    assert all(len(one.table.rows) == 3 for group in groups for one in group.photos)
    single = {"models": {"polyak": results["models"]["polyak"]}}
    (group,) = photos.gallery(results | single, tmp_path, Pixels())
    assert group.title == "Polyak β = 0.5 is wrong"


def test_the_page_says_what_was_found_in_the_data(tmp_path: Path) -> None:
    results = fake_run(tmp_path, clients=2, per_class=20)
    results["date"], results["command"] = "2026-11-26T10:20:30+01:00", "fedcats 'data.root=<b>'"
    results["data"]["audit"] = {
        "checked": 99,
        "quarantined": [["a.jpg", "empty file"]],
        "ignored": [f"{i}.heic" for i in range(70)],
        "in_test_too": [["x", "y"]],
        "removed": True,
        "duplicates": [],
        "contradictions": [],
        "near_duplicates": [{"first": "p", "second": "q", "distance": 1, "across": True}],
        "near_duplicates_found": 1200,
    }
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    for text in (
        "99 files were looked at",
        "Unusable files, left out: 1</summary><ul>\n<li>a.jpg: empty file</li>",
        "Files ignored, since they do not look like images: 70<",
        "and 20 more: results.json",
        "test images too, left out of training: 1<",
        "Pairs that look alike: 1,200<",
        "<li>p ~ q (training and test)</li>",
        "2026-11-26 10:20+01:00 · fedcats",
        "data.root=&lt;b&gt;",
    ):
        assert text in page, text
    assert "The same image several times" not in page


def test_the_page_can_be_used_without_a_mouse(tmp_path: Path) -> None:
    results = fake_run(tmp_path, clients=2, per_class=20)
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    scrolls = re.findall(r"<(?:div class=scroll|figure|pre)[^>]*>", page)
    assert len(scrolls) > 8
    assert all("tabindex" in one for one in scrolls)
    assert not re.search(r"<th(?! scope)[ >]", page)
    accuracy = results["models"]["centralized"]["accuracy"]
    assert f"centralized accuracy {accuracy:.4f}, precision" in page


@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=5),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_who_has_learned_nothing_is_named(counts: list[int], accuracies: list[float]) -> None:
    n = sum(counts)
    models: dict[str, Any] = {
        f"m{i}": {"accuracy": round(a * n) / n, "n": n} for i, a in enumerate(accuracies)
    }
    data = {"test": {f"class {i}": count for i, count in enumerate(counts)}, "source": "folder"}
    said = " ".join(cautions.of_scores({"data": data, "models": models}))  # type: ignore[typeddict-item]
    assert ("Only" in said) == (n < 100)
    share = max(counts) / n
    if all(m["accuracy"] <= share for m in models.values()):
        assert "Nobody has learned" in said
    for name, model in models.items():
        if model["accuracy"] <= share and "Nobody" not in said:
            assert name in said
        if model["accuracy"] > share + 2.0 / n**0.5:
            assert name not in said


def test_a_precision_that_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    results = fake_run(tmp_path, clients=2, per_class=20)
    results["models"]["polyak"] |= {"confusion_matrix": [[20, 0], [20, 0]], "precision": 0.0}
    rows = {row[0]: row for row in tables.scores(results).rows}
    assert rows["Polyak β = 0.5"][2] == tables.EMPTY
    assert rows["centralized"][2] != tables.EMPTY
    assert view.takes_none(results, results["models"]["polyak"])
    results["data"]["positive"] = results["data"]["classes"][0]
    assert not view.takes_none(results, results["models"]["polyak"])


def test_no_interval_is_broken_at_80_columns(tmp_path: Path) -> None:
    table = tables.comparison(fake_run(tmp_path, clients=2, per_class=20), counts=False)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(to_rich(table))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    intervals = [cell[cell.index("(") :] for row in table.rows for cell in row if "(" in cell]
    assert all(any(one in line for line in lines) for one in intervals)


def test_a_difference_of_what_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    results = fake_run(tmp_path, clients=2, per_class=20)
    none = {"difference": -0.9, "low": None, "high": None}
    results["comparison"]["polyak"]["precision"] = none
    results["models"]["polyak"] |= {"confusion_matrix": [[20, 0], [20, 0]], "precision": 0.0}
    table = tables.comparison(results)
    assert table is not None
    cells = {row[0]: row[table.header.index("precision")] for row in table.rows}
    assert cells["Polyak β = 0.5"] == tables.EMPTY
    assert cells["FedAvg"] != tables.EMPTY
    said = " ".join(verdict.answer(results))
    assert "The merged model takes no " in said
    assert "its precision is not defined." in said
    assert "recision differs" not in said
    assert "Recall differs by " in said
