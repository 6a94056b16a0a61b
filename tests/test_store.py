"""The store: entries, damage, full disks, kills, eviction."""

import errno
import itertools
import os
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from builders import TENSORS, fork, kill, unbind
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats import tensors
from fedcats.errors import RunError
from fedcats.storage import Store, opened, says

pytestmark = pytest.mark.usefixtures("one_thread")


# --- entries ---------------------------------------------------------------------------------


def test_what_is_put_is_got(store: Store) -> None:
    store.put("key", TENSORS, {"kind": "update", "loss": 0.1})
    entry = store.get("key")
    assert entry is not None
    assert entry.meta == {"kind": "update", "loss": 0.1}
    assert entry.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(entry.tensors[k], v) for k, v in TENSORS.items())
    assert store.get("other") is None


@pytest.mark.parametrize("where", ["first byte", "metadata", "tensor", "cut off", "empty"])
def test_a_damaged_entry_is_noticed_and_removed(store: Store, where: str) -> None:
    store.put("key", TENSORS, {"kind": "update", "loss": 0.125})
    content = bytearray(store.path("key").read_bytes())
    if where == "cut off":
        content = content[:-10]
    elif where == "empty":
        content = bytearray()
    else:
        at = {"first byte": 0, "metadata": content.index(b"0.125"), "tensor": len(content) - 2}
        content[at[where]] ^= 1
    store.path("key").write_bytes(content)
    assert store.get("key") is None
    assert store.damaged == ["key"]
    assert not store.path("key").exists()


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_bit_is_noticed_or_without_effect(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "bits")
    small = {"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.int64)}
    store.put("key", small, {"kind": "update", "loss": 0.125})
    content = bytearray(store.path("key").read_bytes())
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << at % 8
    store.path("key").write_bytes(content)
    entry = store.get("key")
    if entry is None:
        assert store.damaged == ["key"]
    else:
        assert entry.meta == {"kind": "update", "loss": 0.125}
        assert tensors.digest(entry.tensors) == tensors.digest(small)


def test_an_entry_under_another_key_is_damaged(store: Store) -> None:
    store.put("mine", TENSORS, {"n": 1})
    store.put("other", {"a": torch.zeros(9)}, {"n": 2})
    shutil.copy(store.path("other"), store.path("mine"))
    assert [(entry.key, state) for entry, state in store.verify()] == [
        ("other", "whole"),
        ("mine", "damaged"),
    ]
    assert store.get("mine") is None
    assert store.damaged == ["mine"]
    assert [entry.key for entry in store.entries()] == ["other"]


def test_entries_without_their_key_are_found_and_get_it(store: Store) -> None:
    store.put("old", TENSORS, {"client": 3})
    unbind(store, "old")
    assert [state for _, state in store.verify()] == ["unbound"]
    assert store.get("old") is not None  # nothing is known that it could be compared with
    assert [state for _, state in store.verify()] == ["unbound"]
    entry = store.get("old", says({"client": 3, "more": "than it says"}))
    assert entry is not None
    assert entry.meta == {"client": 3}
    assert tensors.digest(entry.tensors) == tensors.digest(TENSORS)
    assert [state for _, state in store.verify()] == ["whole"]
    assert store.get("old", says({"client": 4})) is not None  # its key says what it is
    unbind(store, "old")
    assert store.get("old", says({"client": 4})) is None
    assert store.damaged == ["old"]


@pytest.mark.parametrize("free", range(5))
def test_an_entry_stays_where_too_many_files_are_open(store: Store, free: int) -> None:
    """However far reading it comes; the libraries call it a missing file, or not at all by name."""
    store.put("key", TENSORS, {})
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]  # no gap below the last
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, limit[1]))
    for _ in range(free):
        os.close(taken.pop())
    message = ""
    try:
        found = store.get("key") is not None
    except RunError as error:
        found, message = False, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for descriptor in taken:
            os.close(descriptor)
    assert found == (not message)
    assert found or "key.safetensors cannot be read: " in message
    assert store.damaged == []
    assert store.get("key") is not None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_what_the_system_refuses_is_said_and_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store.put("key", TENSORS, {})

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(RunError, match=rf"key.safetensors cannot .*{os.strerror(number)}"):
            store.get("key")
        assert [state for _, state in store.verify()] == ["unreadable"]
    assert store.get("key") is not None
    assert store.damaged == []


def test_a_full_disk_leaves_nothing_behind(store: Store) -> None:
    store.put("small", TENSORS, {})
    ours, theirs = os.pipe()

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.put("large", {"a": torch.ones(100_000)}, {})
        except RunError as error:
            os.write(theirs, str(error).encode())

    os.waitpid(fork(write), 0)
    assert b"cannot write an entry: " in os.read(ours, 1000)
    assert [entry.key for entry in store.entries()] == ["small"]
    assert not list(store.root.glob(".*.tmp"))


def test_no_space_left_is_called_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunError, match="the disk is full"):
        store.put("key", TENSORS, {})
    assert store.entries() == []


@pytest.mark.slow
def test_sigkill_while_writing(store: Store) -> None:
    """Killed again and again while it replaces entries: each is whole, old or new."""

    def write() -> None:
        for number in itertools.count():
            tensors = {"a": torch.full((1_000_000,), float(number))}
            store.put(f"key-{number % 3}", tensors, {"n": number})

    for attempt in range(30):
        pid = fork(write)
        time.sleep(0.02 + 0.0031 * attempt)
        kill(pid)
        for key in ("key-0", "key-1", "key-2"):
            entry = store.get(key)
            assert entry is None or bool((entry.tensors["a"] == entry.meta["n"]).all())
        assert store.damaged == []


