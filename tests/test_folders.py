"""A run folder used again holds one run; nothing of the user's own is touched."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_DRAWINGS, python

from fedcats.errors import RunError, UserError
from fedcats.experiment.folders import claimed, clear, hold, is_job

pytestmark = pytest.mark.slow

Go = Callable[..., tuple[dict[str, Any], Path]]
HOLDER = """
import sys, pathlib
from fedcats.experiment.folders import hold
hold(pathlib.Path(sys.argv[1]))
"""


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_used_again_holds_the_last_run_only(run: Go) -> None:
    own = {"notes.txt", "models/mine.safetensors", "figures/holiday.png", "predictions/a.csv"}
    grid = [
        "figures=[png,svg,pdf]",
        "mode=merge",
        "merge.betas=[0.5]",
        "merge.orders=[partition,reversed]",
    ]
    everything = ["merge.rules=[polyak,fedavg,uniform,soup,best,ensemble]", "rounds=1"]
    folder = run("runner=local", "seed=51", *grid, *everything)[1]
    for name in own:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    run("runner=local", "seed=51", "rounds=2", "partition.num_shards=3", "figures=[pdf,png]")
    assert not {"sweep.csv", "predictions/polyak-beta0.5-partition.csv"} & files(folder)
    assert "models/submodel-2.safetensors" in files(folder)
    run("runner=local", "seed=51", "mode=federated", "strategy=fedavg", "save_models=false")
    left = files(folder)
    assert not {"models/submodel-2.safetensors", "predictions/centralized.csv"} & left
    assert json.loads((folder / "results.json").read_text())["config"]["mode"] == "federated"
    (folder / ".store-abcd1234").mkdir()
    with pytest.raises(RunError):
        run("runner=local", "seed=51", "train.lr=1e30", "mode=federated")
    assert "results.json" not in files(folder)
    with pytest.raises(UserError):
        run("runner=local", "partition.num_shards=500")
    assert files(folder) == own


def test_what_is_not_of_fedcats_is_refused_or_left(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    clear(tmp_path)
    (tmp_path / "results.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match=r"a results\.json that is not of fedcats"):
        clear(tmp_path)
    assert files(tmp_path) == {"report.html", "results.json"}


def test_a_command_that_fails_before_its_run_leaves_no_earlier_results(tmp_path: Path) -> None:
    earlier = {"schema": 1, "status": "complete", "config": {}, "models": {}}
    (tmp_path / "results.json").write_text(json.dumps(earlier))
    command = [python(), "-m", "fedcats.cli", f"hydra.run.dir={tmp_path}"]
    refused = subprocess.run([*command, "train.epochs=0"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert files(tmp_path) == {"results.json"}  # nothing has begun, nothing is lost
    nowhere = ["runner=flwr", "runner.superlink=nowhere"]
    failed = subprocess.run([*command, *nowhere], capture_output=True, text=True)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1), failed.stderr
    assert "results.json" not in files(tmp_path)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path), claimed(tmp_path):  # the same process may
        held = subprocess.run([sys.executable, "-c", HOLDER, tmp_path], capture_output=True)
        assert b"another run writes there" in held.stderr
    subprocess.run([sys.executable, "-c", HOLDER, tmp_path], check=True)
    hold(tmp_path)


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("where", ["file", "/proc/fedcats", "x" * 300])
def test_a_folder_that_cannot_be_written(tmp_path: Path, where: str, sweep: bool) -> None:
    (tmp_path / "file").touch()
    key = f"hydra.{'sweep' if sweep else 'run'}.dir"
    command = [
        sys.executable,
        "-m",
        "fedcats.cli",
        *(["-m"] if sweep else []),
        f"{key}={where}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"fedcats: {key}={tmp_path / where}: cannot be written: ")
    assert done.stderr.count("\n") == 1


def test_a_sweep_reports_its_own_jobs_only(tmp_path: Path) -> None:
    """In the folder of an earlier sweep, and beside runs of their own."""

    def go(*arguments: str) -> list[str]:
        small = [*TINY, *TINY_DRAWINGS, "runner=local", "mode=federated", "save_models=false"]
        command = [python(), "-m", "fedcats.cli", *arguments, *small]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    go("hydra.run.dir=alone", "seed=52", "hydra.job.chdir=true")
    assert "2 jobs: " in go("-m", "hydra.sweep.dir=.", "strategy.beta=0.1,0.9", "seed=52")[-2]
    assert "1 jobs: " in go("-m", "hydra.sweep.dir=.", "strategy.beta=0.2", "seed=52")[-2]
    assert not (tmp_path / "1").exists()
    assert [is_job(tmp_path / name) for name in ("alone", "0")] == [False, True]
    assert (tmp_path / "alone" / "results.json").is_file()
    text = (tmp_path / "sweep.csv").read_text()
    assert ("0.2" in text, "0.9" in text) == (True, False)
