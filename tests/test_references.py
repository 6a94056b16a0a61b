"""What is trained in one place: the baseline, and the model with as many steps as a client."""

import importlib.util
import itertools
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import plain_recipe
from conftest import TINY, run_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.experiment.tasks import Tasks
from fedcats.report import split, tables, verdict
from fedcats.results import Results
from fedcats.seeding import derive_seed
from fedcats.training.loop import PlainStep, batches, train
from fedcats.training.recipe import Epoch

BOTH = "reference=[full,same_steps]"
Go = Callable[..., tuple[Results, Path]]


class Photos:
    """Of which only the numbers matter."""

    def __init__(self, n: int) -> None:
        self.labels = np.arange(n) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Any) -> torch.Tensor:
        return torch.zeros(len(indices), 3, 1, 1, dtype=torch.uint8)


class Seen(PlainStep):
    """Remembers learning rates and the sizes of batches."""

    def __init__(self, model: nn.Module, recipe: Any) -> None:
        super().__init__(model, recipe)
        self.seen: list[tuple[float, int]] = []

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.seen.append((self._sgd.lr, len(y)))
        return torch.zeros(())


def steps_of(n: int, recipe: Any, **options: Any) -> tuple[list[tuple[float, int]], list[int]]:
    """Learning rate and batch size of each step, and the steps of each epoch."""
    made: list[Seen] = []

    def step_for(model: nn.Module, recipe: Any) -> Seen:
        made.append(Seen(model, recipe))
        return made[0]

    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    epochs = train(model, Photos(n), recipe, 5, step_for=step_for, **options)  # type: ignore[arg-type]
    return made[0].seen, [epoch.steps for epoch in epochs]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 7), st.booleans(), st.integers(1, 4), st.integers(0, 3),
    st.data(),
)  # fmt: skip
def test_steps_end_where_they_are_told(
    n: int, size: int, drop_last: bool, epochs: int, step_size: int, data: st.DataObject
) -> None:
    recipe = plain_recipe(
        epochs=epochs, batch_size=size, drop_last=drop_last, step_size=step_size, gamma=0.5
    )
    whole, by_epoch = steps_of(n, recipe)
    each = recipe.steps(n)
    passes = [
        [*batches(n, size, drop_last, torch.Generator().manual_seed(derive_seed(5, "order", e)))]
        for e in range(epochs)
    ]
    assert by_epoch == [each] * epochs == [len(one) for one in passes]
    assert whole == [(recipe.lr_at(e), len(b)) for e, one in enumerate(passes) for b in one]
    if each * epochs >= epochs:
        steps = data.draw(st.integers(epochs, each * epochs))
        some, by_epoch = steps_of(n, recipe, steps=steps)
        assert [b for _, b in some] == [b for _, b in whole][:steps]
        assert sum(by_epoch) == steps and max(by_epoch) - min(by_epoch) <= 1
        done = tuple(Epoch(0.0, 1, count, 0.0) for count in by_epoch[:1])
        rest, _ = steps_of(n, recipe, steps=steps, done=done)
        assert rest == some[by_epoch[0] :]  # as after a stop
        assert [lr for lr, _ in some] == [
            recipe.lr_at(e) for e, count in enumerate(by_epoch) for _ in range(count)
        ]


