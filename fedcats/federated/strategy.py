"""The strategy: sends each client its task, folds the updates in order as they come."""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcats.core.errors import RunError
from fedcats.core.merging import Fold, Rule, check_update, effective_weights
from fedcats.core.models import State
from fedcats.core.seeding import derive_seed
from fedcats.core.store import Store
from fedcats.core.update import Task, Update, put_weights, read
from fedcats.federated.transport import Transport


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes
    ----------
    state
        The merged tensors by state-dict key.
    clients, keys
        Who was merged, in that order, and the keys of their updates in the store.
    steps
        Of the fold.
    """

    state: State
    clients: list[int]
    keys: list[str]
    steps: list[float]

    @property
    def effective_weights(self) -> list[float]:
        """Share of each client in the result."""
        return effective_weights(self.steps)


@dataclass(frozen=True)
class Plan:
    """Who takes part and in which order.

    Attributes
    ----------
    order
        All clients in the order of the merge.
    fraction
        Share of them that takes part in a round, drawn for each round from the seed.
    on_failure, min_clients
        ``fail``, or ``survivors`` and the number of them that is needed.
    """

    order: Sequence[int]
    fraction: float
    seed: int
    on_failure: str
    min_clients: int

    def clients(self, server_round: int) -> list[int]:
        """The clients of a round, in the order of the merge."""
        count = max(1, math.floor(self.fraction * len(self.order) + 0.5))
        draw = random.Random(derive_seed(self.seed, "sample", server_round))
        chosen = set(draw.sample(sorted(self.order), count))
        return [client for client in self.order if client in chosen]


def merge_order(order: str | Sequence[int], num_clients: int, seed: int) -> list[int]:
    """``partition``, ``reversed``, ``shuffled`` or a list, as a list of all clients."""
    if not isinstance(order, str):
        return list(order)
    clients = list(range(num_clients))
    if order == "reversed":
        clients.reverse()
    elif order == "shuffled":
        random.Random(derive_seed(seed, "order")).shuffle(clients)
    return clients


@dataclass
class MergeStrategy(Strategy):
    """Merges by one or more rules from one training; see `fedcats.core.merging.Fold`.

    Attributes
    ----------
    rules
        By name; the first one's merge is what ``start`` returns.
    make_task
        ``make_task(client, round, digest of the weights to start from)``.
    store
        Where updates are kept.
    transport
        Brings weights to the clients and their updates into the store.
    on_update
        Called with each client, the round and its update, as it is folded.
    first_round
        Number of ``start``'s first round, for runs that go on.
    merged, failures
        Results of the last round: the merges by rule, and the reason by client left out.
    """

    rules: Mapping[str, Rule]
    plan: Plan
    make_task: Callable[[int, int, str], Task]
    store: Store
    transport: Transport
    on_update: Callable[[int, int, Update], None] = lambda _client, _round, _update: None
    first_round: int = 1
    merged: dict[str, Merged] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def summary(self) -> None:
        """Nothing: fedcats prints its own."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the round, in the order of the merge."""
        server_round += self.first_round - 1
        self._start = cast(State, arrays.to_torch_state_dict())
        digest = put_weights(self.store, self._start)
        nodes = self.transport.nodes(grid, len(self.plan.order))
        self._nodes = {node: client for client, node in enumerate(nodes[: len(self.plan.order)])}
        self._asked = self.plan.clients(server_round)
        for client in self._asked:
            task = self.make_task(client, server_round, digest)
            content = self.transport.pack(task, self._start)
            yield Message(content, dst_node_id=nodes[client], message_type=MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, which come in the order of the merge (see `InOrderGrid`)."""
        server_round += self.first_round - 1
        folds = {name: Fold(rule) for name, rule in self.rules.items()}
        clients, keys, self.failures = [], [], {}
        for position, reply in enumerate(replies):
            # The SuperLink answers for a node that is lost, so such a reply has no client's id.
            client = self._nodes.get(reply.metadata.src_node_id, self._asked[position])
            try:
                update = self._open(reply)
                check_update(update.tensors, like=self._start)
            except ValueError as error:
                if self.plan.on_failure == "fail":
                    raise RunError(
                        f"client {client} failed in round {server_round}: {error} (finished "
                        "updates are kept; strategy.on_failure=survivors merges without it)"
                    ) from error
                self.failures[client] = str(error)
                continue
            for fold in folds.values():
                fold.add(update.tensors, update.examples)
            clients.append(client)
            keys.append(update.key)
            self.on_update(client, server_round, update)
        if len(clients) < self.plan.min_clients:
            raise RunError(
                f"round {server_round}: {len(clients)} clients finished, strategy.min_clients is "
                f"{self.plan.min_clients}; failed: {self.failures}"
            )
        self.merged = {
            name: Merged(fold.result(), clients, keys, fold.steps) for name, fold in folds.items()
        }
        first = next(iter(self.merged.values()))
        return ArrayRecord(first.state), MetricRecord({"clients": len(clients)})

    def _open(self, reply: Message) -> Update:
        if reply.has_error():
            raise ValueError(_reason(reply.error.reason or str(reply.error.code)))
        info = cast(ConfigRecord, reply.content["info"])
        update = read(self.store, self.transport.unpack(reply.content))
        if update is None:
            raise ValueError("its update is not in the store")
        # What the client did, not what reading it back says.
        return replace(
            update,
            reused=bool(info["reused"]),
            resumed=int(cast(int, info["resumed"])),
            damaged=bool(info["damaged"]),
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: every model is tested on the same photos, at the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing to aggregate."""


def _reason(text: str) -> str:
    """The client's own words out of Flower's ``<class '..'>:<'..'>``."""
    return text.split(":<'", 1)[-1].removesuffix("'>").strip() or text


class InOrderGrid:
    """A grid whose ``send_and_receive`` yields each reply as soon as its turn comes.

    Flower's own holds all replies of a round until the last has come. ``Strategy.start`` is
    content with this iterator, so at most one update is in memory beside the accumulators; a
    reply that comes early waits where it is (in a simulation it is a key, not a model).
    """

    def __init__(self, grid: Grid, poll_seconds: float = 0.05) -> None:
        self._grid = grid
        self._poll = poll_seconds

    def __getattr__(self, name: str) -> object:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push all messages now; yield the replies in the order of the messages.

        Raises
        ------
        RunError
            When the reply whose turn it is does not come for ``timeout`` seconds.
        """
        # One by one: all messages of a round together would be all its models in memory.
        ids = [i for message in messages for i in self._grid.push_messages([message])]
        return self._replies(ids, timeout)

    def _replies(self, ids: list[str], timeout: float | None) -> Iterator[Message]:
        for number, message_id in enumerate(ids):
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            while not (replies := list(self._grid.pull_messages([message_id]))):
                if time.monotonic() > deadline:
                    raise RunError(f"no reply from client number {number + 1} for {timeout:.0f} s")
                time.sleep(self._poll)
            yield from replies
