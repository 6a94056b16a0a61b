"""Every YAML composes and is checked; mistakes are refused in one line with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedcats import plugins
from fedcats.config.compose import compose_config, conf_dir
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.models import build

ROOT = ["data.root=photos"]
EXTRA = {
    "data/folder": ROOT,
    "data/kaggle": ROOT,
    "data/hub": ["data.repo=photos"],
    "experiment/paper": ROOT,
    "data/own": ["data.name=some"],
    "partition/own": ["partition.name=some"],
}
PHOTOS = ["data=folder", *ROOT]
OPTIONS = sorted(
    f"{path.parent.relative_to(conf_dir())}/{path.stem}"
    for path in conf_dir().glob("*/*.yaml")
    if path.parent.name != "hydra"
)


def test_there_is_a_yaml_for_every_group() -> None:
    groups = {option.split("/")[0] for option in OPTIONS}
    expected = {
        "data",
        "partition",
        "model",
        "train",
        "strategy",
        "attack",
        "privacy",
        "runner",
        "experiment",
        "paper",
        "search",
    }
    assert groups == expected


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})
    plugins.register("sources", "some", lambda seed: None)
    plugins.register("partitions", "some", lambda _, n, seed: [[i] for i in range(n)])
    group, name = option.split("/")
    config = load(compose_config([f"{group}={name}", *EXTRA.get(option, [])]))
    assert build.build(config.model.name, 2)
    assert config.train.epochs >= 1
    assert [rule.name for rule in config.rules.values()] == config.strategy.rules
    shards = config.partition([0, 1] * 15_000, seed=0)
    assert len(shards) == 10


def test_every_option_says_what_it_is() -> None:
    for path in conf_dir().rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("name", ["kaggle", "petimages", "cats_vs_dogs"])
def test_the_papers_own_photos_come_in_its_counts(name: str) -> None:
    config = load(compose_config([f"data={name}", *EXTRA.get(f"data/{name}", [])]))
    assert config.data.counts == {"train": [999, 1004], "test": [506, 507]}
    config = load(
        compose_config([f"data={name}", *EXTRA.get(f"data/{name}", []), "data.counts=null"])
    )
    assert config.data.counts is None


def test_defaults_are_the_papers() -> None:
    config = load(compose_config(["experiment=paper", "data.root=photos"]))
    assert (config.partition.num_shards, config.partition.per_class) == (10, 99)
    train = config.train
    assert (train.lr, train.batch_size, train.epochs, train.momentum) == (0.001, 4, 10, 0.0)
    assert (config.rules["polyak"].record, config.rounds) == ({"beta": 0.5}, 1)
    assert config.model.name == "alexnet"
    assert config.strategy.rules == ["polyak", "fedavg"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=nan", "train.lr=nan: allowed is a number above 0"),
        ("train.lr=0", "train.lr=0.0: allowed is a number above 0"),
        ("strategy.beta=1.5", "strategy.beta=1.5: allowed is a number from 0 to 1 | auto"),
        ("strategy.beta=auto hold_out=0", "hold_out=0: strategy.beta=auto chooses on held-out"),
        ("hold_out=1", "hold_out=1: allowed is null or a number from 0 to below 1"),
        ("mode=merge strategy.start=global", "strategy.start=global: mode=merge knows only first"),
        ("strategy.start=zero", "strategy.start=zero: allowed is first | global"),
        ("mode=merge rounds=2", "rounds=2: mode=merge merges once; allowed is 1"),
        ("mode=merge merge.betas=[0.5,2]", "merge.betas=[0.5, 2.0]: allowed is a list of"),
        ("merge.orders=[[0,1]]", "merge.orders=[0, 1]: a list must name each client 0 .. 9 once"),
        ("rounds=-3", "rounds=-3: allowed is a number from 1"),
        ("rounds=two", "rounds=two: allowed is a number from 1"),
        ("seed=1.5", "seed=1.5: allowed is a number from 0"),
        ("train.batch_size=0", "train.batch_size=0: allowed is a number from 1"),
        ("train.epochs=ten", "train.epochs: Value 'ten' of type 'str' could not be converted"),
        ("train.nesterov=true", "train.nesterov=true: needs train.momentum above 0"),
        ("train.momentun=0.9", "train.momentun: no such key"),
        ("momentum=0.9", "momentum: no such key"),
        ("data=imagenet", "Could not find 'data/imagenet'; allowed are"),
        ("data=folder", "data.root: a value is needed, data.root="),
        ("mode=both", "mode=both: allowed is compare | federated | centralized"),
        ("strategy.rules=[mean]", "strategy.rules=['mean']: allowed is a list of"),
        (
            "strategy.fedavgm.momentum=1",
            "strategy.fedavgm.momentum=1.0: allowed is a number from 0 to",
        ),
        ("strategy.fedadam.tau=0", "strategy.fedadam.tau=0.0: allowed is a number above 0"),
        ("strategy.fedadam.eta=1", "strategy.fedadam.eta"),
        ("strategy.fedadam=1", "strategy.fedadam"),
        ("mode=merge merge.rules=[mean]", "merge.rules=['mean']: allowed is a list of polyak"),
        ("mode=merge merge.rules=[krum] partition.num_shards=4", "merge.rules: krum with"),
        ("strategy.rules=[scale] hold_out=0", "hold_out=0: strategy.scale.g=auto chooses on"),
        ("strategy.scale.g=-1", "strategy.scale.g=-1: allowed is a number of at least 0 | auto"),
        ("strategy.rules=[lda] rounds=2", "rounds=2: lda gives a head, from which no client"),
        ("strategy.ridge.penalty=0", "strategy.ridge.penalty=0: allowed is a number above 0"),
        ("strategy.lda.features=conv", "strategy.lda.features=conv: allowed is pooled | flat"),
        ("strategy.dare.drop=1", "strategy.dare.drop=1.0: allowed is a number between 0 and 1"),
        ("strategy.order=[0,1]", "strategy.order=[0, 1]: a list must name each client 0 .. 9"),
        ("strategy.order=random", "strategy.order=random: allowed is partition | reversed"),
        ("model.weights=nowhere.pth", "model.weights=nowhere.pth: allowed is auto | imagenet"),
        ("partition.num_shards=0", "partition.num_shards=0: allowed is a number from 1"),
        ("runner.threads=0", "runner.threads=0: allowed is a number from 1"),
        ("runner.address=auto", "runner.address=auto: allowed is null or host:port"),
        ("store.max_gb=0", "store.max_gb=0.0: allowed is a number above 0"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(compose_config(override.split()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*PHOTOS, "data.limit=0"], "data.limit=0: allowed is null or a number from 1"),
        (
            [*PHOTOS, "data.counts={train:[9]}"],
            "data.counts={'train': [9]}: allowed is null or {",
        ),
        (
            [*PHOTOS, "data.counts={train:[9,0],test:[1,1]}"],
            "allowed is null or {train: [..]",
        ),
        ([*PHOTOS, "data.counts=9"], "data.counts: "),
        ([*PHOTOS, "data.test_fraction=1"], "data.test_fraction=1.0: allowed is a number between"),
        ([*PHOTOS, "data.keep_duplicates=maybe"], "data.keep_duplicates: "),
        (["data=kaggle", *ROOT, "data.limit=9"], "only one of data.limit and data.counts can be"),
        (["data=hub"], "data.repo: a value is needed"),
        (["partition=dirichlet", "partition.alpha=0"], "partition.alpha=0.0: allowed is a number"),
        (["partition=square", "partition.min_size=0"], "partition.min_size=0: allowed is a number"),
        (["partition=square", "partition.alpha=1"], "partition.alpha: no such key"),
    ],
)
def test_mistakes_in_sources_and_partitions(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(compose_config(overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def fedcats(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedcats.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.lr=nan"],
        ["-m", "strategy.beta=0.1,1.5"],  # before the first job starts
        ["trainlr=1"],
        ["train.lr=[1"],
        ["experiment=paper", "data.root=nowhere"],
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = fedcats(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fedcats: ")


def test_help_and_cfg(tmp_path: Path) -> None:
    shown = fedcats("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "fedcats experiment=paper data.root=DIR" in shown.stdout
    assert "strategy: " in shown.stdout
    config = fedcats("--cfg", "job", "strategy=fedavg", cwd=tmp_path)
    assert config.returncode == 0
    assert "- fedavg" in config.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_starts_without_torch_flower_and_ray() -> None:
    code = (
        "import sys, fedcats.cli.job; print({'torch', 'flwr', 'ray', 'sklearn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", ["run", "data", "store"])
def test_help_comes_before_pytorch(command: str) -> None:
    code = f"""
import contextlib, sys
from fedcats.cli.{command} import main
sys.argv = ["fedcats", "--help"]
with contextlib.suppress(SystemExit):
    main()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage" in done.stdout or "Powered by Hydra" in done.stdout
