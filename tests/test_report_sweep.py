"""The report of a sweep: rows from jobs, curves, heat map, page."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from made_up import fake_run
from rich.console import Console

from fedcats.report import print_sweep, sweep, sweep_figures, sweep_rows, view, write_sweep_report
from fedcats.report.varied import means_over_seeds


def model(accuracy: float) -> dict[str, Any]:
    scores = dict.fromkeys(("precision", "recall", "f1"), accuracy)
    return {"accuracy": accuracy, **scores, "loss": 1 - accuracy, "n": 1000, "extra": "dropped"}


def job(shards: int, beta: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A job of a sweep over beta and shards: fewer shards and beta near 0.3 are better."""
    own = {f"submodel/{i}": model(0.9 - shards / 1000 - i / 10_000) for i in range(shards)}
    models = {
        "centralized": model(0.96),
        **own,
        "polyak": model(round(0.95 - shards / 1000 - 0.05 * (beta - 0.3) ** 2, 6)),
        "fedavg": model(0.952 - shards / 1000),
    }
    return (
        {"strategy.beta": beta, "partition.num_shards": shards, "runner.workers": shards},
        {"config": {"rounds": 1}, "models": models},
    )


def rows() -> list[dict[str, Any]]:
    return sweep_rows([job(shards, beta) for shards in (5, 10, 20) for beta in (0.1, 0.3, 0.5)])


def point(name: str, accuracy: float, **parameters: Any) -> dict[str, Any]:
    found = model(accuracy)
    del found["extra"]
    return {**parameters, "model": name, **found}


def test_what_a_model_does_not_depend_on_gives_it_no_second_row():
    found = rows()
    count = {
        name: sum(row["model"] == name for row in found) for name in {r["model"] for r in found}
    }
    assert count == {"centralized": 1, "best_submodel": 3, "fedavg": 3, "polyak": 9}
    centralized = next(row for row in found if row["model"] == "centralized")
    assert centralized["strategy.beta"] is None
    assert centralized["partition.num_shards"] is None
    assert "extra" not in centralized
    best = [row for row in found if row["model"] == "best_submodel"]
    assert [row["accuracy"] for row in best] == [0.895, 0.89, 0.88]  # submodel/0 of each


def test_a_parameter_of_the_recipe_is_kept_for_every_model():
    jobs = [
        ({"train.lr": lr}, {"models": {"centralized": model(0.9 + lr), "polyak": model(0.9)}})
        for lr in (0.01, 0.02)
    ]
    kept = [(row["model"], row["train.lr"]) for row in sweep_rows(jobs)]
    assert kept == [
        ("centralized", 0.01),
        ("polyak", 0.01),
        ("centralized", 0.02),
        ("polyak", 0.02),
    ]


def test_curves_have_a_column_for_each_shard_count():
    figure = sweep_figures.curves(rows())
    assert len(figure.axes) == 9
    lines = figure.axes[0].lines  # accuracy with 5 shards: three levels, then the curve
    levels = sorted(line.get_ydata()[0] for line in lines[:3])
    assert levels == pytest.approx([0.895, 0.947, 0.96])
    assert list(lines[3].get_xdata()) == [0.1, 0.3, 0.5]
    assert list(lines[3].get_ydata()) == pytest.approx([0.943, 0.945, 0.943])
    assert figure.axes[8].get_xlabel() == "beta"


def test_many_groups_share_one_panel():
    found = sweep_rows([job(shards, beta) for shards in range(5, 11) for beta in (0.1, 0.5)])
    assert len(sweep_figures.curves(found).axes) == 3


def test_several_seeds_are_averaged():
    found = [
        point("polyak", accuracy, beta=beta, seed=seed)
        for beta, pair in ((0.1, (0.90, 0.92)), (0.5, (0.94, 0.95)))
        for seed, accuracy in enumerate(pair)
    ]
    ax = sweep_figures.curves(found).axes[0]
    single, means = ax.lines
    assert sorted(single.get_ydata()) == [0.90, 0.92, 0.94, 0.95]
    assert list(means.get_ydata()) == pytest.approx([0.91, 0.945])


