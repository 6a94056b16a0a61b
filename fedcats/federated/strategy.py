"""The strategy: sends each client its task, folds the updates in order as they come."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcats.errors import RunError
from fedcats.federated.transport import Transport
from fedcats.merging.fold import check_update
from fedcats.merging.plan import Merged, Plan
from fedcats.merging.rules import Round, Rule
from fedcats.storage import Store
from fedcats.tensors import State, digest
from fedcats.training.update import Task, Update, put_weights, read


@dataclass
class MergeStrategy(Strategy):
    """Merges by any number of rules from one training.

    Attributes
    ----------
    rules
        By name; the first one's merge is what ``start`` returns (without rules, where it began).
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
    parameters
        State-dict keys that are no buffers.
    memory
        What rules keep from round to round.
    round, merged, failures
        Results of the last round: who was merged, as a `Merged` without a model, the merges by
        rule, and the reason by client left out.
    """

    rules: Mapping[str, Rule]
    plan: Plan
    make_tasks: Callable[[Sequence[int], int, str], Sequence[Task]]
    sizes: Sequence[int]
    store: Store
    transport: Transport
    on_update: Callable[[int, int, Update], None] = lambda _client, _round, _update: None
    first_round: int = 1
    parameters: frozenset[str] = frozenset()
    memory: dict[Rule, Any] = field(default_factory=dict)
    round: Merged = field(default_factory=lambda: Merged({}, [], [], []))
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
        now = Round(self._start, self.parameters, self.memory)
        begun = {name: now.begin(rule) for name, rule in self.rules.items()}
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
            now.add(update.tensors, update.examples, self.store.path(update.key))
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
        self.round = Merged({}, clients, keys, [], down=down, up=up)
        self.merged = {}
        for name, accumulator in begun.items():
            try:
                state, steps, what = accumulator.finish()
            except ValueError as error:
                raise RunError(f"round {server_round}: {error}") from error
            if not (steps or what):
                what = f"{name} {digest(state)}"
            self.merged[name] = replace(self.round, state=state, steps=list(steps), rule=what)
        first = next((merged.state for merged in self.merged.values()), self._start)
        return ArrayRecord(first), MetricRecord({"clients": len(clients)})

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


def _reason(text: str) -> str:
    """The client's own words in one line, out of Flower's ``<class '..'>:<'..'>``."""
    kind, _, said = text.partition(":<'")
    if kind.startswith("<class 'ray.exceptions.Actor"):  # a page that does not know it either
        return "its process ended: killed, out of memory, or hanging for strategy.timeout"
    said = (said or text).removesuffix("'>").rpartition("occurred. Message: ")[2]  # Ray's traceback
    return " ".join(said.split()) or text
