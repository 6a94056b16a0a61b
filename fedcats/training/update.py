"""A client's update: a pure function of a `Task`, computed once and then found in the store.

The centralized baseline is the same function over all training images. As a program
(``python -m fedcats.training.update STORE EVENTS PARENT < task.json``) it computes one update in a
process of its own, beside a running federation.
"""

import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcats.data import MEAN, STD, Dataset, Images, normalise, open_dataset
from fedcats.environment import disk_error, say
from fedcats.errors import RunError, UserError
from fedcats.merging.rules import UPDATE
from fedcats.models import build
from fedcats.seeding import derive_seed
from fedcats.storage import CHECKPOINT, Entry, Store, content_key, says
from fedcats.tensors import digest
from fedcats.text import one_line
from fedcats.training import loop, recipe
from fedcats.training.attack import Attack
from fedcats.training.events import Report, append_events, event
from fedcats.training.fast import keep_freed_memory
from fedcats.training.frozen import Features, FrozenPart, find_frozen_part, work_out
from fedcats.training.memory import memory
from fedcats.training.numerics import rounding, settle
from fedcats.training.recipe import DpSgd, Epoch, Recipe, Step
from fedcats.training.validation import validator


@dataclass(frozen=True)
class Task:
    """All that an update depends on; plain values, so that it travels as JSON.

    Attributes
    ----------
    name
        For people: ``client 3`` or ``centralized``.
    client
        Number of the client, or ``centralized``; with ``seed`` and ``round`` it seeds the training.
    model, num_classes, trainable
        See `fedcats.models.weights`.
    base
        Digest of the full initial state, an entry of the store.
    start
        Digest of the trainable tensors to start from, an entry of the store: those of ``base`` in
        round 1, the merged ones later.
    data, indices
        Folder of the decoded data set, and the positions of the images in its training split.
    threads
        Of torch; part of the key, since sums in another order round differently. So is
        `fedcats.training.numerics.rounding`.
    checkpoint_seconds
        How often, at the end of an epoch, an unfinished training is saved.
    attack
        What a simulated hostile client does.
    begins, steps
        See `fedcats.training.loop.train`.
    held
        Positions, in the training split, of photos on which the model is tested after each epoch.
    sends
        What the client gives: the update itself and parts, see `fedcats.training.parts`.
    dp
        With differential privacy how.
    """

    name: str
    client: int | str
    round: int
    seed: int
    model: str
    num_classes: int
    trainable: str
    base: str
    start: str
    data: str
    indices: tuple[int, ...]
    recipe: Recipe
    threads: int
    device: str
    checkpoint_seconds: float
    attack: Attack | None = None
    begins: int = 0
    steps: int = 0
    held: tuple[int, ...] = ()
    sends: tuple[str, ...] = (UPDATE,)
    dp: DpSgd | None = None

    @property
    def total_steps(self) -> int:
        """Steps that it takes."""
        return self.steps or self.recipe.epochs * self.recipe.steps(len(self.indices))

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """What `to_json` wrote."""
        values = json.loads(text)
        values["recipe"] = Recipe(**values["recipe"])
        values |= {name: tuple(values[name]) for name in ("indices", "held", "sends")}
        values["attack"] = Attack(**values["attack"]) if values["attack"] else None
        values["dp"] = DpSgd(**values["dp"]) if values.get("dp") else None
        return cls(**values)

    @property
    def training_seed(self) -> int:
        """Seed of the shuffling, flips and dropout of this client in this round."""
        return derive_seed(self.seed, "train", self.round, self.client)

    def images(self, train: Images) -> Images:
        """What the client trains on, out of the data set's training split."""
        own = train.subset(self.indices)
        return own if self.attack is None else self.attack.images(own, self.num_classes)

    def key(self, images: Images) -> str:
        """Key in the store of the update that these images give."""
        # What has no effect does not change the keys of older updates.
        more: dict[str, Any] = {k: v for k in ("begins", "steps") if (v := getattr(self, k))}
        if self.attack and self.attack.on_update:
            more["attack"] = asdict(self.attack)
        if self.dp:
            more["dp"] = asdict(self.dp)
        if self.held:  # the weights are the same without; what is kept beside them is not
            more["held"] = [Path(self.data).name, self.held]
        return content_key(
            {
                **more,
                "kind": "update",
                "start": self.start,
                "recipe": {k: v for k, v in asdict(self.recipe).items() if k != "proximal_mu" or v},
                "seed": self.training_seed,
                **environment(self, images),
            }
        )

    def fits(self, entry: Entry) -> bool:
        """Whether an entry that does not name its key can be this task's update or checkpoint."""
        about = {"round": self.round, "model": self.model, "examples": len(self.indices)}
        who = self.client if self.client == "centralized" else f"client {self.client}"
        return (
            says(about)(entry)
            and entry.meta.get("kind") in ("update", "checkpoint")
            and re.search(rf"\b{who}\b", entry.meta.get("task", who)) is not None
        )