def tasks(sizes: list[int], *overrides: str) -> Tasks:
    """Of clients with so many images each."""
    config = load(compose_config([*TINY, BOTH, f"partition.num_shards={len(sizes)}", *overrides]))
    ends = np.cumsum([0, *sizes])
    made = Tasks.__new__(Tasks)
    made.start = "start"
    made.inputs = SimpleNamespace(  # type: ignore[assignment]
        config=config, sizes=sizes, baseline=np.arange(ends[-1]),
        shards=[np.arange(*pair) for pair in itertools.pairwise(ends)], hostile=[], sites=None,
        dataset=SimpleNamespace(path="data", classes=("a", "b")), device="cpu",
        initial=SimpleNamespace(sha256="base"),
    )  # fmt: skip
    return made


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 3),
    st.integers(1, 4),
)  # fmt: skip
def test_same_steps_are_those_of_a_client(
    sizes: list[int], size: int, rounds: int, epochs: int
) -> None:
    options = [f"train.batch_size={size}", f"rounds={rounds}", f"train.epochs={epochs}"]
    made = tasks(sizes, *options, "train.proximal_mu=0.1")
    full, fewer = made.baseline(), made.same_steps()
    of_clients = [rounds * epochs * -(-one // size) for one in sizes]
    if fewer is None:
        assert round(np.mean(of_clients)) >= rounds * epochs * -(-sum(sizes) // size)
        assert list(made.references) == ["centralized"]
    else:
        assert abs(fewer.steps - np.mean(of_clients)) <= 0.5
        assert replace(fewer, name=full.name, steps=0) == full
        assert list(made.references.values()) == [full, fewer]
        assert fewer.name == "centralized (same steps)"  # `Task.fits` looks for the first word


def test_what_is_not_asked_for_is_not_trained() -> None:
    assert list(tasks([8, 8]).references) == ["centralized", "same_steps"]
    assert list(tasks([8, 8], "reference=[full]").references) == ["centralized"]
    assert list(tasks([8, 8], "mode=centralized").references) == ["centralized"]
    assert list(tasks([8, 8], "mode=federated").references) == []
    assert tasks([9]).same_steps() is None  # with one client it is the baseline
    for wrong in ("[same_steps]", "[]", "full", "[full,full]"):
        with pytest.raises(UserError, match=r"reference=.*allowed is \[full\] \| \[full, same_st"):
            tasks([8, 8], f"reference={wrong}")


def test_the_learning_rate_decays_over_all_rounds_for_both() -> None:
    made = tasks([8, 8], "rounds=3", "train.epochs=2", "train.step_size=3")
    baseline = made.baseline().recipe
    of_rounds = [made.client(0, number, "start") for number in (1, 2, 3)]
    rates = [one.recipe.lr_at(one.begins + e) for one in of_rounds for e in range(2)]
    assert rates == [baseline.lr_at(e) for e in range(6)] and len({*rates}) == 2
    assert [one.begins for one in of_rounds] == [0, 2, 4]
    # where it does not matter, the keys are those of before
    for plain in (["train.step_size=0"], ["train.step_size=9"], ["train.gamma=1.0"]):
        options = ["rounds=3", "train.epochs=2", "train.step_size=3", *plain]
        assert tasks([8, 8], *options).client(0, 3, "start").begins == 0
    recipe = plain_recipe(epochs=2, step_size=3, gamma=0.5)
    assert [lr for lr, _ in steps_of(4, recipe, begins=2)[0]] == [0.001, 0.0005]


def test_keys_without_new_effects_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcats.training import update

    said: list[dict[str, Any]] = []
    monkeypatch.setattr(update, "content_key", lambda what: said.append(what) or "key")
    images: Any = SimpleNamespace(digest="images")
    made = tasks([8, 8], "rounds=2", "train.step_size=1")
    fewer = made.same_steps()
    assert fewer is not None
    for task in (made.baseline(), made.client(0, 1, "start"), fewer, made.client(0, 2, "start")):
        task.key(images)
    before = {"kind", "start", "recipe", "seed", *update.environment(made.baseline(), images)}
    assert [{*one} - before for one in said] == [set(), set(), {"steps"}, {"begins"}]
    assert said[2]["steps"] == fewer.steps and "proximal_mu" not in said[2]["recipe"]
    assert update.Task.from_json(fewer.to_json()) == fewer and asdict(fewer)["steps"]


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Results, Path]:
    """Of a run over three seeds; trained before by nobody."""
    folder = tmp_path_factory.mktemp("seeds")
    return run_tiny(folder, *OF_PHOTOS, "seeds=[52,53,54]")


OF_PHOTOS = ["data=folder", "data.root=", "runner=local", "train.epochs=1", BOTH, "hold_out=0.3"]


@pytest.fixture(scope="module", autouse=True)
def root(photos: Path) -> None:
    OF_PHOTOS[1] = f"data.root={photos}"


@pytest.mark.slow
def test_the_two_parts_are_the_whole(three_seeds: tuple[Results, Path], run: Go) -> None:
    results, folder = three_seeds
    assert results["store"]["trained"].count("seed 53, same_steps") == 1
    steps_of = {n: m["training"]["steps"] for n, m in results["models"].items() if "training" in m}
    own = [steps for name, steps in steps_of.items() if name.startswith("submodel/")]
    assert steps_of["same_steps"] == round(np.mean(own)) < steps_of["centralized"]
    steps, apart = results["split"]["fewer_steps"], results["split"]["photos_apart"]["polyak"]
    whole = results["comparison"]["polyak"]["accuracy"]["difference"]
    parts = steps["accuracy"]["difference"] + apart["accuracy"]["difference"]
    assert parts == pytest.approx(whole)
    over, both = results["replication"]["polyak"], results["split_over_seeds"]
    parts = (both["fewer_steps"]["difference"] or 0) + (
        both["photos_apart"]["polyak"]["difference"] or 0
    )
    assert parts == pytest.approx(over["difference"])
    assert both["fewer_steps"]["verdict"] and both["photos_apart"]["fedavg"]["verdict"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for table in (split.in_one_run(results), split.over_seeds_of(results), tables.cost(results)):
        assert table is not None and tables.to_html(table) in page
    said = f"fewer steps ({steps_of['same_steps']} steps in one place instead of "
    assert said in " ".join(verdict.answer(results))
    again, _ = run(*OF_PHOTOS, "seeds=[52,53,54]")
    assert again["store"]["trained"] == []
    assert again["split_over_seeds"] == results["split_over_seeds"]
    without, _ = run(*OF_PHOTOS, "seed=52", "reference=[full]")
    assert without["store"]["trained"] == [] and "split" not in without


@pytest.mark.slow
def test_pages_are_filled_in_from_a_run(three_seeds: tuple[Results, Path], tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "docs/paper.py"
    spec = importlib.util.spec_from_file_location("paper", path)
    assert spec is not None and spec.loader is not None
    paper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paper)
    results, folder = three_seeds
    texts = {part.__name__: part(results) for part in paper.PARTS}
    texts["by_seed"] = paper.by_seed(folder, results)
    assert texts["by_seed"].count("\n") == 2 + 3 + 1
    assert texts["each_model"] == "This run has none."
    page = "".join(f"# {name}\n<!-- paper: {name} -->\nold\n<!-- /paper -->\n" for name in texts)
    filled = paper.written(page, texts)
    assert "old" not in filled and all(text.strip() in filled for text in texts.values())
    assert paper.written(filled, texts) == filled
    marked = re.findall(r"<!-- paper: (\w+) -->", path.with_suffix(".md").read_text())
    assert marked and {*marked} <= {*texts}
