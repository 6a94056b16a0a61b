"""Rules, sources and partitions of a user's own: docs/extending.md as it stands, and mistakes."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fedcats import plugins
from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.experiment.folders import clear
from fedcats.merging.fold import Fold
from fedcats.merging.rules import FedAvg, Polyak, Round, Rule

PAGE = Path(__file__).parents[1] / "docs/extending.md"
START = {"w": torch.zeros(2, 3), "n": torch.tensor(4)}
Go = Callable[..., tuple[dict[str, Any], Path]]
_numbers = itertools.count()


@pytest.fixture()
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """``module(text)``: a file with this text in the working folder; the module's name."""

    def write(text: str) -> str:
        name = f"mine_{next(_numbers)}"  # Python imports a name once
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return write


@pytest.fixture()
def mine(module: Callable[[str], str]) -> str:
    """The examples of the page."""
    return module("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)))


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    """``ant_0.jpg`` and so on, of two classes."""
    draw = np.random.default_rng(3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for label, name in enumerate(("ant", "bee")):
        for i in range(10):
            pixels = draw.integers(0, 120, (40, 50, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{i}.jpg")
    return folder


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"models/{name}.safetensors")


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_the_page_from_photos_to_merge(run: Go, mine: str, photos: Path, runner: str) -> None:
    results, folder = run(
        *("data=own", f"data.name={mine}:numbered", "+data.root=pictures"),
        *("partition=own", f"partition.name={mine}:by_turns", "+partition.skip=2"),
        *("mode=federated", f"runner={runner}", "train.epochs=1", "partition.num_shards=3"),
        f"strategy.rules=[fedavg,{mine}:geometric_median,{mine}:Decay]",
        "+strategy.geometric_median.steps=50",
    )
    assert results["data"]["source"] == "numbered"
    assert sum(results["data"]["test"].values()) == 5
    assert [shard["examples"] for shard in results["data"]["shards"]] == [5, 4, 4]
    own = [weights(folder, f"submodel-{client}") for client in range(3)]
    decay = Fold(Polyak(0.25))
    for state in own[:2]:
        decay.add(state, 1)
    merged = weights(folder, f"Decay@{mine}")
    for name, value in decay.result().items():
        third = value.double() + (own[2][name].double() - value.double()) / 9
        assert torch.allclose(merged[name].double(), third, rtol=1e-5, atol=1e-7), name
    models = results["models"]
    assert models[f"{mine}:Decay"]["title"] == "decay p = 2"
    assert len(models[f"{mine}:Decay"]["effective_weights"]) == 3
    assert "effective_weights" not in models[f"{mine}:geometric_median"]

    def distance(state: dict[str, torch.Tensor]) -> float:
        floats = [name for name, value in state.items() if value.is_floating_point()]
        return sum(
            sum((state[n].double() - one[n].double()).square().sum() for n in floats).sqrt().item()
            for one in own
        )

    median = weights(folder, f"geometric_median@{mine}")
    assert distance(median) < distance(weights(folder, "fedavg"))
    assert "geometric_median" in (folder / "report.html").read_text()
    clear(folder)  # all that a run writes is known, and nothing else
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_the_page_in_python_and_in_a_grid(run: Go, mine: str, tmp_path: Path) -> None:
    tiny = ["runner=local", "mode=federated", "model.name=squeezenet1_1", "model.weights=none"]
    tiny += ["data.train_per_class=6", "data.test_per_class=4", "partition.num_shards=2"]
    tiny += ["train.epochs=1", "save_models=all"]
    main, decay = (plugins.find("rules", "", f"{mine}:{name}") for name in ("main", "Decay"))
    results = main(tmp_path / "one", *tiny)
    assert {"fedavg", "gentle"} <= results["models"].keys()
    assert results["models"]["gentle"]["title"] == "decay p = 0.5"
    again, _ = run(
        *(*tiny, "mode=merge", f"merge.rules=[polyak,{mine}:Decay]", "merge.betas=[0.25]"),
        *("+strategy.Decay.power=2", "merge.orders=[partition]"),
    )
    # A rule is tried on clients that were trained before.
    assert not {"submodel/0", "submodel/1"} & {*again["store"]["trained"]}
    rows = {row["model"]: row for row in again["grid"]["rows"]}
    assert decay(2.0).step(2, 1, 2) == 0.25  # so the second of two clients is Polyak's
    assert rows[f"{mine}:Decay"]["loss"] == rows["polyak"]["loss"]
    assert (tmp_path / "run" / rows[f"{mine}:Decay"]["predictions"]).is_file()


# --- mistakes ---------------------------------------------------------------------------------

RULES = """
import torch
from fedcats.merging.rules import Accumulator, Merge, Rule, FoldRule

def broken(updates, examples, start):
    return {k: v / nothing for k, v in start.items()}

def leaves(updates, examples, start):
    raise SystemExit(0)

def nan(updates, examples, start):
    return start | {"w": start["w"] * torch.nan}

def shape(updates, examples, start):
    return start | {"w": start["w"][0]}

def dtype(updates, examples, start):
    return start | {"w": start["w"].double()}

def lacks(updates, examples, start):
    return {"w": start["w"]}

def nothing_(updates, examples, start):
    pass

def numbers(updates, examples, start):
    return {k: 1.0 for k in start}

def asks(updates, examples, start, clip):
    return start

def two(updates, examples):
    return start

def changes(updates, examples, start):
    for value in start.values():
        value += 1
    return {k: updates[0][k] for k in updates[0]}

class Unfinished(Rule):
    pass

class NoStep(FoldRule):
    def step(self, i, examples, total):
        return float("nan")

class Lies(Rule):
    def begin(self, server_round):
        class Own(Accumulator):
            def add(self, update, examples, file):
                self.update = update
            def finish(self):
                return Merge(self.update, [0.5], "fedavg")
        return Own()

five = 5
"""


def rule_of(module: str, name: str, *more: str) -> Rule:
    config = load(compose_config([f"strategy.rules=[fedavg,{module}:{name}]", *more]))
    return config.rules[f"{module}:{name}"]


def merge(rule: Rule, folder: Path) -> Any:
    now = Round(START)
    begun = [now.begin(one) for one in (rule, FedAvg())]
    for i in range(3):
        state = {"w": torch.full((2, 3), float(i)), "n": torch.tensor(i)}
        safetensors.torch.save_file(state, folder / f"{i}.safetensors")
        now.add(state, i + 1, folder / f"{i}.safetensors")
    return [one.finish() for one in begun]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"NameError: name 'nothing' is not defined \(.*mine_\d+\.py:6\)$"),
        ("leaves", r"SystemExit: 0 \(.*:9\)$"),
        ("nan", "of what it gives, w has values that are not finite"),
        ("shape", r"of what it gives, w has shape \(3,\), not \(2, 3\)"),
        ("dtype", r"of what it gives, w has dtype torch.float64, not torch.float32"),
        ("lacks", r"of what it gives, wrong keys: missing \['n'\]"),
        ("nothing_", "it gives a NoneType, not a dict of tensors"),
        ("numbers", "it gives a dict, not a dict of tensors"),
        ("asks", r"asks\(updates, examples, start, clip\): missing a required argument: 'clip'"),
        ("two", r"two\(updates, examples\): too many positional arguments"),
        ("Unfinished", r"TypeError: Can't instantiate abstract class Unfinished"),
        ("NoStep", "w has values that are not finite"),
        ("five", "is no rule, but int; allowed are a function"),
        ("torch", "is no rule, but module"),
        ("gone", r"mine_\d+ \(.*mine_\d+\.py\) has no gone"),
    ],
)
def test_what_is_wrong_with_a_rule_is_one_line(
    module: Callable[[str], str], tmp_path: Path, name: str, message: str
) -> None:
    there = module(RULES)
    with pytest.raises(UserError, match=message) as caught:
        merge(rule_of(there, name), tmp_path)
    assert str(caught.value).startswith(f"strategy.rules={there}:{name}")
    assert "\n" not in str(caught.value)


