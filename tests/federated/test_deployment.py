"""Whole runs under ``flwr run``: simulated, and on a real federation on the loopback.

One SuperLink for the simulations and one federation of two sites serve all tests; what kills
comes last.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
from cryptography import x509

from fedcats.config import compose_config, load
from fedcats.core.errors import UserError
from fedcats.core.merging import Fold, make_rule
from fedcats.deploy.files import write_federation
from fedcats.deploy.guard import MARK, members, watch
from fedcats.deploy.rehearsal import Loopback, at_sites, compare_models, free_port, write_photos
from fedcats.experiment import run
from fedcats.federated import flower
from fedcats.federated.server_app import run_folder

TINY = [
    "mode=federated",
    "data.train_per_class=6",
    "data.test_per_class=3",
    "partition=paper",
    "partition.per_class=3",
    "partition.num_shards=2",
    "train.epochs=1",
    "model.name=squeezenet1_1",
    "model.weights=none",
    "strategy.rules=[polyak]",
]
LONG = ["train.epochs=12", "store.checkpoint_seconds=0"]


def simulation(folder: Path, *overrides: str) -> Path:
    run(compose_config([*TINY, "runner=local", "save_models=true", *overrides]), folder)
    return folder


def wait_until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


# --- simulated -------------------------------------------------------------------------------


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
    run_id = flower.submit(
        "sim", overrides, home=tmp_path / "home", supernodes=2, environment=simulator
    )
    outcome = flower.follow(run_id, "sim", environment=simulator)
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
    many = flower.submit(
        "sim", [*TINY, "partition.num_shards=3"], supernodes=2, environment=simulator
    )
    missing = flower.submit("sim", folder, supernodes=10, environment=simulator)
    lines: list[str] = []
    outcome = flower.follow(many, "sim", lines.append, simulator)
    assert outcome.status == "failed"
    assert '--federation-config "num-supernodes=3" or set partition.num_shards=2' in outcome.details
    assert any(line.startswith("fedcats: error 2: 2 supernodes for 3 clients") for line in lines)
    outcome = flower.follow(missing, "sim", environment=simulator)
    assert outcome.status == "failed"
    assert "data.root=/nowhere/photos: does not exist" in outcome.details


def start(simulator: dict[str, str], *overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """``fedcats runner=flwr`` on the simulator."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedcats.cli", "runner=flwr", "runner.superlink=sim", *overrides],
        cwd=cwd,
        env={**os.environ, **simulator, "FEDCATS_HOME": str(cwd / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background has had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_flwr_runner_brings_the_results_back(simulator: dict[str, str], tmp_path: Path) -> None:
    three = ["partition.num_shards=3", "partition.per_class=2", "train.lr=0.002"]
    options = [*TINY, *three, "save_models=true", "hydra.run.dir=there"]
    process = start(simulator, *options, cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "there")
    assert "client 2: done" in err
    assert "INFO" not in err
    here = simulation(tmp_path / "here", *three)
    assert len(compare_models(here, tmp_path / "there")) == 4
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


def rays(simulator: dict[str, str], name: str = "") -> list[psutil.Process]:
    """What runs of Ray under the simulator."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == simulator["FLWR_HOME"]:
                command = process.cmdline()
                if command and "ray" in command[0] and command[0].endswith(name):
                    found.append(process)
    return found


def test_under_flwr_run_too_one_killed_client_is_left_out_and_no_other(
    simulator: dict[str, str], tmp_path: Path
) -> None:
    three = ["partition.num_shards=3", "partition.per_class=2", "train.epochs=5"]
    keep = ["strategy.on_failure=survivors", "save_models=true", "hydra.run.dir=there"]
    process = start(simulator, *TINY, *three, *keep, "runner.workers=1", cwd=tmp_path)
    events = tmp_path / "there/progress.jsonl"
    wait_until(lambda: events.is_file() and events.stat().st_size)
    (client,) = rays(simulator, "ClientAppActor.run")
    client.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    results = json.loads((tmp_path / "there/results.json").read_text())
    ((who, why),) = results["failures"].items()
    assert why.startswith("its process ended: killed")
    clients = results["models"]["polyak"]["clients"]
    assert {f"round 1, client {c}" for c in range(3) if c not in clients} == {who}
    models, fold = tmp_path / "there/models", Fold(make_rule("polyak", beta=0.5))
    for survivor in clients:
        fold.add(safetensors.torch.load_file(models / f"submodel-{survivor}.safetensors"), 4)
    merged = safetensors.torch.load_file(models / "polyak.safetensors")
    assert safetensors.torch.save(merged) == safetensors.torch.save(fold.result())
    wait_until(lambda: not rays(simulator), 60.0)


def test_under_flwr_run_too_a_client_that_raises_ends_the_run(
    simulator: dict[str, str], tmp_path: Path
) -> None:
    process = start(simulator, *TINY, "train.lr=1e30", "train.epochs=50", cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("fedcats: client 0 failed in round 1: the training loss is nan in epoch")
    assert "Traceback" not in err
    wait_until(lambda: not rays(simulator), 60.0)


def test_results_need_a_folder_that_the_server_sees(tmp_path: Path) -> None:
    ticket = tmp_path / "run" / ".run-1"
    with pytest.raises(UserError, match=rf"hydra.run.dir={tmp_path}/run: not there on"):
        run_folder(str(ticket), 7)
    ticket.parent.mkdir()
    ticket.touch()
    assert run_folder(str(ticket), 7) == tmp_path / "run"
    assert run_folder("", 7).parts[-2:] == ("runs", "7")


def test_an_interrupt_stops_the_run_at_the_superlink(
    simulator: dict[str, str], tmp_path: Path
) -> None:
    process = start(simulator, *TINY, *LONG, "train.epochs=1000", cwd=tmp_path)
    assert process.stderr is not None
    run_id = process.stderr.readline().split()[1]
    wait_until(lambda: list((tmp_path / "home/store").glob("part-*")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("fedcats: interrupted; finished work is kept")
    assert "Traceback" not in err
    assert flower.follow(run_id, "sim", environment=simulator).status == "stopped"


# --- the files of a federation ---------------------------------------------------------------


def test_secrets_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    write_federation(folder, 2, "fl.example.org:8443")
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700
        elif path.suffix in (".key", ".secret"):
            assert mode == 0o600
    certificate = x509.load_pem_x509_certificate((folder / "server/server.crt").read_bytes())
    ca = x509.load_pem_x509_certificate((folder / "ca/ca.crt").read_bytes())
    certificate.verify_directly_issued_by(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fl.example.org" in names.get_values_for_type(x509.DNSName)
    # A site gets its own key and nothing of the server's or of another site's.
    assert sorted(p.name for p in (folder / "node-0").iterdir()) == [
        "ca.crt",
        "node.key",
        "node.pub",
        "supernode.sh",
    ]
    assert (folder / "node-0/node.key").read_bytes() != (folder / "node-1/node.key").read_bytes()


@pytest.mark.parametrize(
    ("nodes", "address", "message"),
    [(2, "host", "must be host:port"), (0, "host:1", "must be at least 1"), (1, "", "host:port")],
)
def test_what_cannot_be_prepared(tmp_path: Path, nodes: int, address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_federation(tmp_path / "new", nodes, address)
    assert not (tmp_path / "new").exists()


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        write_federation(tmp_path, 1, "host:1")


def test_a_rehearsal_that_is_killed_leaves_no_process() -> None:
    mark = "test-" + os.urandom(8).hex()
    code = (
        "import os, subprocess, sys, time\n"
        "from fedcats.deploy.guard import watch\n"
        "guard = watch(sys.argv[1])\n"
        "os.environ['FEDCATS_REHEARSAL'] = sys.argv[1]\n"
        "subprocess.Popen(['sh', '-c', 'sleep 100 & sleep 100'], start_new_session=True)\n"
        "time.sleep(100)"
    )
    rehearsal = subprocess.Popen([sys.executable, "-c", code, mark])
    wait_until(lambda: len(members(mark)) == 3)
    rehearsal.kill()
    rehearsal.wait()
    wait_until(lambda: not members(mark), 10.0)


# --- a real federation -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos_of_sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    return write_photos(load(compose_config(TINY)), tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, photos_of_sites: tuple[list[Path], Path]
) -> Iterator[Loopback]:
    place = tmp_path_factory.mktemp("loopback")
    with Loopback(place / "federation", photos_of_sites[0], place / "home") as running:
        yield running
        mark = running
    assert mark.members() == []  # no orphans


def test_the_rehearsal_gives_the_bytes_of_the_simulation(
    federation: Loopback, photos_of_sites: tuple[list[Path], Path], tmp_path: Path
) -> None:
    run_id = federation.submit(at_sites(TINY, photos_of_sites[1]))
    refused = federation.submit([*at_sites(TINY, photos_of_sites[1]), "partition=iid"])
    outcome = federation.follow(run_id)
    assert outcome.status == "completed", outcome.details
    assert outcome.folder is not None
    here = simulation(tmp_path / "here")
    assert compare_models(here, outcome.folder) == [
        "polyak.safetensors",
        "submodel-0.safetensors",
        "submodel-1.safetensors",
    ]
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results["store"]["reused"] == []  # the sites did train
    assert "fedcats: round 1, client 0: done, epoch 1 of 1, loss" in federation.log("node-0")
    assert results["data"]["train"] == {"cat": 6, "dog": 6}
    assert not (outcome.folder / "shards.csv").exists()  # names of files stay with the sites
    outcome = federation.follow(refused)
    assert outcome.status == "failed"
    assert "partition=iid: does not apply to a real federation" in outcome.details


def test_only_registered_keys_and_the_right_authority_are_admitted(
    federation: Loopback, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_federation(other, 1, "127.0.0.1:1")
    known = federation.folder / "node-0"
    tls = ["--root-certificates", str(known / "ca.crt")]
    key = ["--auth-supernode-private-key"]
    peers = {
        "no-key": tls,
        "unregistered-key": [*tls, *key, str(other / "node-0/node.key")],
        "key-in-use": [*tls, *key, str(known / "node.key")],
        "wrong-authority": ["--root-certificates", str(other / "ca/ca.crt"), *key,
                            str(known / "node.key")],
        "plaintext": ["--insecure"],
    }  # fmt: skip
    address = ["--superlink", f"127.0.0.1:{federation.port}", "--max-retries", "1"]
    processes = {
        name: federation.launch(
            name, ["flower-supernode", *options, *address, "--port", str(free_port())]
        )
        for name, options in peers.items()
    }
    reasons = {
        "no-key": "All SuperNodes must be registered",
        "unregistered-key": "Failed to activate SuperNode",
        "key-in-use": "Failed to activate SuperNode",
        "wrong-authority": "CERTIFICATE_VERIFY_FAILED",
        "plaintext": "Server disconnected without sending a response",
    }
    for name, process in processes.items():
        assert process.wait(120) != 0, name
        assert reasons[name] in federation.log(name)
    assert federation.processes["node-0"].poll() is None  # the owner of the key stays


def test_a_superlink_that_is_killed_and_started_again_goes_on(
    federation: Loopback, photos_of_sites: tuple[list[Path], Path], tmp_path: Path
) -> None:
    long = [*TINY, *LONG, "train.lr=0.002"]
    run_id = federation.submit(at_sites(long, photos_of_sites[1]))
    part = federation.folder / "node-0/home/store"
    wait_until(lambda: list(part.glob("part-*")))
    federation.kill("superlink")
    time.sleep(2.0)
    federation.start("superlink")
    outcome = federation.follow(run_id)
    assert outcome.status == "completed", outcome.details
    assert outcome.folder is not None
    assert compare_models(simulation(tmp_path / "here", *long), outcome.folder)


def test_a_supernode_that_is_killed_is_named_or_left_out(
    federation: Loopback, photos_of_sites: tuple[list[Path], Path], tmp_path: Path
) -> None:
    long = [*at_sites([*TINY, *LONG], photos_of_sites[1]), "train.epochs=40"]
    fails = federation.submit([*long, "seed=2"])
    goes_on = federation.submit([*long, "seed=3", "strategy.on_failure=survivors"])
    part = federation.folder / "node-1/home/store"
    wait_until(lambda: list(part.glob("part-*")))
    shutil.rmtree(part)
    federation.kill("node-1")
    outcome = federation.follow(fails)
    assert outcome.status == "failed"
    assert "client 1 failed in round 1: " in outcome.details
    outcome = federation.follow(goes_on)
    assert outcome.status == "completed", outcome.details
    assert outcome.folder is not None
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results["models"]["polyak"]["clients"] == [0]
    assert list(results["failures"]) == ["round 1, client 1"]
