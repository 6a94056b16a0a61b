"""Whole runs under ``flwr run``, simulated. One SuperLink serves all tests."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.torch
from conftest import listening, reachable, wait_until
from tiny import LONG, TINY, simulation

from fedcats.config.compose import compose_config
from fedcats.deploy.guard import MARK, watch
from fedcats.deploy.rehearsal import compare_models, free_port
from fedcats.errors import UserError
from fedcats.experiment.server_app import follow_federation, run_folder
from fedcats.federated import app, superlink
from fedcats.federated.foreign import installed_package
from fedcats.merging.fold import Fold
from fedcats.merging.rules import Polyak

pytestmark = pytest.mark.flower

ONE = "runner.workers=1"  # each costs the start of a process with PyTorch


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SuperLink that simulates, started in another folder and with another FEDCATS_HOME."""
    place = tmp_path_factory.mktemp("simulator")
    port = free_port()
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "FLWR_HOME": str(place),
        "FEDCATS_HOME": str(place / "other-home"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        MARK: "simulator-" + os.urandom(8).hex(),
    }
    (place / "config.toml").write_text(
        f'[superlink]\ndefault = "sim"\n[superlink.sim]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--database", "state.db"]
    guard = watch(environment[MARK])
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: "startup" in (place / "log").read_text())
        yield {"FLWR_HOME": str(place)}
    finally:
        process.kill()
        process.wait()
        guard.communicate()