def test_a_rule_cannot_spoil_what_others_start_from(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    own, fedavg = merge(rule_of(module(RULES), "changes"), tmp_path)
    assert own.state["w"].sum() == 0
    assert START["w"].sum() == 0
    assert fedavg.state["w"][0, 0] == pytest.approx(8 / 6)


def test_only_a_real_folds_steps_name_predictions(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    own, fedavg = merge(rule_of(module(RULES), "Lies"), tmp_path)
    assert (own.steps, own.key) == ((), "")
    assert own.state["w"][0, 0] == 2
    assert fedavg.steps == pytest.approx([1.0, 2 / 3, 0.5])


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("", "strategy.rules=[no_such:rule]", "there is no module no_such in /"),
        ("", "strategy.rules=[random:rule]", r"random \(.*random.py\) has no rule"),
        ("", "strategy.rules=[sys:rule]", r"sys \(built into Python\) has no rule"),
        ("", "strategy.rules=[random.x:rule]", "there is no module random.x in"),
        ("", "strategy.rules=[a-b:rule]", "allowed is module:name, such as"),
        ("", "strategy.rules=[':rule']", "allowed is module:name, such as"),
        ("", "strategy.rules=[mine]", "allowed is a list of polyak"),
        ("def f(:", "strategy.rules=[M:f]", r"SyntaxError: .*\(.*mine_\d+\.py:1\)"),
        ("import no_such", "strategy.rules=[M:f]", r"ModuleNotFoundError: .*no_such.*\.py:1\)"),
        ("1 / 0", "partition.name=M:f", r"ZeroDivisionError: division by zero \(.*\.py:1\)"),
        ("def f(u, e, s): 0", "+strategy.f.x=1 strategy.rules=[M:f]", "unexpected keyword.*'x'"),
        ("f = 5", "partition.name=M:f", "is a int; allowed is a function"),
        ("f = 5", "data=own data.name=M:f", "is a int; allowed is a function"),
        ("def f(labels, num_shards, seed): 0", "+partition.x=1 partition.name=M:f", "keyword.*'x'"),
        ("def f(seed): 0", "data.name=M:f", "unexpected keyword argument 'train_per_class'"),
        ("def f(seed): 0", "data=own data.name=M:f data.max_bad_fraction=2", "a number from 0 to"),
        ("def f(l, n, s): 0", "partition.name=M:f partition.num_shards=0", "a number from 1"),
        ("", "partition.name=nope", "allowed are paper, .*sites, module:name"),
        ("", "runner.name=a:b", "runner.name=a:b: allowed are ray, local, flwr$"),
    ],
)
def test_what_is_wrong_with_a_name_is_one_line(
    module: Callable[[str], str], text: str, override: str, message: str
) -> None:
    there = module(text)
    with pytest.raises(UserError, match=message.replace("M:f", f"{there}:f")) as caught:
        load(compose_config(override.replace("M:f", f"{there}:f").split()))
    assert "\n" not in str(caught.value)
    key = override.split()[-1].partition("=")[0].split(".")[0]
    assert str(caught.value).startswith((key, "data", "partition", "strategy"))


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("[[0, 1], [2, 3]]", None),
        ("np.array_split(np.arange(9, -1, -1), 2)", None),
        ("[[0, 1]]", r"gives 1 shards; partition.num_shards=2"),
        ("[[0, 1], []]", r"shard 1 is float64 \(0,\)"),
        ("[[0, 1], [0.5]]", r"shard 1 is float64 \(1,\)"),
        ("[[0, 1], [[2]]]", r"shard 1 is int64 \(1, 1\)"),
        ("[[0, 1], [1]]", "are not disjoint, or not all from 0 to 9"),
        ("[[0, 1], [10]]", "are not disjoint, or not all from 0 to 9"),
        ("[[0, 1], [-1]]", "are not disjoint, or not all from 0 to 9"),
        ("None", "TypeError: 'NoneType' object is not iterable"),
        ("labels.nothing", r"AttributeError: .*nothing.*\(.*mine_\d+\.py:3\)$"),
    ],
)
def test_what_a_partition_gives_is_checked(
    module: Callable[[str], str], gives: str, message: str | None
) -> None:
    there = module(f"import numpy as np\ndef f(labels, num_shards, seed):\n    return {gives}\n")
    config = load(compose_config([f"partition.name={there}:f", "partition.num_shards=2"]))
    labels = np.arange(10) % 2
    if message is None:
        shards = config.partition(labels, 0)
        assert all(shard.dtype == np.int64 and (np.diff(shard) > 0).all() for shard in shards)
        return
    with pytest.raises(UserError, match=message) as caught:
        config.partition(labels, 0)
    assert str(caught.value).startswith(f"partition.name={there}:f: ")


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("None", "gives a NoneType; allowed is a fedcats.data.Source"),
        ("source(2, [0, 1], [0, 1])", None),
        ("source(2, [0, 1], [1])", r"the test items have the labels \[1\]"),
        ("source(2, [0, 1, 2], [0, 1])", r"the train items have the labels \[0, 1, 2\]"),
        ("source(1, [0], [0])", r"positions in two classes or more"),
        ("source(2, [0, 1], nothing)", r"NameError: .*mine_\d+\.py:7\)$"),
    ],
)
def test_what_a_source_gives_is_checked(
    module: Callable[[str], str], tmp_path: Path, gives: str, message: str | None
) -> None:
    there = module(f"""from fedcats.data import Item, Source
def source(n, train, test):
    items = [tuple(Item(str(i), label) for i, label in enumerate(one)) for one in (train, test)]
    classes = tuple(map(str, range(n)))
    return Source("s", "", classes, *items, read=lambda path: path.nothing, fingerprint="same")
def f(seed):
    return {gives}
""")
    config = load(compose_config(["data=own", f"data.name={there}:f"]))
    with pytest.raises(UserError) as caught:
        source = config.data.open(0, tmp_path)
        assert source.fingerprint is None  # its text may change: the files are read
        source.read("a")
    message = message or r"AttributeError: 'str' object has no attribute 'nothing' \(.*\.py:5\)$"
    assert re.search(message, str(caught.value))
    assert str(caught.value).startswith(f"data.name={there}:f: ")


