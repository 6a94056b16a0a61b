"""The store and the updates in it: keys, damage, full disks, kills, eviction, going on."""

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import safetensors
import torch
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats import storage as store_module
from fedcats import tensors
from fedcats.cli.store import main as store_command
from fedcats.data import Dataset, Images, prepare, synthetic_source, upkeep
from fedcats.errors import RunError
from fedcats.models import build
from fedcats.storage import Store, says
from fedcats.training import numerics, recipe, update
from fedcats.training.recipe import Recipe
from fedcats.training.update import (
    Task,
    compute,
    get_weights,
    put_weights,
    read,
    task_images,
    weights_key,
)

TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int64)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # so that a forked child can compute


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(synthetic_source(6, 1, 7), tmp_path_factory.mktemp("data"), size=40).path


def make_task(store: Store, data: Path, model: str = "squeezenet1_1", **changes: Any) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build.build(model, 2).state_dict()
    sha256 = put_weights(store, state)
    recipe = Recipe(3, 4, 0.01, 0.0, False, 0.0, 0, 0.1, False)
    task = Task(
        name="client 0",
        client=0,
        round=1,
        seed=0,
        model=model,
        num_classes=2,
        trainable="all",
        base=sha256,
        start=sha256,
        data=str(data),
        indices=tuple(range(8)),
        recipe=recipe,
        threads=1,
        device="cpu",
        checkpoint_seconds=0,
    )
    return replace(task, **changes)


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


def unbind(store: Store, key: str) -> None:
    """Make it one of a version that did not write the key into an entry."""
    entry = store.get(key)
    assert entry is not None
    with safetensors.safe_open(store.path(key), framework="pt") as file:
        header = file.metadata()
    del header["bound"]
    tensors.save({k: v.clone() for k, v in entry.tensors.items()}, store.path(key), header)


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


def fork(work: Callable[[], None]) -> int:
    """Do it in a child process, without the cost of importing torch; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


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


# --- keys ------------------------------------------------------------------------------------


def test_threads_may_keep_the_same_entry_at_the_same_time(store: Store) -> None:
    """Two rules that give the same merge are tested side by side, under one key."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.put("same", TENSORS, {"kind": "update"}), range(200)))
    assert store.get("same") is not None
    assert [path.name for path in store.root.iterdir() if path.is_file()] == ["same.safetensors"]


