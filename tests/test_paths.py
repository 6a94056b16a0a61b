"""Every path that exists is taken as the shell gives it; what Hydra understands stays Hydra's."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import python
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedcats.config import paths
from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.home import home

NAMES = [
    *("My Photos", "Photos (1)", "cats & dogs", "Bob's photos", "a,b", "run=5", "100%", "C# pets"),
    *("me@home", "a+b", "[old]", "{x}", "猫と犬", "Øre", "a;b", "a!b", "-x", "x ", " x", "tilde~1"),
    *("do$lar", "${data}", "\\${data}", "a:b", "q?", "back\\slash", "end\\", 'say "hi"', "null"),
    *("true", "1_000", "1e3", "007", "new\nline", "caf\udce9", "'quoted'", "a\\,b", "...", "*"),
]
LETTERS = "ab\\'\"${}[],= ()~#\n猫%:.?*\udce9;"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(LETTERS), min_size=1))
def test_what_is_quoted_comes_out_as_it_was(text: str) -> None:
    override = OverridesParser.create().parse_override(f"a={paths.quote(paths.literal(text))}")
    assert OmegaConf.create({"a": override.value()}).a == ("./???" if text == "???" else text)
    again = OverridesParser.create().parse_override(f"a={override.get_value_element_as_str()}")
    assert again.value() == override.value()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def root(*overrides: str) -> str:
    found = load(compose_config(["data=folder", *overrides])).data.root
    assert isinstance(found, str)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_folder_that_exists_can_be_named(here: Path, name: str) -> None:
    (here / name).mkdir()
    assert root(f"data.root={name}") == root(f"++data.root={name}") == name
    assert root(paths.read(f"data.root={name}")) == name  # a second reading changes nothing
    assert root(f"data.root={here / name}") == root(f"data.root=~/{name}") == str(here / name)


def test_what_hydra_understands_stays_hydras(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS", "~/x")
    assert root("data.root=${oc.env:PHOTOS}") == f"{here}/x"
    assert root("data.root=~/${oc.env:PHOTOS}") == f"{here}/~/x"
    assert root("data.root='a,b'") == root("data.root=a\\,b") == "a,b"
    assert root("data.root=~no-such-user/x") == "~no-such-user/x"
    for unchanged in ("data.root=a,b", "data.root=choice(a,b)", "data.root=null", "train.lr=1,2"):
        assert paths.read(unchanged) == unchanged
    for name in ("a", "b (1)"):
        (here / name).mkdir()
    assert paths.read("data.root=a,b (1)") == "data.root='a','b (1)'"
    (here / "a,b (1)").mkdir()
    assert paths.read("data.root=a,b (1)") == "data.root='a,b (1)'"
    assert paths.read("hydra.run.dir=~/a (1)/${now:%Y}") == "hydra.run.dir='~/a (1)/${now:%Y}'"
    assert paths.read("hydra.sweep.dir=a,b") == "hydra.sweep.dir='a,b'"


@pytest.mark.parametrize("key", paths.KEYS)
@pytest.mark.parametrize("value", ["", "''", '""'])
def test_an_empty_path_is_no_path(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: a value is needed"):
        compose_config([f"{key}={value}"])


def test_an_empty_variable_is_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS", "")
    with pytest.raises(UserError, match=r"^data\.root: a value is needed"):
        root("data.root=${oc.env:PHOTOS}")


def test_weights_and_home_in_ones_own_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "w (1).pth").touch()
    config = load(compose_config(["model.weights=~/w (1).pth"]))
    assert config.model.weights == f"{here}/w (1).pth"
    monkeypatch.setenv("FEDCATS_HOME", "~/fedcats")
    assert home() == here / "fedcats"


def mine(folder: Path) -> Path:
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    return folder


@pytest.mark.parametrize("how", [
    lambda folder: ["--config-dir", str(folder)],
    lambda folder: ["-cd", folder.name],
    lambda folder: [f"hydra.searchpath=[file://{folder}]"],
])  # fmt: skip
def test_the_check_looks_where_hydra_looks(
    here: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path], list[str]]
) -> None:
    from fedcats.cli.job import check

    check([*how(mine(here / "my")), "experiment=mine"])
    check(["-m", *how(here / "my"), "experiment=mine,none"])
    with pytest.raises(UserError, match="experiment/mine"):
        check(["experiment=mine"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir", "nowhere"], "--config-dir nowhere: not a folder"),
        (["hydra.searchpath=[file:///nowhere]"], "/nowhere is not available"),
        (["--config-name", "nowhere"], "primary config 'nowhere'"),
        (["+betta=0.1"], "betta: no such key"),
        (["data=folder", "data.root=a,b"], "data.root=a,b: several values; -m runs each"),
    ],
)
def test_places_that_are_not_there(arguments: list[str], message: str) -> None:
    from fedcats.cli.job import check

    with pytest.raises(UserError, match=message):
        check(arguments)


@pytest.mark.slow
def test_the_command_takes_raw_paths(tmp_path: Path) -> None:
    """Past the check, into the job: it is the data that are refused, by their right name."""
    names = ["a, (1)", "${x}'s"]
    for name in names:
        (tmp_path / name).mkdir()
    command = [python(), "-m", "fedcats.cli", "-m", "data=folder", "runner=local"]
    given_as = ",".join(str(tmp_path / name) for name in names[1:])
    done = subprocess.run(
        [*command, f"data.root={given_as}", "hydra.sweep.dir=s (1),2"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"job 0: data.root: no class folders in {tmp_path}/{names[1]};" in done.stderr
    assert (tmp_path / "s (1),2" / "0").is_dir()
    assert not any((tmp_path / names[1]).iterdir())