def test_a_kill_before_the_rename_leaves_the_old_entry(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("key", TENSORS, {"n": 1})

    def write() -> None:
        monkeypatch.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        store.put("key", {"a": torch.zeros(9)}, {"n": 2})

    assert os.waitpid(fork(write), 0)[1] == signal.SIGKILL
    entry = store.get("key")
    assert entry is not None
    assert entry.meta == {"n": 1}
    (leftover,) = store.root.glob(".*.tmp")
    store.evict()
    assert leftover.exists()  # its writer might be alive
    os.utime(leftover, (time.time() - 3600,) * 2)
    store.evict()
    assert not leftover.exists()


# --- size limit ------------------------------------------------------------------------------


def used(store: Store, key: str, ago: float) -> None:
    os.utime(store.path(key), (time.time() - ago, time.time() - ago))


def test_the_entry_used_longest_ago_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=13_500)  # three entries of 4.3 kB
    for age, key in enumerate(["newest", "middle", "oldest"]):
        store.put(key, TENSORS, {})
        used(store, key, ago=1000 * (age + 1))
    assert store.get("oldest") is not None  # used: now it is the newest
    store.put("another", TENSORS, {})
    assert {entry.key for entry in store.entries()} == {"another", "oldest", "newest"}


def test_what_a_run_finds_and_does_not_leave_is_counted(tmp_path: Path) -> None:
    """In whichever process it was dropped; a checkpoint that has served its purpose is none."""
    said: list[int] = []

    def put(keys: str, most: int) -> None:
        for key in keys:
            Store(tmp_path, most).put(key, TENSORS, {})
            used(Store(tmp_path), key, ago=1000 * (ord("z") - ord(key)))

    with opened(tmp_path, 13_500, tmp_path, said.append) as store:
        put("abc", 13_500)
        store.put("part-d", {}, {})
    assert said == []
    with opened(tmp_path, 13_500, tmp_path, said.append) as store:
        store.remove("part-d")
        os.waitpid(fork(lambda: put("de", 13_500)), 0)
    assert said == [store.sizes()["c"] * 2]
    with (
        pytest.raises(RunError, match="failed"),
        opened(tmp_path, 13_500, tmp_path, said.append) as store,
    ):
        store.evict(limit=0)
        raise RunError("failed")
    assert len(said) == 2
    with opened(tmp_path, 13_500, tmp_path, said.append):
        pass
    assert len(said) == 2


def test_what_a_living_process_holds_is_not_dropped(tmp_path: Path) -> None:
    held, keeping = Store(tmp_path), Store(tmp_path)
    for key in ("mine", "part-mine", "other"):
        held.put(key, TENSORS, {})
        used(held, key, ago=1000)
    held.hold(["mine"])
    keeping.evict(limit=0)
    assert {entry.key for entry in keeping.entries()} == {"mine", "part-mine"}
    held.hold(["nothing"])
    keeping.evict(limit=5000)
    assert len(keeping.entries()) == 1
    held.hold(["mine", "part-mine"])
    held.release()
    keeping.evict(limit=0)
    assert keeping.entries() == []


def test_a_kill_lets_go_of_what_was_held(store: Store) -> None:
    store.put("key", TENSORS, {})
    ours, theirs = os.pipe()

    def hold() -> None:
        Store(store.root).hold(["key"])
        os.write(theirs, b"ready")
        time.sleep(60)

    pid = fork(hold)
    os.read(ours, 5)
    store.evict(limit=0)
    assert "key" in store
    kill(pid)
    store.evict(limit=0)
    assert "key" not in store
    assert not list((store.root / "held").iterdir())


def test_a_claim_is_one_processes_at_a_time_and_leaves_nothing(store: Store) -> None:
    """Also where the lock's file goes while others wait for it."""
    counter = store.root / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(50):
            with Store(store.root).claim("key"):
                number = int(counter.read_text())
                counter.write_text(f"{number + 1}")

    for pid in [fork(count) for _ in range(4)]:
        os.waitpid(pid, 0)
    assert counter.read_text() == "200"
    assert list((store.root / "locks").iterdir()) == []


def test_locks_of_killed_processes_go_and_those_of_living_ones_stay(store: Store) -> None:
    ours, theirs = os.pipe()

    def claim(key: str) -> None:
        with store.claim(key):
            os.write(theirs, b".")
            time.sleep(60)

    pids = [fork(lambda key=key: claim(key)) for key in ("killed", "living")]
    while len(list((store.root / "locks").iterdir())) < 2:
        os.read(ours, 1)
    kill(pids[0])
    store.evict()
    assert [path.name for path in (store.root / "locks").iterdir()] == ["living"]
    kill(pids[1])


# --- keys ------------------------------------------------------------------------------------


def test_threads_may_keep_the_same_entry_at_the_same_time(store: Store) -> None:
    """Two rules that give the same merge are tested side by side, under one key."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.put("same", TENSORS, {"kind": "update"}), range(200)))
    assert store.get("same") is not None
    assert [path.name for path in store.root.iterdir() if path.is_file()] == ["same.safetensors"]
