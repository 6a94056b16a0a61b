"""Random configurations: each is accepted, or refused in one line.

So is each random command, in any environment; what it would train is left out. How many of both is
``FEDCATS_RANDOM``, which ones ``FEDCATS_SEED``; pytest's first lines say both.
"""

import functools
import io
import os
import random
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import RANDOM, RANDOM_SEED
from omegaconf import OmegaConf

from fedcats.cli import run as cli_run
from fedcats.config.compose import compose_config, conf_dir
from fedcats.config.load import load
from fedcats.config.schema import Config
from fedcats.errors import UserError
from fedcats.experiment import baseline_process
from fedcats.experiment import run as experiment_run
from fedcats.experiment.inputs import deal_out

GROUPS = {
    path.name: sorted(file.stem for file in path.glob("*.yaml"))
    for path in conf_dir().iterdir()
    if path.is_dir() and path.name != "hydra"
}
NASTY = [
    *("0", "1", "2", "3", "10", "11", "-1", "0.5", "1.0", "1.5", "-0.1", "1e-9", "1e30", "nan"),
    *("inf", "-inf", "null", "true", "false", "''", "text", "a b", "ä", "[]", "[0]", "[0,1,2]"),
    *("[1,1]", "[[1]]", "{}", "{a: 1}", "{train: [3,4], test: [1,1]}", "{train: [], test: []}"),
    *("{train: null}", "9" * 30, "0x10", "1_000", "${seed}", "${nothing}", "???", "'${'", "*"),
    *(
        "[polyak]",
        "[krum,median]",
        "[fedavgm,fedadam]",
        "partition",
        "reversed",
        "auto",
        "fail",
        "survivors",
        "cpu",
    ),
    *("photos", "../x", "/dev/null", "model.pth", "[polyak,[fedavg]]", "[null]", "[nan]"),
]


@functools.cache
def all_keys() -> list[str]:
    """Every key of every option, such as ``partition.alpha``, and some that do not exist."""
    found = {"data", "nothing", "train.nothing", "train.epochs.deeper", "data.counts.train"}
    for file in conf_dir().rglob("*.yaml"):
        group = "" if file.parent == conf_dir() else f"{file.parent.name}."
        for key, value in dict(OmegaConf.to_container(OmegaConf.load(file)) or {}).items():
            key = str(key)
            if key not in ("defaults", "hydra") and "hydra" not in group:
                nested = [f".{name}" for name in value] if isinstance(value, dict) else [""]
                prefix = "" if group == "experiment." else group
                found |= {f"{prefix}{key}{name}" for name in nested}
    return sorted(found)


def draw(chance: random.Random, keys: list[str]) -> list[str]:
    overrides = [
        f"{group}={chance.choice(options)}"
        for group, options in sorted(GROUPS.items())
        if chance.random() < 0.3
    ]
    needs_root = {"data=folder", "data=kaggle", "experiment=paper"} & {*overrides}
    if chance.random() < (0.9 if needs_root else 0.05):
        overrides.append("++data.root=photos")
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        prefix = chance.choice(["", "", "", "", "", "+", "++", "~"])
        overrides.append(f"{prefix}{chance.choice(keys)}={chance.choice(NASTY)}")
    return overrides