@dataclass(frozen=True)
class Update:
    """What a client gives back.

    Attributes
    ----------
    key
        Of the entry in the store.
    tensors
        The trained tensors by state-dict key.
    examples
        Number of images of the shard.
    epochs
        Loss, steps and seconds of each epoch.
    reused
        Whether it was found in the store.
    resumed
        Number of epochs that were taken from a checkpoint, when it was trained.
    damaged
        Whether it was trained because the store's entry was damaged.
    """

    key: str
    tensors: dict[str, Tensor]
    examples: int
    epochs: tuple[Epoch, ...]
    reused: bool
    resumed: int = 0
    damaged: bool = False

    def origin(self) -> dict[str, int | bool]:
        """Where it came from, for the answer of the process that computed it."""
        return {"reused": self.reused, "resumed": self.resumed, "damaged": self.damaged}


def weights_key(sha256: str) -> str:
    """Key in the store of the weights with this digest."""
    return f"weights-{sha256}"


def put_weights(store: Store, tensors: Mapping[str, Tensor], sha256: str = "") -> str:
    """Keep weights that tasks start from; their digest, by which `Task` names them.

    The digest may be given where it is known already: it takes a while.
    """
    sha256 = sha256 or digest(tensors)
    if _weights(store, sha256) is None:
        store.put(weights_key(sha256), tensors, {"kind": "weights"}, sha256)
    return sha256


def get_weights(store: Store, sha256: str) -> dict[str, Tensor]:
    """What `put_weights` kept."""
    entry = _weights(store, sha256)
    if entry is None:
        raise RunError(
            f"store {store.root}: the weights {sha256[:12]} that a task starts from are gone"
        )
    return entry.tensors


def _weights(store: Store, sha256: str) -> Entry | None:
    return store.get(weights_key(sha256), lambda entry: entry.digest == sha256)


def task_images(task: Task) -> Images:
    """The images of the task's shard."""
    return task.images(_dataset(task.data).train)


@functools.lru_cache(maxsize=1)  # a folder's name says what it holds
def _dataset(path: str) -> Dataset:
    return open_dataset(Path(path))


def compute(task: Task, store: Store, report: Report = lambda _: None) -> Update:
    """The update of ``task``: from the store, or trained now (on from a checkpoint) and kept."""
    images = task_images(task)
    key = task.key(images)
    with store.claim(key, lambda: report(event(task, (), "waiting"))):
        found = read(store, key, task)
        if found is None and task.attack and task.attack.on_update:
            honest = compute(replace(task, attack=None), store, report)
            sent = task.attack.update(get_weights(store, task.start), honest.tensors)
            store.put(key, sent, _meta(task, "update", images, honest.epochs))
            return replace(honest, key=key, tensors=sent)
        if found is None:
            return _train(task, images, key, store, report)
        store.remove(CHECKPOINT + key)  # of a process that was killed just before it did so
    report_done(task, found, report)
    return found


def read(store: Store, key: str, task: Task | None = None) -> Update | None:
    """An update that the store holds; with the task, one of an earlier version is seen to fit."""
    entry = store.get(key, None if task is None else task.fits)
    if entry is None:
        return None
    epochs = tuple(Epoch(**epoch) for epoch in entry.meta["epochs"])
    return Update(key, entry.tensors, entry.meta["examples"], epochs, reused=True)


_model_of_process: dict[tuple[str, int, str], nn.Module] = {}


def model_of(task: Task, store: Store) -> nn.Module:
    """The process's model object, reused from task to task while the base stays the same."""
    cache_key = (task.model, task.num_classes, task.base)
    if cache_key not in _model_of_process:
        _model_of_process.clear()
        state = get_weights(store, task.base)
        model = build.empty(task.model, task.num_classes, state)
        # The layout in which the convolutions' images travel (see `fedcats.training.fast`).
        _model_of_process[cache_key] = model.to(memory_format=torch.channels_last)
        _ends.clear()
    return _model_of_process[cache_key]


# Of the process's model, by `Task.trainable`: the frozen part's end, and its bytes per image.
_ends: dict[str, tuple[str, int] | None] = {}
_FEATURES_BYTES = 2**30  # of more, nothing is kept


def _features(
    task: Task, images: Images, model: nn.Module, names: list[str], store: Store
) -> Features | None:
    """What the frozen part gives for the shard: from the store, or worked out now and kept."""
    if task.trainable == "all":
        return None
    if task.trainable not in _ends:
        example = normalise(images.pixels([0]).to(task.device))
        found = find_frozen_part(model, names, example)
        _ends[task.trainable] = None if found is None else (found.name, found(example).nbytes)
    end = _ends[task.trainable]
    if end is None:
        return None
    part = FrozenPart(model, end[0])
    size = min(task.recipe.batch_size, len(images))
    if 2 * len(images) * end[1] > _FEATURES_BYTES:
        return Features(part, images, None, size)
    key = content_key({"kind": "features", "size": size, **environment(task, images)})
    about = {"kind": "features", "examples": len(images)}
    entry = store.get(key, says(about))
    if entry is None:
        table = work_out(part, images, size)
        store.put(key, {"features": table}, {**about, "task": task.name})
    else:
        table = entry.tensors["features"].to(task.device)
    return Features(part, images, table, size, any_size=task.dp is not None)


