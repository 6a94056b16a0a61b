"""What cannot work is refused before anything is trained."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from torch import nn

from fedcats.errors import UserError
from fedcats.merging.secure import refusal
from fedcats.models import build
from fedcats.training.numerics import settle

if TYPE_CHECKING:
    from fedcats.experiment.inputs import Inputs
    from fedcats.storage import Store


def check_room(this: Inputs, store: Store, beside: int) -> None:
    """UserError when the disk cannot hold the models, or the store what it needs at one time.

    ``beside``: bytes of what the clients give beside their updates.
    """
    config = this.config
    if config.save_models != "none" and config.mode != "merge":
        whole = sum(value.nbytes for value in this.initial.state.values())
        count = int(config.mode != "federated")
        if config.mode != "centralized":
            count += len(config.strategy.rules)
            more = len(this.shards) + config.has_same_steps
            count += more * (config.save_models == "all")
        free = shutil.disk_usage(this.folder).free
        if count * whole > free:
            less = "merged or none" if config.save_models == "all" else "none"
            raise UserError(
                f"save_models={config.save_models}: {count} models of {whole / 1e6:.0f} MB do not "
                f"fit into {this.folder}, where {free / 1e9:.2g} GB are free; allowed is {less}"
            )
    if store.max_bytes is None:
        return
    state = this.initial.state
    base = sum(value.nbytes for value in state.values())
    update = sum(state[name].nbytes for name in this.trained_names)
    clients = 0 if config.mode == "centralized" else len(this.shards)
    references = (config.mode != "federated") + config.has_same_steps
    count = 1 + clients + references  # one: the start
    count += 1 + clients if config.rounds > 1 else 0  # the round at hand
    unfinished = min(this.workers, clients) + references
    checkpoints = unfinished * update * (2 if config.train.momentum else 1)
    need = base + count * update + checkpoints + beside
    if need > store.max_bytes:
        raise UserError(
            f"store.max_gb={config.store.max_gb:g}: this run needs {need / 1e9:.2g} GB at one time "
            f"({count} updates of {update / 1e6:.0f} MB, checkpoints, initial weights"
            f"{f', {beside / 1e6:.0f} MB of what rules read beside them' * bool(beside)}); allowed "
            "is more than that, or store.enabled=false"
        )


def check_sizes(this: Inputs) -> None:
    """UserError when somebody would train on nothing."""
    train = this.config.train
    for who, size in this.trainings.items():
        if train.drop_last and size < train.batch_size:
            raise UserError(
                f"train.drop_last=true: {who} has {size} training images, fewer than "
                f"train.batch_size={train.batch_size}, and would train on nothing"
            )


def check_secure(this: Inputs) -> None:
    """UserError when a secure sum would have too few clients: sites are counted only now."""
    strategy = this.config.strategy
    if this.sites is None or not strategy.secure:
        return
    if why := refusal(this.config.rules[strategy.rules[0]], len(this.plan.clients(1))):
        raise UserError(f"strategy.secure=true: {why}")


def check_step(this: Inputs, model: nn.Module) -> None:
    """UserError when the model cannot take a step on each batch that there will be."""
    train, name, side = this.config.train, this.config.model.name, this.dataset.size

    def smallest(size: int) -> int:
        rest = size % train.batch_size
        return rest if rest and not train.drop_last else min(size, train.batch_size)

    settle(this.config.runner.threads)
    if not (why := build.refusal(model, 1, side)):
        return  # then it takes more, too
    if always := build.refusal(model, 2, side):
        raise UserError(
            f"model.name={name}: cannot be trained on images of {side} x {side}: {always}"
        )
    who, size = min(this.trainings.items(), key=lambda item: smallest(item[1]))
    if smallest(size) > 1:
        return
    if size == 1:
        allowed = "allowed are partitions and counts that give everyone two images"
    elif train.batch_size == 1:
        allowed = "allowed is a larger train.batch_size"
    else:
        allowed = "allowed is train.drop_last=true, or another train.batch_size"
    raise UserError(
        f"train.batch_size={train.batch_size}: of {size} training images of {who} a batch of one "
        f"is made, which {name} cannot be trained on ({why}); {allowed}"
    )
