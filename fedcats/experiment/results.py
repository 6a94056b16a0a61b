"""What a run writes down."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import numpy as np
from omegaconf import DictConfig
from torch import nn

from fedcats import __version__
from fedcats.config.compose import as_dict
from fedcats.data import Images, shared_between_shards
from fedcats.experiment.inputs import Inputs, class_counts
from fedcats.experiment.train import Trained
from fedcats.federated.quiet import default_workers
from fedcats.metrics import POSITIVE
from fedcats.models import build
from fedcats.report import write_report
from fedcats.results import EpochRecord, Paper, Results, Shard, Training
from fedcats.text import write_csv
from fedcats.training.recipe import Epoch
from fedcats.training.update import Update

SCHEMA = 1


@contextlib.contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the context took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def write_shards(this: Inputs) -> None:
    """Which file went to which client, with its content hash."""
    if this.sites is not None:
        return  # that is the sites' own business
    rows: list[Sequence[object]] = [("client", "file", "label", "sha256")]
    for client, indices in enumerate(this.shards):
        images = this.dataset.train.subset(indices)
        labels = [this.dataset.classes[label] for label in images.labels]
        rows += [(client, *row) for row in zip(images.files, labels, images.digests, strict=True)]
    write_csv(this.folder / "shards.csv", rows)


def training_record(update: Update) -> Training:
    """What ``results.json`` says of a model's training."""
    return {
        "examples": update.examples,
        "steps": sum(epoch.steps for epoch in update.epochs),
        "epochs": [_epoch_record(epoch) for epoch in update.epochs],
    }


def _epoch_record(epoch: Epoch) -> EpochRecord:
    record: EpochRecord = {"loss": epoch.loss, "seconds": epoch.seconds}
    if epoch.validation:
        record["validation"] = epoch.validation
    return record


def collect(this: Inputs, raw: DictConfig, trained: Trained, command: str) -> Results:
    """All of ``results.json``, still without scores and times."""
    dataset, classes = this.dataset, this.dataset.classes

    def shard(client: int) -> Shard:
        if this.sites is not None:
            counts = this.sites[client].per_class
            return {"client": client, "examples": sum(counts.values()), "per_class": counts}
        images = dataset.train.subset(this.shards[client])
        return {
            "client": client,
            "examples": len(images),
            "per_class": class_counts(images, classes),
            "digest": images.digest,
        }

    used = np.setdiff1d(np.arange(len(dataset.train)), this.held)
    train = class_counts(dataset.train.subset(used), classes)
    if this.sites is not None:
        train = {name: sum(site.per_class[name] for site in this.sites) for name in classes}
    results: Results = {
        "schema": SCHEMA,
        "status": "complete",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "config": as_dict(raw),
        "seed": this.config.draws.own,
        "versions": {
            "fedcats": __version__,
            "python": platform.python_version(),
            **_versions("torch", "torchvision", "flwr", "ray"),
        },
        "machine": {
            "processor": _processor(),
            "cores": default_workers(),
            "workers": this.workers,
            "device": this.device,
        },
        "data": {
            "source": dataset.name,
            "note": dataset.note,
            "audit": dataset.audit.as_dict(),
            "classes": list(classes),
            "train": train,
            "test": class_counts(dataset.test, classes),
            "held_out": class_counts(this.validation, classes),
            "left_out": this.left_out,
            "in_several_shards": [
                [{"client": client, "file": file} for client, file in group]
                for group in shared_between_shards(dataset.train, this.shards)
            ],
            "digest": {"train": dataset.train.digest, "test": dataset.test.digest},
            "shards": [shard(client) for client in range(len(this.shards))],
        },
        "weights": {
            "source": this.initial.source,
            "sha256": this.initial.sha256,
            "note": this.initial.note,
            "missing": list(this.initial.missing),
            "only_linear": _only_linear(this),
        },
        "store": {
            "enabled": this.config.store.enabled,
            "trained": [name for name, _, update in trained.history if not update.reused],
            "reused": [name for name, _, update in trained.history if update.reused],
            "resumed": {n: update.resumed for n, _, update in trained.history if update.resumed},
            "damaged": [name for name, _, update in trained.history if update.damaged],
        },
        "models": {},
        "comparison": {},
        "seconds": {"data": 0.0, "training": 0.0, "evaluation": 0.0, "total": 0.0},
    }
    if len(classes) == 2:
        results["data"]["positive"] = classes[this.positive]
    if this.hostile:
        attack = this.config.attack
        results["attack"] = {"name": attack.name, "clients": this.hostile, "factor": attack.factor}
    if trained.failures:
        results["failures"] = trained.failures
    if this.config.paper.get("name") != "none" and this.positive == POSITIVE:  # the paper's, too
        results["paper"] = cast(Paper, this.config.paper)
    return results


def _only_linear(this: Inputs) -> bool:
    model = build.empty(this.config.model.name, len(this.dataset.classes), this.initial.state)
    name, head = build.head_layer(model)
    return isinstance(head, nn.Linear) and {*this.trained_names} == {
        f"{name}.{part}" for part, _ in head.named_parameters()
    }


def _versions(*names: str) -> dict[str, str]:
    """Of the installed packages; without Ray a run with ``runner=local`` does all it does."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_history(folder: Path, trained: Trained) -> None:
    """Write ``history.csv``: loss, seconds and, where there is any, validation of every epoch."""
    rows: list[list[object]] = [["model", "round", "epoch", "loss", "seconds"]]
    epochs = [epoch for *_, update in trained.history for epoch in update.epochs]
    if tested := any(epoch.validation for epoch in epochs):
        rows[0] += ["validation_loss", "validation_accuracy"]
    for name, server_round, update in trained.history:
        for number, epoch in enumerate(update.epochs, 1):
            rows.append([name, server_round, number, epoch.loss, f"{epoch.seconds:.3f}"])
            if tested:
                one = epoch.validation
                rows[-1] += [one["loss"], one["accuracy"]] if one else ["", ""]
    write_csv(folder / "history.csv", rows)


def write_results(folder: Path, results: Results, images: Images) -> OSError | None:
    """Write ``results.json`` and what shows it; it says ``complete`` when all of that is there.

    Returns what was wrong with the disk when only the report was to be written.
    """
    write_json(folder / "results.json", results | {"status": "without its report"})
    try:
        write_report(folder, results, images)
        write_json(folder / "results.json", results)
    except OSError as error:
        return error
    return None


def write_json(path: Path, results: Results) -> None:
    """Write the results, or nothing."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        text = json.dumps(results, indent=1, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