_DROPOUT_AND_LAYER = ("efficientnet", "mnasnet", "mobilenet_v2")  # the model's classifier


def environment(task: Task, images: Images) -> dict[str, Any]:
    """What an update and the features of a shard both depend on."""
    # A dropout and one layer: the dropout was once counted to the frozen part, and drawn once.
    again = task.trainable == "classifier" and task.model.startswith(_DROPOUT_AND_LAYER)
    return {
        "version": recipe.VERSION + again,
        "torch": torch.__version__,
        "model": [task.model, task.num_classes, task.trainable],
        "base": task.base,
        "images": images.digest,
        "normalise": [MEAN, STD],
        "threads": task.threads,
        **rounding(task.device),
    }


@memory()
def _train(task: Task, images: Images, key: str, store: Store, report: Report) -> Update:
    """Train, from a checkpoint on where there is one, and keep."""
    settle(task.threads)
    keep_freed_memory()
    checkpoint_key = CHECKPOINT + key
    model = model_of(task, store).to(task.device)
    names = build.set_trainable(model, task.trainable)
    tensors = model.state_dict()
    checkpoint = store.get(checkpoint_key, task.fits)
    done: tuple[Epoch, ...] = ()
    momentum: dict[str, Tensor] = {}
    if checkpoint is None:
        start = get_weights(store, task.start)
    else:
        start = _under(checkpoint.tensors, "model/")
        momentum = {k: v.to(task.device) for k, v in _under(checkpoint.tensors, "step/").items()}
        done = tuple(Epoch(**epoch) for epoch in checkpoint.meta["epochs"])
    with torch.no_grad():
        for name in names:
            tensors[name].copy_(start[name])
    del start, checkpoint
    anchor = get_weights(store, task.start) if task.recipe.proximal_mu else {}
    anchor = {name: value.to(task.device) for name, value in anchor.items()}
    saved = time.monotonic()

    def after_epoch(epochs: tuple[Epoch, ...], step: Step) -> None:
        nonlocal saved
        state = "training"
        unfinished = len(epochs) < task.recipe.epochs
        if unfinished and time.monotonic() - saved >= task.checkpoint_seconds:
            parts = {f"model/{name}": tensors[name] for name in names}
            parts |= {f"step/{name}": value for name, value in step.state().items()}
            try:
                store.put(checkpoint_key, parts, _meta(task, "checkpoint", images, epochs))
            except RunError:  # a checkpoint only saves time: without it training goes on
                state = "training, cannot save"
            saved = time.monotonic()
        report(event(task, epochs, state))

    report(event(task, done, "training"))
    features = _features(task, images, model, names, store)
    held = _dataset(task.data).train.subset(task.held)
    epochs = loop.train(
        model,
        images,
        task.recipe,
        task.training_seed,
        done=done,
        optimizer_state=momentum,
        start=anchor,
        after_epoch=after_epoch,
        features=features,
        begins=task.begins,
        steps=task.steps,
        dp=task.dp,
        validate=validator(model, held, features.part if features else None),
    )
    # A copy: the next task of this process trains the same model object.
    trained = {name: tensors[name].to("cpu", copy=True) for name in names}
    store.put(key, trained, _meta(task, "update", images, epochs))
    store.remove(checkpoint_key)
    report(event(task, epochs, "done"))
    damaged = key in store.damaged
    return Update(key, trained, len(images), epochs, False, len(done), damaged)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _meta(task: Task, kind: str, images: Images, epochs: tuple[Epoch, ...]) -> dict[str, Any]:
    return {
        "kind": kind,
        "task": task.name,
        "round": task.round,
        "model": task.model,
        "examples": len(images),
        "epochs": [epoch.as_dict() for epoch in epochs],
    }


def report_done(task: Task, update: Update, report: Report) -> None:
    """Report a task of which only the update was seen."""
    report(event(task, update.epochs, "reused" if update.reused else "done"))


def exit_with(parent: int) -> None:
    """End this process when its parent is gone: nobody waits for the work any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> int:
    """Compute the task on standard input; arguments: store folder, events file, parent's pid."""
    threading.Thread(target=exit_with, args=(int(sys.argv[3]),), daemon=True).start()
    text = sys.stdin.read()
    if not text:  # started early, and not needed
        return 0
    store, events = Store(Path(sys.argv[1])), append_events(Path(sys.argv[2]))
    try:
        update = compute(Task.from_json(text), store, events)
    except (RunError, UserError, OSError) as caught:
        error = disk_error(caught) if isinstance(caught, OSError) else caught
        say(one_line(error), error=True)
        return error.exit_code
    say(json.dumps({"key": update.key, **update.origin()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
