"""Several seeds in one run: whole experiments, nothing trained twice, one verdict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, check_results

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.config.schema import Draws
from fedcats.errors import UserError
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


def test_the_drawings_are_those_of_seed(run: Go) -> None:
    results, folder = run("runner=local", "train.epochs=1", "seed=45", "seeds=2", "vary=training")
    other = check_results(folder / "seed-46")
    assert other["data"]["digest"] == results["data"]["digest"]
    assert other["data"]["shards"] == results["data"]["shards"]
    assert other["weights"]["sha256"] == results["weights"]["sha256"]
    assert {*keys(other).values()}.isdisjoint(keys(results).values())