def test_flwr_run_gives_the_same_weights(
    simulator: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # from any folder
    overrides = [*TINY, "mode=compare", "save_models=true", "store.enabled=false"]
    run_id = superlink.submit(
        "sim", overrides, home=tmp_path / "home", supernodes=2, environment=simulator
    )
    outcome = superlink.follow(run_id, "sim", environment=simulator)
    assert outcome.status == "completed", outcome.details
    assert outcome.folder == tmp_path / "home" / "runs" / run_id
    here = simulation(tmp_path / "here", "mode=compare")
    assert compare_models(here, outcome.folder) == [
        "centralized.safetensors",
        "polyak.safetensors",
        "submodel-0.safetensors",
        "submodel-1.safetensors",
    ]


def test_mistakes_under_flwr_run_name_the_option(simulator: dict[str, str]) -> None:
    folder = ["data=folder", "data.root=/nowhere/photos"]
    many = superlink.submit(
        "sim", [*TINY, "partition.num_shards=3"], supernodes=2, environment=simulator
    )
    missing = superlink.submit("sim", folder, supernodes=10, environment=simulator)
    lines: list[str] = []
    outcome = superlink.follow(many, "sim", lines.append, simulator)
    assert outcome.status == "failed"
    assert '--federation-config "num-supernodes=3" or set partition.num_shards=2' in outcome.details
    assert any(line.startswith("fedcats: error 2: 2 supernodes for 3 clients") for line in lines)
    outcome = superlink.follow(missing, "sim", environment=simulator)
    assert outcome.status == "failed"
    assert "data.root=/nowhere/photos: does not exist" in outcome.details


def start(simulator: dict[str, str], *overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """``fedcats runner=flwr`` on the simulator."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fedcats.cli",
            "runner=flwr",
            "runner.superlink=sim",
            *overrides,
        ],
        cwd=cwd,
        env={**os.environ, **simulator, "FEDCATS_HOME": str(cwd / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background has had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_flwr_runner_brings_the_results_back(
    simulator: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a rule in a file beside which the command was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine_under_flwr.py").write_text(
        "def last(updates, examples, start):\n    return {k: updates[-1][k] for k in start}\n"
    )
    three = ["partition.num_shards=3", "partition.per_class=2", "train.lr=0.002"]
    three += ["strategy.rules=[polyak,mine_under_flwr:last]"]
    options = [*TINY, *three, "save_models=true", "hydra.run.dir=there"]
    process = start(simulator, *options, cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "there")
    assert "client 2: done" in err
    assert "INFO" not in err
    here = simulation(tmp_path / "here", *three)
    names = compare_models(here, tmp_path / "there")
    assert len(names) == 5
    assert "last@mine_under_flwr.safetensors" in names
    for file in ("results.json", "report.html", "shards.csv", "predictions/polyak.csv"):
        assert (tmp_path / "there" / file).is_file()
    assert not list((tmp_path / "there").glob(".run-*"))


def test_the_flwr_runner_ends_as_the_run_does(simulator: dict[str, str], tmp_path: Path) -> None:
    mistakes = {
        ("data=folder", "data.root=nowhere"): f"data.root={tmp_path}/nowhere: does not exist",
        ("runner.superlink=nix",): "runner.superlink: SuperLink connection 'nix' not found",
    }
    for overrides, message in mistakes.items():
        process = start(simulator, "model.weights=none", *overrides, cwd=tmp_path)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"fedcats: {message}")
        assert "Traceback" not in err


def processes(simulator: dict[str, str]) -> Iterator[psutil.Process]:
    """What runs under the simulator."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == simulator["FLWR_HOME"]:
                yield process


def rays(simulator: dict[str, str], name: str = "") -> list[psutil.Process]:
    """What of it is Ray's."""
    found = []
    for process in processes(simulator):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command and "ray" in command[0] and command[0].endswith(name):
                found.append(process)
    return found


def test_under_flwr_run_too_one_killed_client_is_left_out_and_no_other(
    simulator: dict[str, str], tmp_path: Path
) -> None:
    three = ["partition.num_shards=3", "partition.per_class=2", "train.epochs=5"]
    keep = ["strategy.on_failure=survivors", "save_models=true", "hydra.run.dir=there"]
    process = start(simulator, *TINY, *three, *keep, ONE, cwd=tmp_path)
    events = tmp_path / "there/progress.jsonl"
    wait_until(lambda: events.is_file() and events.stat().st_size)
    (client,) = wait_until(lambda: rays(simulator, "ClientAppActor.run"))  # not between two tasks
    heard = listening(processes(simulator))
    assert {"raylet", "flower-superlin"} <= {name for name, _, _ in heard}
    assert reachable(heard) == []
    client.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    results = json.loads((tmp_path / "there/results.json").read_text())
    ((who, why),) = results["failures"].items()
    assert why.startswith("its process ended: killed")
    clients = results["models"]["polyak"]["clients"]
    assert {f"round 1, client {c}" for c in range(3) if c not in clients} == {who}
    models, fold = tmp_path / "there/models", Fold(Polyak(beta=0.5))
    for survivor in clients:
        fold.add(safetensors.torch.load_file(models / f"submodel-{survivor}.safetensors"), 4)
    merged = safetensors.torch.load_file(models / "polyak.safetensors")
    assert safetensors.torch.save(merged) == safetensors.torch.save(fold.result())
    wait_until(lambda: not rays(simulator), 60.0)


def test_under_flwr_run_too_a_client_that_raises_ends_the_run(
    simulator: dict[str, str], tmp_path: Path
) -> None:
    process = start(simulator, *TINY, ONE, "train.lr=1e30", "train.epochs=50", cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("fedcats: client 0 failed in round 1: the training loss is nan in epoch")
    assert "Traceback" not in err
    wait_until(lambda: not rays(simulator), 60.0)


def test_results_need_a_folder_that_the_server_sees(tmp_path: Path) -> None:
    ticket = tmp_path / "run" / ".run-1"
    named = "seed=1 hydra.run.dir=/elsewhere"
    settings = {"ticket": str(ticket), "overrides": named}
    with pytest.raises(UserError, match=rf"hydra.run.dir={tmp_path}/run: not there on"):
        run_folder(settings, 7)
    ticket.parent.mkdir()
    ticket.touch()
    assert run_folder(settings, 7) == tmp_path / "run"


def test_without_a_ticket_results_go_where_the_overrides_say_or_into_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(overrides: str) -> Path:
        return run_folder({"ticket": "", "overrides": overrides}, 7)

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "${x},y").mkdir()
    assert found("seed=1 hydra.run.dir=/a hydra.run.dir=/b") == Path("/b")
    assert found(f"'hydra.run.dir={tmp_path}/${{x}},y'") == tmp_path / "${x},y"
    assert found("hydra.run.dir=~/mine") == tmp_path / "mine"
    for wrong in ("", "mine", "/a/${nothing}", "outputs/${oc.env:HOME}"):
        with pytest.raises(UserError, match=r"^hydra\.run\.dir"):
            found(f"hydra.run.dir={wrong}")
    assert found("") == Path(os.environ["FEDCATS_HOME"]) / "runs/7"
    for name in ("FEDCATS_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert found("").is_relative_to(tmp_path)
    assert "cache" not in str(found("").relative_to(tmp_path)).lower()


@pytest.mark.parametrize(
    ("overrides", "shards"),
    [
        ("", 3),
        ("partition=iid rounds=2", 3),
        ("partition.num_shards=4", 4),
        ("experiment=paper", 10),
    ],
)
def test_shards_follow_the_federation_unless_they_are_said(overrides: str, shards: int) -> None:
    class Growing:
        seen = 0

        def get_node_ids(self) -> list[int]:
            self.seen += 1
            return [*range(min(self.seen, 3))]

    more = " data.root=/photos" if "paper" in overrides else ""
    raw = compose_config((overrides + more).split())
    follow_federation(raw, overrides, Growing())
    assert raw.partition.num_shards == shards


def test_an_interrupt_stops_the_run_at_the_superlink(
    simulator: dict[str, str], tmp_path: Path
) -> None:
    process = start(simulator, *TINY, ONE, *LONG, "train.epochs=1000", cwd=tmp_path)
    assert process.stderr is not None
    run_id = process.stderr.readline().split()[1]
    wait_until(lambda: list((tmp_path / "home/store").glob("part-*")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("fedcats: interrupted; finished work is kept")
    assert "Traceback" not in err
    assert superlink.follow(run_id, "sim", environment=simulator).status == "stopped"


def test_a_run_that_another_checkouts_superlink_has_taken_is_refused(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    other = tmp_path / "other"
    for name in ("fedcats", "conf"):
        shutil.copytree(root / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(root / name, other)
    (other / "fedcats/__init__.py").open("a").write("\n# Changed.\n")
    environment = {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        MARK: "two-checkouts-" + os.urandom(8).hex(),
    }
    guard = watch(environment[MARK])
    try:
        details = []
        for checkout in (root, other):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(app, "_PACKAGE", checkout / "fedcats")
                run_id = superlink.submit(
                    "local",
                    ["data=folder", "data.root=/nowhere", "partition.num_shards=1"],
                    supernodes=1,
                    environment=environment,
                )
            outcome = superlink.follow(run_id, "local", environment=environment)
            assert outcome.error is not None and outcome.error[0] == 2
            details.append(outcome.error[1])
    finally:
        guard.communicate()
    assert details[0].startswith("data.root=/nowhere: does not exist")
    own = installed_package()
    assert f"in which fedcats is {own}, another one than was submitted" in details[1]
