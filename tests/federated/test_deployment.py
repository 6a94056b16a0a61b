"""A real federation: its files, and whole runs of it on the loopback.

One federation of two sites serves all tests; what kills comes last.
"""

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from cryptography import x509
from tiny import LONG, TINY, simulation

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.deploy.files import write_federation
from fedcats.deploy.guard import members
from fedcats.deploy.rehearsal import Loopback, at_sites, compare_models, free_port, write_photos
from fedcats.errors import UserError
from fedcats.federated import superlink

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
        "ends",
        "node.key",
        "node.pub",
        "supernode.sh",
        "unit.sh",
    ]
    assert (folder / "node-0/node.key").read_bytes() != (folder / "node-1/node.key").read_bytes()


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
    wait_until(lambda: "SuperNode ID: " in federation.log("node-0"))
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
        "plaintext": "400",
    }
    for name, process in processes.items():
        assert process.wait(120) != 0, name
        assert re.search(reasons[name], federation.log(name)), name
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
    store = federation.folder / "node-1/home/store"

    def run_and_kill(*overrides: str) -> superlink.Outcome:
        # One run at a time, as the SuperNode does one thing at a time.
        before = set(store.glob("part-*"))
        run_id = federation.submit([*long, *overrides])
        wait_until(lambda: set(store.glob("part-*")) - before)
        federation.kill("node-1")
        return federation.follow(run_id)

    outcome = run_and_kill("seed=2")
    assert outcome.status == "failed"
    assert "client 1 failed in round 1: " in outcome.details
    federation.start("node-1")
    outcome = run_and_kill("seed=3", "strategy.on_failure=survivors")
    assert outcome.status == "completed", outcome.details
    assert outcome.folder is not None
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results["models"]["polyak"]["clients"] == [0]
    assert list(results["failures"]) == ["round 1, client 1"]
