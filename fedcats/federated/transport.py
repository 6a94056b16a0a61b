"""How weights travel: by reference where server and clients share a disk, else on the wire.

Both give the client the same thing, a `fedcats.training.update.Task` that names its photos and its
weights, and the server the same thing, a key in its store; `FedcatsClient` does not notice.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedcats.errors import UserError
from fedcats.federated.received import Reply
from fedcats.storage import Store
from fedcats.tensors import State
from fedcats.training.parts import part_key
from fedcats.training.update import Task, task_images

NODES_TIMEOUT = 3.0  # seconds: a simulation's nodes are there from the start
POLL_SECONDS = 0.05


class Transport(Protocol):
    """The server's end."""

    def nodes(self, grid: Grid, count: int) -> Sequence[int]:
        """Node ids by client, for ``count`` clients."""
        ...

    def pack(self, task: Task, start: State) -> RecordDict:
        """The content of a client's message: its task, and the weights to start from."""
        ...

    def unpack(self, content: RecordDict, said: Reply, key: str, like: State) -> str:
        """The key under which the reply's update is in the server's store; else ValueError.

        Parameters
        ----------
        content, said
            The reply, and what it says beside the weights.
        key
            Of the task's update in a store that server and client share.
        like
            The weights that were sent.
        """
        ...

    def unpack_part(
        self, content: RecordDict, task: Task, part: str, key: str, like: Callable[[], State]
    ) -> State:
        """What the reply gives for a part of `Task.sends`; else ValueError.

        Parameters
        ----------
        key
            As for `unpack`.
        like
            Gives its shapes and dtypes, meta tensors, where a site could send others.
        """
        ...


def wait_for_nodes(grid: Grid, count: int) -> list[int]:
    """Ids of the clients' nodes, once ``count`` have registered; UserError when they do not."""
    deadline = time.monotonic() + NODES_TIMEOUT
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise UserError(
                f"{len(nodes)} supernodes for {count} clients: start the run with "
                f'--federation-config "num-supernodes={count}" or set '
                f"partition.num_shards={len(nodes)}"
            )
        time.sleep(POLL_SECONDS)
    return nodes


def count_nodes(grid: Grid, still: float = 1.0) -> int:
    """How many nodes there are, once none has registered for ``still`` seconds; 0 if none does."""
    count, since = 0, time.monotonic()
    deadline = since + NODES_TIMEOUT
    while (now := time.monotonic()) < (since + still if count else deadline):
        if (found := len([*grid.get_node_ids()])) != count:
            count, since = found, now
        time.sleep(POLL_SECONDS)
    return count


@dataclass(frozen=True)
class ByReference:
    """Simulation: tasks and replies name entries of the one store. No array is copied.

    Attributes
    ----------
    store, events
        Shared with the clients.
    timeout
        Seconds without a finished epoch after which a client ends its own process; None where
        that process is the server's too.
    """

    store: Store
    events: Path
    timeout: float | None

    def nodes(self, grid: Grid, count: int) -> Sequence[int]:
        """Any nodes: the task says everything, so it does not matter which takes it."""
        return wait_for_nodes(grid, count)

    def pack(self, task: Task, start: State) -> RecordDict:
        """The task, and where store and events are."""
        body: dict[str, str | int | float] = {
            "task": task.to_json(),
            "store": str(self.store.root),
            "events": str(self.events),
        }
        if self.timeout is not None:
            body["timeout"] = self.timeout
        return RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord(body)})  # type: ignore[arg-type]

    def unpack(self, content: RecordDict, said: Reply, key: str, like: State) -> str:
        """The task's key, which is all that the client may name."""
        if said.key != key:
            raise ValueError(f"its reply names the update {said.key!r}, its task's is {key!r}")
        return key

    def unpack_part(
        self, content: RecordDict, task: Task, part: str, key: str, like: Callable[[], State]
    ) -> State:
        """From the store, under the key that the task gives it."""
        entry = self.store.get(part_key(task, part, task_images(task), key))
        if entry is None:
            raise ValueError(f"its {part} is not in the store")
        return entry.tensors