def build(config: Config) -> None:
    """All that a run makes of its configuration before it reads an image."""
    assert config.train.lr_at(0) > 0
    for rule in [*config.rules.values(), *config.grid]:
        assert rule.label
        for one in rule.choices([0.5]) if rule.is_fold else []:
            assert 0 <= one.step(2, 3, 6) <= 1
    if config.partition.name != "sites" and config.partition.num_shards <= 1000:
        labels = np.repeat([0, 1], [60, 70])
        shards = deal_out(config, SimpleNamespace(train=SimpleNamespace(labels=labels)))  # type: ignore[arg-type]
        assert len(shards) == config.partition.num_shards
        together = np.concatenate(shards)
        assert len(np.unique(together)) == len(together)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_configuration_ends_in_a_traceback(part: int) -> None:
    chance = random.Random(f"{RANDOM_SEED} configuration {part}")
    keys = all_keys()
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(RANDOM // 4):
        overrides = draw(chance, keys)
        try:
            build(load(compose_config(overrides)))
            outcomes["accepted"] += 1
        except UserError as error:
            assert str(error).strip()
            assert "\n" not in str(error), overrides
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{overrides}: {type(error).__name__}: {error}") from error
    assert all(outcomes.values()), outcomes


VARIABLES = [
    {}, {"COLUMNS": "20"}, {"TERM": "dumb", "NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"PATH": ""},
    {"TMPDIR": "/does/not/exist"}, {"FEDCATS_HOME": ""}, {"FEDCATS_HOME": "~/x"}, {"HOME": ""},
    {"FEDCATS_HOME": "/dev/null"}, {"OMP_NUM_THREADS": "0"}, {"CUDA_VISIBLE_DEVICES": ""},
]  # fmt: skip
PATHS = [
    *("My Photos (1)", "a,b", "x=y", "${x}", "~/x", "", "caf\udce9", "'", "猫", "back\\", "{", " "),
    *("/proc/x", "/dev/null", "x" * 300, "${oc.env:HOME}", "${now:%Y}", "~", "null", "[1,2]"),
]
STREAMS = ["file", "full", "closed", "left"]


def draw_command(chance: random.Random, keys: list[str]) -> list[str]:
    """A configuration, here and there a path of any kind, and in one of four a sweep."""
    overrides = [one for one in draw(chance, keys) if "runner" not in one]  # starts a SuperLink
    for key in ("data.root", "model.weights", "hydra.run.dir", "hydra.sweep.dir"):
        if chance.random() < 0.15:
            overrides.append(f"{key}={chance.choice(PATHS)}")
    if chance.random() < 0.25:
        overrides += ["-m", chance.choice(["seed=1,2", "strategy.beta=0.1,2", "data.root=a,b"])]
        overrides[0], overrides[-2] = overrides[-2], overrides[0]
    if chance.random() < 0.1:
        overrides.append(chance.choice(["hydra.job.chdir=true", "+betta=1", "--cfg=job", "--help"]))
    return overrides


def stream(kind: str, descriptor: int, encoding: str) -> io.TextIOWrapper | None:
    """Make the descriptor something that cannot, or may not, be written."""
    reader, writer = os.pipe()
    path = {"file": "said", "full": "/dev/full"}.get(kind)
    if path:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    elif kind == "left":
        os.dup2(writer, descriptor)
    else:
        os.close(descriptor)
    os.close(reader)
    os.close(writer)
    return None if kind == "closed" else open(descriptor, "w", encoding=encoding, closefd=False)


def finish(chance: random.Random, arguments: list[str]) -> int:
    """In a process of its own: the command; its exit code, or 99 and a file with the traceback."""
    os.environ.update(chance.choice(VARIABLES))
    encoding = chance.choice(["utf-8", "ascii", "latin-1", "cp1252"])
    sys.stdout = sys.__stdout__ = stream(chance.choice(STREAMS), 1, encoding)  # type: ignore
    sys.stderr = sys.__stderr__ = stream(chance.choice(STREAMS), 2, encoding)  # type: ignore
    sys.argv = ["fedcats", *arguments]

    def run(raw: object, folder: Path, **_: object) -> dict[str, object]:
        print(f"Käse − 猫 \udcff {folder}")
        return {"models": {}}

    baseline_process.start = experiment_run.run = run  # type: ignore
    try:
        cli_run.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        Path("trace").write_text(f"{arguments} {traceback.format_exc()}", errors="replace")
        return 99
    for one in (sys.stdout, sys.stderr):
        one.flush()
    return code


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_command_ends_in_a_traceback_whatever_the_environment(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{RANDOM_SEED} command {part}")
    keys = all_keys()
    monkeypatch.chdir(tmp_path)
    codes = []
    for _ in range(RANDOM // 4):
        arguments = draw_command(chance, keys)
        child = os.fork()
        if not child:
            code = 98
            try:
                code = finish(chance, ["runner=local", *arguments])
            finally:
                os._exit(code)
        chance.random()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert codes[-1] in (0, 1, 2), (arguments, Path("trace").read_text()[-2000:])
        said = Path("said").read_text(errors="replace") if Path("said").exists() else ""
        assert "Traceback" not in said, arguments
    assert {0, 2} <= {*codes}
