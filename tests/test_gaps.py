"""The gap against what a user can change, and against the barrier."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from fedcats.cli.gaps import main
from fedcats.report import gaps


def one(gap: float, barrier: float | None = None, **config: Any) -> Any:
    """Results of a run with two rules, FedAvg half as far from the centralized model."""
    own = {"accuracy": 0.9, "bytes": {"down": 10**9, "up": 10**9}, "training": {"examples": 0}}
    results: dict[str, Any] = {
        "schema": 1,
        "config": {"seed": 0, "train": {"epochs": 5}} | config,
        "seed": 0,
        "data": {
            "source": "folder",
            "classes": ["cat", "dog"],
            "train": {},
            "test": {},
            "shards": [],
        },
        "models": {"centralized": own, "polyak": own | {"title": "Polyak β = 0.5"}, "fedavg": own},
        "comparison": {
            rule: {"accuracy": {"difference": d, "low": d - 0.01, "high": d + 0.01}}
            for rule, d in (("polyak", gap), ("fedavg", gap / 2))
        },
    }
    if barrier is not None:
        line = {"first": "submodel/0", "second": "submodel/1", "barrier": barrier}
        results["explained"] = {"lines": [line, line | {"second": "polyak", "barrier": 9.0}]}
    return results


def shards(n: int) -> dict[str, Any]:
    return {"partition": {"name": "equal", "num_shards": n}}


def test_what_was_varied_is_found_in_the_configurations() -> None:
    found = gaps.gaps([one(-0.03, **shards(20)), one(-0.01, **shards(5), seed=3), one(-0.02)])
    assert found.keys == ["partition.num_shards"]
    found = gaps.gaps([one(-0.03, **shards(20)), one(-0.01, **shards(5))])
    assert [(gap.setting, gap.rule) for gap in found.found] == [
        ("5", "polyak"), ("5", "fedavg"), ("20", "polyak"), ("20", "fedavg"),
    ]  # fmt: skip
    other = {"partition": {"name": "dirichlet", "alpha": 0.5, "num_shards": 5}}
    assert gaps.gaps([one(0, **shards(5)), one(0, **other)]).keys == ["partition.name"]
    third = {"partition": {"name": "dirichlet", "alpha": 1, "num_shards": 5}}
    keys = gaps.gaps([one(0, **shards(5)), one(0, **other), one(0, **third)]).keys
    assert keys == ["partition.name", "partition.alpha"]
    several = [one(0, rounds=r, train={"epochs": 10 // r}) for r in (1, 2, 5)]
    assert [gap.setting for gap in gaps.gaps(several).found[::2]] == ["1, 10", "2, 5", "5, 2"] or (
        gaps.gaps(several).keys == ["train.epochs", "rounds"]
    )


def test_what_begins_like_a_key_that_is_set_aside_is_varied_all_the_same() -> None:
    found = gaps.gaps([one(-0.03, model={"weights": w}) for w in ("imagenet", "none")])
    assert found.keys == ["model.weights"] and {gap.setting for gap in found.found} == {
        "imagenet", "none",
    }  # fmt: skip
    assert gaps.gaps([one(0, figures=["png"]), one(0, figures=[], seeds=3)]).keys == []


def test_where_nobody_has_learned_a_gap_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [one(-0.01 * n, **shards(n)) for n in (2, 5, 20)]
    for results in runs:
        results["data"]["test"] = {"cat": 500, "dog": 500}
        for model in results["models"].values():
            model |= {"n": 1000, "accuracy": 0.51 if results is runs[2] else 0.9}
    found = gaps.gaps(runs)
    assert {gap.setting for gap in found.found} == {"2", "5"} and found.idle == ["20"]
    said = " ".join(gaps.sentences([found]))
    assert "since nobody has learned there: num shards 20." in said
    assert "from −5.0 points (5) to −2.0 (2)" in said
    assert gaps.sentences([gaps.gaps(runs[2:] * 2)]) == []
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "results.json").write_text(json.dumps(runs[2]))
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "nobody has learned in any" in capsys.readouterr().err


def test_bytes_are_those_of_all_rounds() -> None:
    results = one(0)
    assert {gap.bytes for gap in gaps.gaps([results]).found} == {2 * 10**9}
    traffic = {"bytes": {"down": 1, "up": 2}}
    results["rounds"] = [{"round": i, "polyak": traffic, "fedavg": traffic} for i in (1, 2)]
    assert {gap.bytes for gap in gaps.gaps([results]).found} == {6}


def test_spearmans_rho_and_its_interval() -> None:
    x, y = [1.0, 2, 3, 4, 5, 6], [1.0, 3, 2, 4, 6, 5]
    found = gaps.spearman(x, y)
    assert found is not None
    rho, low, high = found
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert -1 < low < rho < high < 1
    assert gaps.spearman(x, x) == (1, 1, 1)
    assert gaps.spearman(x[:3], y[:3]) is None
    assert gaps.spearman(x, [0.5] * 6) is None


@pytest.mark.parametrize(
    ("gap_of", "expected"),
    [
        (lambda i: -0.01 * i, "Over 8 runs the larger the barrier, the more is lost, without"),
        (lambda i: 0.01 * i, "Over 8 runs the larger the barrier, the less is lost, without"),
        (lambda i: -0.01 * (i ^ 1), "Over 8 runs the larger the barrier, the more is lost: Sp"),
        (lambda i: -0.01 * (3 * i % 8), "barrier and gap are not shown to go together: Spearman"),
    ],
)
def test_whether_barrier_and_gap_go_together(gap_of: Any, expected: str) -> None:
    sweep = [one(gap_of(i), 0.001 * i, **shards(i + 2)) for i in range(8)]
    (said,) = gaps.sentences([gaps.gaps(sweep)])[1:]
    assert expected in said
    at = min(range(8), key=gap_of)
    assert f"num shards {at + 2}), comes with a mean barrier of 0.00{at}0 nats" in said
    assert "the largest barrier is 0.0070 (num shards 9)." in said
    # A run that is in two sweeps is one run, and where it is kept makes no other of it.
    again = [one(gap_of(i), 0.001 * i, store={"max_gb": 5}, **shards(i + 2)) for i in (3, 4)]
    assert gaps.sentences([gaps.gaps(sweep), gaps.gaps(again)])[2] == said
    seeds = [one(gap_of(i), 0.001 * i, seed=i) for i in range(8)]
    (said,) = gaps.sentences([gaps.gaps(seeds)])
    assert "Over 8 runs" in said and "(Polyak β = 0.5), comes" in said and said.endswith("0.0070.")


def test_sweeps_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [one(-0.01 * i, 0.01 * i, **shards(5 * i)) for i in range(1, 5)]
    second = [one(-0.02, 0.05, train={"epochs": 5}), one(-0.03, 0.07, train={"epochs": 10})]
    for name, runs in (("a", first), ("b", second)):
        for i, results in enumerate(runs):
            folder = tmp_path / name / str(i)
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(results))
    sweeps = [gaps.gaps(first), gaps.gaps(second)]
    figure = gaps.side_by_side(sweeps)
    assert figure is not None
    assert [ax.get_xlabel() for ax in figure.axes] == ["num shards", "epochs"]
    shown = gaps.scatter(sweeps)
    assert shown is not None
    assert [len(line.get_xdata()) for line in shown.axes[0].lines[1:]] == [6, 6]  # type: ignore[arg-type]
    out = tmp_path / "out"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"gaps", "barrier-gap"}
    page = (out / "gaps.html").read_text()
    assert "in gaps.csv beside this page" in page and "sweep.csv" not in page
    with (out / "gaps.csv").open(newline="") as file:
        written = [*csv.DictReader(file)]
    every = [gap for sweep in sweeps for gap in sweep.found]
    assert [float(row["difference"]) for row in written] == [gap.difference for gap in every]
    assert [float(row["barrier"]) for row in written] == [gap.barrier for gap in every]
    assert "Over num shards Polyak β = 0.5 gets from −4.0 points (20) to −1.0 (5)" in page
    assert "Over 6 runs barrier and gap are not shown to go together: Spearman" in page
    assert capsys.readouterr().out.rstrip().endswith(str(out))
    paper = [str(tmp_path / "a"), "--out", str(tmp_path / "p"), "--figures=pdf,svg"]
    assert main([*paper, "--figure-width=5.5"]) == 0
    figures = {path.name: path for path in (tmp_path / "p" / "figures").iterdir()}
    assert {"gaps.pdf", "gaps.svg"} <= figures.keys() and "gaps.png" not in figures
    width = re.search(r'<svg [^>]*width="([\d.]+)pt"', figures["gaps.svg"].read_text())
    assert width and float(width[1]) <= 72 * 5.5
    assert gaps.side_by_side([gaps.gaps(first[:1])]) is None
    assert gaps.scatter([gaps.gaps([one(0), one(0, **shards(2))])]) is None


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--figures=gif", "gif: allowed are some of png,svg,pdf"),
        ("--figures=", "allowed are some of png,svg,pdf"),
        ("--figure-width=4", "4: allowed are 5 to 100"),
        ("--figure-width=nan", "nan: allowed are 5 to 100"),
    ],
)
def test_figures_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), option])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "allowed are folders of sweeps" in capsys.readouterr().err
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "results.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
