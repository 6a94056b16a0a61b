"""Weights that travel: a real federation's transport."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common import Scalar
from flwr.serverapp import Grid

from fedcats.environment import say
from fedcats.errors import RunError, UserError
from fedcats.federated.received import Reply, read_tensors
from fedcats.federated.sites import site_number, site_photos
from fedcats.home import home
from fedcats.merging.rules import UPDATE
from fedcats.storage import Store, content_key
from fedcats.tensors import State, digest
from fedcats.training.device import find_device
from fedcats.training.parts import part_keys, read_part
from fedcats.training.update import Task, put_weights, read, task_images


@dataclass(frozen=True)
class OnTheWire:
    """A real federation: weights and updates travel as arrays, named by state-dict key.

    Attributes
    ----------
    store
        The server's own, in which updates are kept as they come.
    site_nodes
        Node ids by client.
    classes
        Names of the classes by label.
    base
        The full initial state: what the start weights leave out is sent beside them.
    store_bytes
        How much a site's own store may hold.
    timeout
        Seconds without a finished epoch after which a client ends its own process.
    """

    store: Store
    site_nodes: Sequence[int]
    classes: tuple[str, ...]
    base: State
    store_bytes: int
    timeout: float

    def nodes(self, grid: Grid, count: int) -> Sequence[int]:
        """Those that were there at the start; the SuperLink answers for one that is lost."""
        return self.site_nodes

    def pack(self, task: Task, start: State) -> RecordDict:
        """The task, the weights, and the names that the site's folders must have."""
        body: dict[str, str | int | float] = {
            "task": task.to_json(),
            "classes": json.dumps(self.classes),
            "store-bytes": self.store_bytes,
            "timeout": self.timeout,
        }
        frozen = {name: value for name, value in self.base.items() if name not in start}
        return RecordDict(
            {
                "arrays": ArrayRecord(start),
                "frozen": ArrayRecord(frozen),
                "config": ConfigRecord(body),  # type: ignore[arg-type]
            }
        )

    def unpack(self, content: RecordDict, said: Reply, key: str, like: State) -> str:
        """Keep the update under a key of the server's own making: what a site says is not a key."""
        tensors = read_tensors(content, like)
        about = {"examples": said.examples, "epochs": [epoch.as_dict() for epoch in said.epochs]}
        key = content_key({"kind": "received", "tensors": digest(tensors), **about})
        self.store.put(key, tensors, {"kind": "update", "task": "received", **about})
        return key

    def unpack_part(
        self, content: RecordDict, task: Task, part: str, key: str, like: Callable[[], State]
    ) -> State:
        """As it came: it is not kept, a site has it in its own store."""
        return read_tensors(content, like(), part)


def open_at_site(content: RecordDict, context: Context) -> dict[str, Scalar]:
    """The message of `OnTheWire` as one of `ByReference`: to the site's photos and store."""
    config = cast(ConfigRecord, content["config"])
    task = Task.from_json(str(config["task"]))
    number = site_number(context)
    if task.client != number:
        raise UserError(f"site {number} was asked for the update of client {task.client}")
    device = find_device(task.device, _print, f"site {number}: ")
    dataset = site_photos(context, tuple(json.loads(str(config["classes"]))))
    store = Store(home() / "store", int(cast(int, config["store-bytes"])))
    start = cast(ArrayRecord, content["arrays"]).to_torch_state_dict()
    frozen = cast(ArrayRecord, content["frozen"]).to_torch_state_dict()
    task = replace(
        task,
        data=str(dataset.path),
        indices=tuple(range(len(dataset.train))),
        base=put_weights(store, {**frozen, **start}),
        start=put_weights(store, start),
        device=device,
    )
    return {
        "task": task.to_json(),
        "store": str(store.root),
        "store-bytes": int(cast(int, config["store-bytes"])),
        "timeout": float(cast(float, config["timeout"])),
    }


def _print(line: str) -> None:
    """Into the log of the site."""
    say(f"fedcats: {line}", flush=True)


def arrays_of(config: Mapping[str, Scalar], key: str) -> dict[str, ArrayRecord]:
    """What the site has just kept and the task asks for, to be sent: records by name."""
    task, store = Task.from_json(str(config["task"])), Store(Path(str(config["store"])))
    parts = part_keys(task, task_images(task), key)
    sent = {part: ArrayRecord(read_part(store, own)) for part, own in parts.items()}
    if UPDATE not in task.sends:
        return {"arrays": ArrayRecord(), **sent}
    update = read(store, key)
    if update is None:
        raise RunError("the update is no longer in the site's store: raise store.max_gb")
    return {"arrays": ArrayRecord(update.tensors), **sent}
