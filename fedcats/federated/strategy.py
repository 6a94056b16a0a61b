"""The strategy: sends each client its task, folds the updates in order as they come."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

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