def test_the_heat_map_has_a_cell_for_each_point_and_frames_the_best():
    figure = sweep_figures.heat(rows())
    (ax,) = figure.axes
    assert len(ax.texts) == 9
    best = max(ax.texts, key=lambda text: float(text.get_text()))
    assert best.get_text() == "94.5"
    assert best.get_position() == (1, 0)  # beta 0.3, five shards
    framed = [patch for patch in ax.patches if not patch.get_fill()]
    assert len(framed) == 1
    assert (
        sweep_figures.heat([row for row in rows() if row["partition.num_shards"] in (None, 5)])
        is None
    )


def test_a_grid_of_rules_and_orders_in_one_job():
    found = [point("centralized", 0.96)]
    for order in ("partition", "reversed", "shuffled"):
        for beta in (0.1, 0.5, 0.9):
            found.append(point("polyak", 0.95 - beta / 100, rule="polyak", order=order, beta=beta))
        found.append(point("fedavg", 0.951, rule="fedavg", order=order, beta=None))
    figure = sweep_figures.curves(found)
    assert len(figure.axes) == 9
    assert len(sweep_figures.heat(found).axes[0].texts) == 9
    assert sweep.points_table(found).header[:3] == ("order", "beta", "model")  # rule repeats it


def test_without_a_number_that_varies_there_are_dots():
    found = [point("centralized", 0.96)]
    found += [point("polyak", 0.95, order=order) for order in ("partition", "reversed")]
    assert sweep_figures.curves(found) is None
    assert sweep_figures.heat(found) is None
    labels = [label.get_text() for label in sweep_figures.dots(found).axes[0].get_yticklabels()]
    assert labels == ["centralized", "Polyak (order partition)", "Polyak (order reversed)"]
    assert sweep_figures.dots(rows()) is None


def test_the_verdict_names_best_and_worst_and_warns():
    first, second = sweep.sweep_verdict(rows())
    assert first == (
        "Of 12 merged models FedAvg (num shards 5) has the highest accuracy, 94.7%; "
        "Polyak (beta 0.1, num shards 20) has the lowest, 92.8%."
    )
    assert second.startswith(
        "To compare: centralized 96.0%, best sub-model (picked on the test pictures) 89.5%. "
    )
    assert sweep.sweep_verdict([point("centralized", 0.9)]) == ["This sweep merged nothing."]


def test_the_difference_is_from_the_matching_centralized_model():
    found = [
        point("centralized", 0.90, lr=0.1),
        point("polyak", 0.88, lr=0.1),
        point("centralized", 0.95, lr=0.2),
        point("polyak", 0.96, lr=0.2),
    ]
    assert [row[-1] for row in sweep.points_table(found).rows] == ["0.0", "−2.0", "0.0", "+1.0"]


def test_the_sweeps_folder(tmp_path: Path):
    for name in ("0", "1", "10", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.html").write_text("one run")
    write_sweep_report(tmp_path, rows(), warnings=["Drawings, not photos."])
    with (tmp_path / "sweep.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == len(rows())
    assert read[0]["model"] == "centralized"
    assert read[0]["strategy.beta"] == ""
    assert [float(row["accuracy"]) for row in read] == [row["accuracy"] for row in rows()]
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "sweep.png", "sweep.svg", "heat.png", "heat.svg",
    }  # fmt: skip
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "The merged model over beta and num shards" in page
    assert "Drawings, not photos." in page
    places = [page.index(f'href="{name}/report.html"') for name in ("0", "1", "2", "10")]
    assert places == sorted(places)


def test_the_summary_ends_with_the_folder(tmp_path: Path):
    stream = io.StringIO()
    print_sweep(rows(), tmp_path, Console(file=stream, width=80), warnings=["Drawings."])
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Drawings."
    assert lines[-1] == str(tmp_path.resolve())
    assert max(len(line) for line in lines[:-1]) <= 80


def test_a_precision_that_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    results = fake_run(tmp_path, clients=2, per_class=20)
    results["models"]["polyak"] |= {"confusion_matrix": [[20, 0], [20, 0]], "precision": 0.0}
    found = [row for beta in (0.1, 0.5) for row in sweep_rows([({"strategy.beta": beta}, results)])]
    table = sweep.points_table(found)
    assert {row[table.header.index("precision")] for row in table.rows if row[1] == "Polyak"} == {
        "–"
    }
    write_sweep_report(tmp_path / "out", found)
    with (tmp_path / "out/sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    assert {row["precision"] for row in written if row["model"] == "polyak"} == {""}
    assert all(row["precision"] for row in written if row["model"] == "centralized")
    assert view.four_digits(means_over_seeds(found)[-1]["accuracy"]) != "–"