def test_what_earlier_versions_stored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of commit f72c717, when the code was in other places: a new one trains all anew."""
    monkeypatch.setattr(torch, "__version__", "2.0")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANY")
    paper = Recipe(1, 4, 0.001, 0.0, False, 0.0, 0, 0.1, False)
    where = ("alexnet", 2, "all", "base", "start", "data")
    task = Task("client 0", 0, 1, 0, *where, (0, 1), paper, 1, "cpu", 30.0)
    images = cast(Images, SimpleNamespace(digest="images"))
    assert task.key(images) == "88817b51b1d8c52ab06a1f2fec125f20766d4b652b72f2467684f0b6e9cc7ebe"


def test_the_key_covers_all_that_an_update_depends_on(
    store: Store, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_task(store, drawings)

    def key(task: Task) -> str:
        return task.key(task_images(task))

    keys = {"base": key(base)}
    other_weights = put_weights(store, {"x": torch.zeros(1)})
    recipe_values = {
        "epochs": 4,
        "batch_size": 2,
        "lr": 0.02,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.1,
        "step_size": 1,
        "gamma": 0.2,
        "drop_last": True,
        "proximal_mu": 0.5,
    }
    assert recipe_values.keys() == vars(base.recipe).keys()
    changed = {
        "initial weights": replace(base, base=other_weights),
        "weights of the round": replace(base, start=other_weights),
        "images": replace(base, indices=tuple(range(1, 9))),
        "their order": replace(base, indices=(1, 0, *range(2, 8))),
        "one image less": replace(base, indices=tuple(range(7))),
        "seed": replace(base, seed=1),
        "round": replace(base, round=2),
        "client": replace(base, client=1),
        "baseline": replace(base, client="centralized"),
        "model": replace(base, model="squeezenet1_0"),
        "classes": replace(base, num_classes=3),
        "trainable": replace(base, trainable="head"),
        "threads": replace(base, threads=2),
        "device": replace(base, device="cuda"),
        "earlier epochs": replace(base, begins=1),
        "fewer steps": replace(base, steps=2),
        **{
            name: replace(base, recipe=replace(base.recipe, **{name: value}))
            for name, value in recipe_values.items()
        },
    }
    keys |= {name: key(task) for name, task in changed.items()}
    images = task_images(base)
    labels = images.labels.copy()
    labels[0] = 1 - labels[0]
    keys["labels"] = base.key(replace(images, labels=labels))
    digests = ("0" * 64, *images.digests[1:])
    keys["contents"] = base.key(replace(images, digests=digests))
    keys["transform"] = base.key(replace(images, transform="another size"))
    with monkeypatch.context() as patch:
        patch.setattr(update, "MEAN", (0.5, 0.5, 0.5))
        keys["normalisation"] = key(base)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "VERSION", recipe.VERSION + 1)
        keys["training code"] = key(base)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "3.0")
        keys["torch"] = key(base)
    assert len(set(keys.values())) == len(keys)
    for name in numerics.variables("cuda"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            task = replace(base, device="cpu" if name in numerics.variables("cpu") else "cuda")
            keys[name] = key(task)
            patch.setenv(name, "0")
            keys[f"{name}, another value"] = key(task)
            patch.setenv(name, "")
            assert key(base) == keys["base"]
    assert len(set(keys.values())) == len(keys)
    # What does not matter to the result does not matter to the key.
    same = replace(base, name="another name", checkpoint_seconds=99)
    assert key(same) == keys["base"]
    assert base.key(replace(images, files=("renamed",) * 8)) == keys["base"]


# --- updates ---------------------------------------------------------------------------------


def test_computed_once_then_found(store: Store, drawings: Path) -> None:
    events: list[dict[str, Any]] = []
    task = make_task(store, drawings)
    first = compute(task, store, events.append)
    second = compute(task, store, events.append)
    assert (first.reused, second.reused) == (False, True)
    assert tensors.digest(first.tensors) == tensors.digest(second.tensors)
    assert first.epochs == second.epochs
    assert [event["state"] for event in events] == [*["training"] * 4, "done", "reused"]


@pytest.mark.parametrize("old", [False, True])
def test_another_clients_update_is_computed_anew(store: Store, drawings: Path, old: bool) -> None:
    """A copy under a wrong name, of this version and of one that wrote no key into an entry."""
    tasks = [make_task(store, drawings, client=c, name=f"client {c}") for c in range(2)]
    first = [compute(task, store) for task in tasks]
    if old:
        unbind(store, first[0].key)
    shutil.copy(store.path(first[0].key), store.path(first[1].key))
    again = [compute(task, Store(store.root)) for task in tasks]
    assert [(one.reused, one.damaged) for one in again] == [(True, False), (False, True)]
    digests = [[tensors.digest(one.tensors) for one in both] for both in (first, again)]
    assert digests[0] == digests[1]
    assert {state for _, state in store.verify()} == {"whole"}


@pytest.mark.parametrize("name", ["client 0", "round 1, client 0", "round 1, client 0 (fedavg)"])
def test_updates_of_earlier_versions_are_not_trained_anew(
    store: Store, drawings: Path, name: str
) -> None:
    first = compute(make_task(store, drawings, name=name), store)
    for entry in store.entries():
        unbind(store, entry.key)
    again = compute(make_task(store, drawings), Store(store.root))
    assert (again.reused, again.key) == (True, first.key)


def test_other_weights_under_a_digest_are_not_taken(store: Store) -> None:
    sha256, other = (put_weights(store, {"a": torch.full((3,), float(n))}) for n in range(2))
    unbind(store, weights_key(other))
    shutil.copy(store.path(weights_key(other)), store.path(weights_key(sha256)))
    with pytest.raises(RunError, match="are gone"):
        get_weights(store, sha256)
    assert put_weights(store, {"a": torch.zeros(3)}) == sha256
    assert torch.equal(get_weights(store, sha256)["a"], torch.zeros(3))


def test_a_damaged_image_never_reaches_the_store(store: Store, drawings: Path) -> None:
    """Though the data set was whole when the training began."""
    cache = store.root / drawings.name
    shutil.copytree(drawings, cache)
    task = make_task(store, cache)

    def damage(event: dict[str, Any]) -> None:
        if event["epoch"] == 1:
            with (cache / "train.npy").open("r+b") as file:
                file.seek(1000)
                file.write(bytes(4096))

    with pytest.raises(RunError, match=r"is damaged: train\.npy, "):
        compute(task, store, damage)
    assert read(store, task.key(task_images(task))) is None


def test_a_damaged_update_is_computed_anew(store: Store, drawings: Path) -> None:
    task = make_task(store, drawings)
    first = compute(task, store)
    digest = tensors.digest(first.tensors)
    content = bytearray(store.path(first.key).read_bytes())
    content[-1] ^= 1
    store.path(first.key).write_bytes(content)
    again = compute(task, store)
    assert (again.reused, again.damaged) == (False, True)
    assert tensors.digest(again.tensors) == digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "momentum"),
    [("squeezenet1_1", 0.0), ("squeezenet1_1", 0.9), ("mobilenet_v3_small", 0.9)],
)
@pytest.mark.parametrize("client", [0, "centralized"])
def test_an_interrupted_training_goes_on_bit_by_bit(
    tmp_path: Path, drawings: Path, model: str, momentum: float, client: int | str
) -> None:
    """Stopped after each epoch in turn; dropout, batch norm, momentum and FedProx continue."""

    class Stop(Exception):
        pass

    mu = 0.0 if client == "centralized" else 0.3
    recipe = Recipe(4, 4, 0.01, momentum, False, 0.001, 2, 0.5, False, mu)
    whole = Store(tmp_path / "whole")
    task = make_task(whole, drawings, model, recipe=recipe, client=client)
    expected = compute(task, whole)
    parts = Store(tmp_path / "parts")
    make_task(parts, drawings, model)
    for last in (1, 2, 3):

        def stop(event: dict[str, Any], last: int = last) -> None:
            if event["state"] == "training" and event["epoch"] == last and event["loss"]:
                raise Stop

        if last > 1:  # the first event says where it goes on from: stop at the one after it
            seen: list[int] = []

            def stop(event: dict[str, Any], last: int = last, seen: list[int] = seen) -> None:
                seen.append(event["epoch"])
                if seen == [last - 1, last]:
                    raise Stop

        with pytest.raises(Stop):
            compute(task, parts, stop)
        checkpoint = parts.get(f"part-{expected.key}")
        assert checkpoint is not None
        assert len(checkpoint.meta["epochs"]) == last
        update._model_of_process.clear()  # as in a new process
    resumed = compute(task, parts)
    assert resumed.resumed == 3
    assert tensors.digest(resumed.tensors) == tensors.digest(expected.tensors)
    assert [e.loss for e in resumed.epochs] == [e.loss for e in expected.epochs]
    assert f"part-{expected.key}" not in parts


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(
    store: Store, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def no_checkpoints(self: Store, key: str, *args: Any) -> None:
        if key.startswith("part-"):
            raise RunError("the disk is full")
        put(self, key, *args)

    monkeypatch.setattr(Store, "put", no_checkpoints)
    events: list[dict[str, Any]] = []
    assert len(compute(make_task(store, drawings), store, events.append).epochs) == 3
    assert "training, cannot save" in [event["state"] for event in events]


PROGRAM = [sys.executable, "-m", "fedcats.training.update"]


def test_what_is_set_in_the_process_changes_no_update(store: Store, drawings: Path) -> None:
    """As a library or a user's own code may do; some of it by being imported."""
    task = make_task(store, drawings, "mobilenet_v3_small")
    first = compute(task, store)
    store.remove(first.key)
    torch.set_float32_matmul_precision("medium")
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    again = compute(task, store)
    assert not again.reused
    assert tensors.digest(again.tensors) == tensors.digest(first.tensors)
    assert torch.get_float32_matmul_precision() == "highest"
    assert float(torch.tensor([1e-40]) * 1) > 0
    assert not torch.backends.cudnn.benchmark


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "same"),
    [
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "5"}, True),
        ({"OMP_DYNAMIC": "true", "OMP_MAX_ACTIVE_LEVELS": "0"}, True),  # fewer threads than asked
        ({"MKL_CBWR": "COMPATIBLE"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, False),
    ],
)
def test_an_environment_gives_the_same_update_or_another_key(
    store: Store, drawings: Path, tmp_path: Path, environment: dict[str, str], same: bool
) -> None:
    task = make_task(store, drawings, threads=2)
    first = compute(task, store)
    if same:
        store.remove(first.key)
    done = subprocess.run(
        [*PROGRAM, str(store.root), str(tmp_path / "events"), str(os.getpid())],
        input=task.to_json().encode(),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert not answer["reused"]
    assert (answer["key"] == first.key) == same
    if same:
        again = read(store, answer["key"])
        assert again is not None
        assert tensors.digest(again.tensors) == tensors.digest(first.tensors)


@pytest.mark.slow
def test_fewer_threads_than_asked_for_are_refused(
    store: Store, drawings: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*PROGRAM, str(store.root), str(tmp_path / "events"), str(os.getpid())],
        input=make_task(store, drawings, threads=3).to_json().encode(),
        env={**os.environ, "OMP_THREAD_LIMIT": "2"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"runner.threads=3: OMP_THREAD_LIMIT allows 2, ")
    assert [entry.meta["kind"] for entry in store.entries()] == ["weights"]


@pytest.mark.slow
def test_processes_compute_an_update_once(store: Store, drawings: Path) -> None:
    tasks = [make_task(store, drawings, client=client) for client in (0, 1, 2)]
    ours, theirs = os.pipe()

    def work(order: Sequence[int]) -> None:
        for client in order:
            found = compute(tasks[client], Store(store.root))
            os.write(theirs, f"{client} {found.reused}\n".encode())

    for pid in [fork(lambda order=order: work(order)) for order in ((0, 1, 2), (2, 1, 0))]:
        os.waitpid(pid, 0)
    answers = os.read(ours, 1000).decode().splitlines()
    assert sorted(answers) == sorted(f"{c} {reused}" for c in (0, 1, 2) for reused in (True, False))


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_asked_for_it(
    store: Store, drawings: Path, tmp_path: Path
) -> None:
    """Also when that one is gone before the process has started up."""
    recipe = replace(make_task(store, drawings).recipe, epochs=1_000_000)
    task = make_task(store, drawings, recipe=recipe, checkpoint_seconds=1e9)
    command = [*PROGRAM, str(store.root), str(tmp_path / "events"), "1" * 9]  # nobody's parent
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(task.to_json())
    process.stdin.close()
    assert process.wait() == 1
    assert read(store, task.key(task_images(task))) is None