def test_names_of_packages_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "packaged"

        def load(self) -> Any:
            return lambda updates, examples, start: start

    def points(group: str, name: str = "packaged") -> list[Point]:
        return [Point()] if (group, name) == ("fedcats.rules", "packaged") else []

    monkeypatch.setattr(plugins, "entry_points", points)
    monkeypatch.setattr(plugins, "_registered", {})
    assert load(compose_config(["strategy.rules=[packaged]"])).rules["packaged"].label == "packaged"
    plugins.register("partitions", "halves", lambda labels, num_shards, seed: [[0], [1]])
    halves = load(compose_config(["partition.name=halves", "partition.num_shards=2"])).partition
    assert [shard.tolist() for shard in halves([0, 1], 0)] == [[0], [1]]
    for kind, name in (("rules", "a b"), ("rule", "a")):
        with pytest.raises(UserError, match="allowed are an identifier and rules, sources"):
            plugins.register(kind, name, None)


def test_the_command_finds_a_module_beside_it(module: Callable[[str], str], tmp_path: Path) -> None:
    there = module("def mean(updates, examples, start):\n    raise ValueError('oh')\n")
    command = [sys.executable, "-P", "-m", "fedcats.cli", f"strategy.rules=[{there}:mean,x]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedcats: strategy.rules=")
    assert done.stderr.count("\n") == 1
    command[-1] = f"strategy.rules=[{there}:median]"
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    assert done.stderr.endswith(f"({tmp_path}/{there}.py) has no median\n")
