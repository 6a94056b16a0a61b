"""Updates in the store: keys, damage, going on where a training stopped, processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from builders import fork, make_task, unbind

from fedcats import tensors
from fedcats.data import Images, prepare, synthetic_source
from fedcats.errors import RunError
from fedcats.storage import Store
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

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(synthetic_source(6, 1, 7), tmp_path_factory.mktemp("data"), size=40).path


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


def test_without_memory_a_training_ends_in_one_line_and_goes_on_later(
    store: Store, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(store, drawings)
    with monkeypatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. ..")
        patch.setattr(update, "_features", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(RunError, match="the GPU's memory is not enough: lower"):
            compute(task, store)
    assert len(compute(task, store).epochs) == 3


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
