"""The strategy: sends each client its task, folds the updates in order as they come."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcats.errors import RunError
from fedcats.federated.transport import Transport
from fedcats.merging.fold import Fold, check_update
from fedcats.merging.plan import Merged, Plan
from fedcats.merging.robust import Robust
from fedcats.merging.rules import Rule, fedavg
from fedcats.merging.server_optimizer import Memory, ServerOptimizer
from fedcats.storage import Store
from fedcats.tensors import State, digest
from fedcats.training.update import Task, Update, put_weights, read


@dataclass
class MergeStrategy(Strategy):
    """Merges by one or more rules from one training; see `Fold`, `Robust`, `ServerOptimizer`.

    Attributes
    ----------
    rules
        By name; the first one's merge is what ``start`` returns.
    make_tasks
        ``make_tasks(clients, round, digest of the weights to start from)``, one for each client.
    sizes
        How many images each client has: a reply with another number is refused.
    store
        Where updates are kept.
    transport
        Brings weights to the clients and their updates into the store.
    on_update
        Called with each client, the round and its update, as it is folded.
    first_round
        Number of ``start``'s first round, for runs that go on.
    memory
        What server optimizers remember, by rule; replaced in each round.
    merged, failures
        Results of the last round: the merges by rule, and the reason by client left out.
    """

    rules: Mapping[str, Rule | Robust | ServerOptimizer]
    plan: Plan
    make_tasks: Callable[[Sequence[int], int, str], Sequence[Task]]
    sizes: Sequence[int]
    store: Store
    transport: Transport
    on_update: Callable[[int, int, Update], None] = lambda _client, _round, _update: None
    first_round: int = 1
    memory: dict[str, Memory] = field(default_factory=dict)
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
        start = put_weights(self.store, self._start)
        nodes = self.transport.nodes(grid, len(self.plan.order))
        self._nodes = {node: client for client, node in enumerate(nodes[: len(self.plan.order)])}
        self._asked = self.plan.clients(server_round)
        tasks = self.make_tasks(self._asked, server_round, start)
        for client, task in zip(self._asked, tasks, strict=True):
            content = self.transport.pack(task, self._start)
            yield Message(content, dst_node_id=nodes[client], message_type=MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, which come in the order of the merge (see `InOrderGrid`)."""
        server_round += self.first_round - 1
        # By rule, so that FedAvg and the server optimizers on top of it share one.
        folds = {
            rule: Fold(rule, self._start)
            for rule in map(_fold_rule, self.rules.values())
            if rule is not None
        }
        clients, keys, self.failures = [], [], {}
        for position, reply in enumerate(replies):
            # The SuperLink answers for a node that is lost, so such a reply has no client's id.
            client = self._nodes.get(reply.metadata.src_node_id, self._asked[position])
            try:
                update = self._open(reply)
                if update.examples != self.sizes[client]:
                    raise ValueError(
                        f"it says that it has {update.examples} examples, but it has "
                        f"{self.sizes[client]}"
                    )
                check_update(update.tensors, self._start, self.plan.max_norm)
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
        size = sum(value.nbytes for value in self._start.values())
        down, up = size * len(self._asked), size * len(clients)
        self.merged = {}
        for name, rule in self.rules.items():
            steps: list[float] = []
            try:
                if isinstance(rule, Robust):
                    state, steps = rule.merge([self.store.path(key) for key in keys])
                    what = rule.label
                elif isinstance(rule, ServerOptimizer):
                    mean = folds[fedavg].exact()
                    old = self.memory.get(name, {})
                    state, self.memory[name] = rule.merge(self._start, mean, old)
                    what = f"{name} {digest(state)}"
                else:
                    state, steps, what = folds[rule].result(), folds[rule].steps, ""
            except ValueError as error:
                raise RunError(f"round {server_round}: {error}") from error
            self.merged[name] = Merged(state, clients, keys, steps, what, down, up)
        first = next(iter(self.merged.values()))
        return ArrayRecord(first.state), MetricRecord({"clients": len(clients)})

    def _open(self, reply: Message) -> Update:
        """The update of a reply; ValueError for whatever is wrong with it."""
        if reply.has_error():
            raise ValueError(_reason(reply.error.reason or str(reply.error.code)))
        try:
            info = cast(ConfigRecord, reply.content["info"])
            update = read(self.store, self.transport.unpack(reply.content))
            if update is None:
                raise ValueError("its update is not in the store")
            examples = info["examples"]
            if type(examples) is not int:
                raise ValueError(f"its number of examples is {examples!r}")
            # What the client says and did, not what reading it back says.
            return replace(
                update,
                examples=examples,
                reused=bool(info["reused"]),
                resumed=int(cast(int, info["resumed"])),
                damaged=bool(info["damaged"]),
            )
        except KeyError as error:
            raise ValueError(f"its reply lacks {error}") from error
        except (TypeError, ArithmeticError) as error:
            raise ValueError(f"its reply cannot be read: {error}") from error

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: every model is tested on the same photos, at the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing to aggregate."""


def _fold_rule(rule: Rule | Robust | ServerOptimizer) -> Rule | None:
    """The rule of the fold that a merge needs, if it needs one."""
    if isinstance(rule, ServerOptimizer):
        return fedavg
    return None if isinstance(rule, Robust) else rule


def _reason(text: str) -> str:
    """The client's own words in one line, out of Flower's ``<class '..'>:<'..'>``."""
    kind, _, said = text.partition(":<'")
    if kind.startswith("<class 'ray.exceptions.Actor"):  # a page that does not know it either
        return "its process ended: killed, out of memory, or hanging for strategy.timeout"
    said = (said or text).removesuffix("'>").rpartition("occurred. Message: ")[2]  # Ray's traceback
    return " ".join(said.split()) or text


class InOrderGrid:
    """A grid whose ``send_and_receive`` yields each reply as soon as its turn comes.

    Flower's own holds all replies of a round until the last has come. ``Strategy.start`` is
    content with this iterator, so at most one update is in memory beside the accumulators; a
    reply that comes early waits where it is (in a simulation it is a key, not a model).

    Parameters
    ----------
    window
        How many messages are out at a time; None: all. Flower's simulation looks at every message
        that is out once for each node, again and again: with 1,000 of both it does little else.
    give_up
        Called when a reply has not come in time.
    """

    def __init__(
        self,
        grid: Grid,
        poll_seconds: float = 0.05,
        window: int | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._grid = grid
        self._give_up = give_up
        self._poll = poll_seconds
        self._window = window

    def __getattr__(self, name: str) -> object:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages now; yield the replies in the order of the messages.

        One whose turn it is and that does not come for ``timeout`` seconds is an error reply.
        """
        # One by one: all messages of a round together would be all its models in memory.
        waiting = iter(messages)
        sent = deque(self._push(message) for message in itertools.islice(waiting, self._window))
        return self._replies(sent, waiting, timeout)

    def _push(self, message: Message) -> tuple[str, Metadata]:
        (message_id,) = self._grid.push_messages([message])
        return message_id, message.metadata

    def _replies(
        self,
        sent: deque[tuple[str, Metadata]],
        waiting: Iterator[Message],
        timeout: float | None,
    ) -> Iterator[Message]:
        while sent:
            message_id, metadata = sent.popleft()
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            while not (replies := list(self._grid.pull_messages([message_id]))):
                if time.monotonic() > deadline:
                    self._give_up()
                    asked = Message(
                        RecordDict(),
                        dst_node_id=metadata.dst_node_id,
                        message_type=metadata.message_type,
                    )
                    error = Error(code=0, reason=f"no reply for {timeout:.0f} s")
                    replies = [Message(error, reply_to=asked)]
                    break
                time.sleep(self._poll)
            sent.extend(self._push(message) for message in itertools.islice(waiting, 1))
            yield from replies
