"""The command fedcats-store; what belongs to other users."""

import os
import time
from pathlib import Path

import pytest
from builders import TENSORS, fork, kill
from conftest import wait_until

from fedcats import storage as store_module
from fedcats.cli.store import main as store_command
from fedcats.data import Dataset, prepare, synthetic_source, upkeep
from fedcats.storage import Store

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the command -----------------------------------------------------------------------------


def test_list_verify_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDCATS_HOME", str(tmp_path))
    store = Store(tmp_path / "store")
    store.put("good", TENSORS, {"kind": "update", "task": "client 3", "epochs": [{}, {}]})
    store.put("bad", TENSORS, {"kind": "update"})
    content = bytearray(store.path("bad").read_bytes())
    content[-1] ^= 1
    store.path("bad").write_bytes(content)
    assert store_command(["list"]) == 0
    out = capsys.readouterr().out
    assert "client 3" in out
    assert "2 epochs" in out
    assert "2 entries, 0.00 GB" in out
    assert store_command(["verify"]) == 1
    assert "2 entries read, 1 damaged" in capsys.readouterr().out
    assert store_command(["verify"]) == 0
    other = Store(tmp_path / "store")
    other.hold(["good"])
    assert store_command(["clear"]) == 0
    assert "1 entry, 0.00 GB kept for running runs" in capsys.readouterr().out
    other.release()
    assert store_command(["clear"]) == 0
    assert store.entries() == []
    with pytest.raises(SystemExit, match="2"):
        store_command(["burn"])


def test_the_command_shows_and_clears_decoded_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDCATS_HOME", str(tmp_path))
    store = Store(tmp_path / "store")
    store.put("kept", TENSORS, {"kind": "update"})

    def make(seed: int) -> Dataset:
        return prepare(synthetic_source(2, 1, seed), tmp_path / "data", size=8)

    for seed in (1, 2):
        assert os.waitpid(fork(lambda seed=seed: make(seed)), 0)[1] == 0
    damaged, _ = upkeep.decoded(tmp_path / "data")
    (damaged.path / "test.npy").unlink()
    assert store_command(["list"]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "synthetic: cat, dog" in line]) == 2
    assert f"2 decoded data sets, 0.00 GB in {tmp_path / 'data'}" in out
    assert store_command(["verify"]) == 1
    out = capsys.readouterr().out
    assert "of no use, dropped: " in out
    assert "2 decoded data sets, 0.00 GB read, 1 of no use" in out
    pid = fork(lambda: [make(3), time.sleep(60)])
    wait_until(lambda: len(upkeep.decoded(tmp_path / "data")) == 2)
    assert store_command(["clear", "--images"]) == 0
    out = capsys.readouterr().out
    assert "1 decoded data set, 0.00 GB dropped" in out
    assert "1 decoded data set, 0.00 GB kept for running runs" in out
    assert "kept" in store
    kill(pid)
    assert store_command(["clear"]) == 0
    assert upkeep.decoded(tmp_path / "data") == []
    assert "kept" not in store


def test_an_entry_of_another_user_is_not_taken_for_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("key", TENSORS, {})
    assert store.path("key").stat().st_mode & 0o777 == 0o666 & ~current_umask()

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", denied)
        assert store.get("key") is not None
        patch.setattr(store_module, "_read", denied)
        assert store.get("key") is None
        assert list(store.verify()) == []
    assert "key" in store
    assert store.damaged == []


def current_umask() -> int:
    os.umask(umask := os.umask(0))
    return umask
