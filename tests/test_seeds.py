"""Several seeds in one run: whole experiments, nothing trained twice, one verdict."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_DRAWINGS, check_results, python
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.config.schema import Draws
from fedcats.errors import UserError
from fedcats.experiment.seeds import Found, over_seeds, records
from fedcats.metrics.measures import MEASURES
from fedcats.metrics.replication import replicate
from fedcats.metrics.verdict import judge
from fedcats.report import tables, verdict
from fedcats.results import Results

Go = Callable[..., tuple[Results, Path]]


def of(*overrides: str) -> Any:
    return load(compose_config([*TINY, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "replicates"),
    [
        ([], [0]),
        (["seed=7"], [7]),
        (["seeds=1"], [0]),
        (["seed=7", "seeds=3"], [7, 8, 9]),
        (["seed=7", "seeds=[4,0]"], [4, 0]),
    ],
)
def test_which_seeds(overrides: list[str], replicates: list[int]) -> None:
    config = of(*overrides)
    assert config.replicates == replicates
    first = replicates[0]
    photos = 7 if "seed=7" in overrides else 0
    assert config.draws == Draws(first, photos, first, first, first)


@pytest.mark.parametrize(
    ("vary", "draws"),
    [
        ("all", Draws(5, 2, 5, 5, 5)),
        ("shards", Draws(5, 2, 5, 2, 2)),
        ("init", Draws(5, 2, 2, 5, 2)),
        ("training", Draws(5, 2, 2, 2, 5)),
    ],
)
def test_what_is_not_varied_follows_seed(vary: str, draws: Draws) -> None:
    assert of("seed=2", "seeds=[5]", f"vary={vary}").draws == draws


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["seeds=0"], "seeds=0: allowed is null or a number from 1 to 1000, or a list"),
        (["seeds=1001"], "seeds=1001: allowed is"),
        (["seeds=true"], "seeds=True: allowed is"),
        (["seeds=1.5"], "seeds=1.5: allowed is"),
        (["seeds=many"], "seeds=many: allowed is"),
        (["seeds=[]"], r"seeds=\[\]: allowed is"),
        (["seeds=[1,1]"], r"seeds=\[1, 1\]: allowed is"),
        (["seeds=[-1]"], r"seeds=\[-1\]: allowed is"),
        (["seeds=[1,[2]]"], r"seeds=\[1, \[2\]\]: allowed is"),
        (["margin=0"], "margin=0: allowed is a number above 0 to 100"),
        (["seeds=2", "vary=photos"], "vary=photos: allowed is all | shards"),
        (["vary=init"], "vary=init: needs seeds"),
        (["seeds=2", "mode=merge"], "seeds=2: mode=merge compares nothing"),
        (["seeds=2", "runner=flwr"], "seeds=2: not with runner=flwr"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why.replace("|", r"\|")):
        of(*overrides)


def predictions(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}


def keys(results: Results) -> dict[str, str | None]:
    return {name: model["key"] for name, model in results["models"].items() if "key" in model}


@pytest.fixture(scope="module")
def folder_of_photos(photos: Path) -> list[str]:
    return ["data=folder", f"data.root={photos}", "runner=local", "train.epochs=1"]


@pytest.mark.slow
def test_each_seed_is_the_run_with_that_seed(run: Go, folder_of_photos: list[str]) -> None:
    own = [*folder_of_photos, "seed=41"]
    single, alone = run(*folder_of_photos, "seed=43", folder="alone")
    results, folder = run(*own, "seeds=[42,43,44]", folder="seeds")
    names = ["submodel/0", "submodel/1", "centralized"]
    assert {*results["store"]["reused"]} == {f"seed 43, {name}" for name in names}
    assert {*results["store"]["trained"]} == {f"seed {k}, {n}" for k in (42, 44) for n in names}
    assert predictions(folder / "seed-43") == predictions(alone)
    second = check_results(folder / "seed-43")
    for name in ("models", "comparison"):
        for one in (single, second):  # type: ignore[assignment]
            for model in one[name].values():  # type: ignore[literal-required]
                model.pop("file", None)
        assert second[name] == single[name]  # type: ignore[literal-required]
    assert len({json.dumps(keys(one)) for one in (results, single)}) == 2
    # the same command again, and what the folder of one seed says of itself
    again, _ = run(*own, "seeds=[42,43,44]", folder="seeds")
    assert again["store"]["trained"] == []
    assert again["replication"] == results["replication"]
    assert second["config"]["seeds"] == [43] and second["seed"] == 43
    fewer, _ = run(*own, "seeds=[44]", folder="seeds")
    assert fewer["seed"] == 44 and not list(folder.glob("seed-*"))
    assert fewer["replication"]["polyak"]["verdict"] is None


@pytest.mark.slow
def test_the_drawings_are_those_of_seed(run: Go) -> None:
    results, folder = run("runner=local", "train.epochs=1", "seed=45", "seeds=2", "vary=training")
    other = check_results(folder / "seed-46")
    assert other["data"]["digest"] == results["data"]["digest"]
    assert other["data"]["shards"] == results["data"]["shards"]
    assert other["weights"]["sha256"] == results["weights"]["sha256"]
    assert {*keys(other).values()}.isdisjoint(keys(results).values())


def sweep(folder: Path, *overrides: str) -> str:
    """The text of the page."""
    command = [python(), "-m", "fedcats.cli", "-m", *TINY, *overrides]
    command += [f"hydra.sweep.dir={folder}", "save_models=none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "sweep.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_sweep_over_seeds_says_the_same(
    run: Go, tmp_path: Path, folder_of_photos: list[str]
) -> None:
    results, _ = run(*folder_of_photos, "seeds=[42,43,44]")
    page = sweep(tmp_path / "sweep", *folder_of_photos, "seed=42,43,44")
    for table in (tables.over_seeds, tables.measures_over_seeds):
        made = table(results["replication"])
        assert made is not None and tables.to_html(made) in page
    for one in results["replication"].values():
        assert verdict.of_replication(one, "pictures") in page
    assert "In the mean over seeds: " in page
    # beside something else each setting has its own, and what it has no bearing on is there once
    page = sweep(tmp_path / "two", *folder_of_photos, "seeds=[42,43,44]", "strategy.beta=0.2,0.5")
    assert page.count("Undecided: Polyak") == 2 and page.count("Undecided: FedAvg") == 1
    page = sweep(tmp_path / "drawings", "runner=local", "seed=42,43", *TINY_DRAWINGS)
    assert "Nothing is said over seeds: the seeds have different test photos" in page


def predicted(accuracies: list[list[int]], photos: int) -> dict[int, dict[str, np.ndarray]]:
    """Of each seed a model and its reference, which are wrong on so many of the first photos."""
    wrong = np.arange(photos)
    return {
        seed: {
            name: np.eye(2)[np.where(wrong < many, 1 - wrong % 2, wrong % 2)]
            for name, many in zip(("polyak", "centralized"), pair, strict=True)
        }
        for seed, pair in enumerate(accuracies)
    }


def found_of(errors: list[list[int]], photos: int) -> Found:
    labels, runs = np.arange(photos) % 2, predicted(errors, photos)
    by_measure = {name: replicate(labels, runs, "polyak", measure=name) for name in MEASURES}
    return Found("Polyak", [*runs], by_measure)


@pytest.mark.parametrize(
    ("errors", "photos", "word", "begins"),
    [
        ([[5, 5], [6, 6], [5, 5], [6, 6]], 4000, "equivalent", "Polyak and training in one place"),
        ([[95, 5], [99, 6], [97, 5]], 1000, "worse", "Polyak is worse: it gets 9.2 points less"),
        ([[5, 95], [6, 99], [5, 97]], 1000, "better", "Polyak is better: it gets 9.2 points more"),
        ([[9, 5], [2, 6], [8, 5]], 100, "undecided", "Undecided: Polyak gets 1.0 points less"),
        ([[9, 5], [2, 6]], 100, None, "Polyak gets the same as training in one place (2 seeds"),
    ],
)
def test_the_words_follow_from_the_record(
    errors: list[list[int]], photos: int, word: str | None, begins: str
) -> None:
    (record,) = records({"polyak": found_of(errors, photos)}, 1.0).values()
    assert record["verdict"] == word
    assert record["by_seed"] == pytest.approx([(b - a) / photos for a, b in errors])
    assert verdict.of_replication(record).startswith(begins)
    if word is None:
        assert record["low"] is None and "takes at least 3 seeds to say" in (
            verdict.of_replication(record)
        )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), min_size=1, max_size=6))
def test_a_record_says_what_the_numbers_say(errors: list[list[int]]) -> None:
    found = found_of(errors, 60)
    (record,) = json.loads(json.dumps(records({"": found}, 2.0), allow_nan=False)).values()
    accuracy = found.measures["accuracy"]
    said = verdict.over_seeds("Polyak", accuracy, judge({"": accuracy}, 0.02)[""])
    assert verdict.of_replication(record) == said


def test_runs_that_are_no_replicates_are_refused(run: Go) -> None:
    one = run("runner=local", "train.epochs=1", "seed=45")
    with pytest.raises(UserError, match="not all different"):
        over_seeds([(one[1], one[0])] * 2)


@pytest.mark.slow
def test_nothing_is_left_of_the_seeds_of_a_run_that_was_killed(run: Go) -> None:
    _, folder = run("runner=local", "train.epochs=1", "seed=45", "seeds=2")
    (folder / "results.json").unlink()
    (folder / "progress.jsonl").touch()
    (folder / "seed-46/mine.txt").touch()
    run("runner=local", "train.epochs=1", "seed=45", "mode=centralized")
    assert [path.name for path in (folder / "seed-46").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_each_seeds_failures_are_named(run: Go) -> None:
    hostile = ["strategy.on_failure=survivors", "strategy.max_norm=1000", "train.epochs=1"]
    hostile += ["attack=scale", "attack.clients=[1]", "attack.factor=1e9", "runner=local"]
    results, _ = run(*hostile, "seed=47", "seeds=2")
    assert {*results["failures"]} == {f"seed {seed}, round 1, client 1" for seed in (47, 48)}


@pytest.mark.slow
@pytest.mark.ray
def test_ray_is_started_for_each_seed(run: Go, folder_of_photos: list[str]) -> None:
    local, folder = run(*folder_of_photos, "seeds=[42,43]", "store.enabled=false")
    before = predictions(folder / "seed-43")
    on_ray = ["runner=ray", "runner.workers=1"]
    results, _ = run(*folder_of_photos, *on_ray, "seeds=[42,43]", "store.enabled=false")
    assert results["replication"] == local["replication"]
    assert predictions(folder / "seed-43") == before
