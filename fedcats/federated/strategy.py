"""The strategy: sends each client its task, folds the updates in order as they come."""

import functools
from collections import Counter
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
from fedcats.federated.flower_words import reason
from fedcats.federated.received import printable, read_reply
from fedcats.federated.secure import SecureSum
from fedcats.federated.transport import ByReference, Transport
from fedcats.merging.fold import check_update, distance, has_outgrown
from fedcats.merging.plan import Merged, Plan
from fedcats.merging.rules import UPDATE, Round, Rule
from fedcats.merging.secure import merge_sum, public_weights
from fedcats.metrics import NOT_FINITE
from fedcats.storage import Store
from fedcats.tensors import State, digest
from fedcats.training.parts import check, shapes, trains
from fedcats.training.update import Task, Update, put_weights, read


@dataclass
class MergeStrategy(Strategy):
    """Merges by any number of rules from one training.

    Attributes
    ----------
    rules
        By name; the first one's merge is what ``start`` returns (without rules, where it began).
    make_tasks
        ``make_tasks(clients, round, digest of the weights to start from)``: for each client its
        task, and the key of the task's update.
    sizes
        How many images each client has: a reply with another number is refused.
    store
        Where updates are kept.
    transport
        Brings weights to the clients and their updates into the store.
    on_update
        Called with each client, the round and its update, as it is folded.
    usable
        Whether a model with these tensors gives answers at all.
    first_round
        Number of ``start``'s first round, for runs that go on.
    parameters
        State-dict keys that are no buffers.
    memory
        What rules keep from round to round.
    pretrained
        State-dict keys that did not start at random.
    secure
        Whether there is a secure sum, of the first rule: then no update comes here.
    timeout
        Seconds for each answer in it.
    round, merged, failures
        Results of the last round: who was merged, as a `Merged` without a model, the merges by
        rule, and the reason by client left out.
    """

    rules: Mapping[str, Rule]
    plan: Plan
    make_tasks: Callable[[Sequence[int], int, str], Sequence[tuple[Task, str]]]
    sizes: Sequence[int]
    store: Store
    transport: Transport
    on_update: Callable[[int, int, Update], None] = lambda _client, _round, _update: None
    usable: Callable[[State], bool] = lambda _: True
    first_round: int = 1
    parameters: frozenset[str] = frozenset()
    memory: dict[Rule, Any] = field(default_factory=dict)
    pretrained: frozenset[str] = frozenset()
    secure: bool = False
    timeout: float | None = None
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
        asked = self.plan.clients(server_round)
        tasks = self.make_tasks(asked, server_round, start)
        self._asked = list(zip(asked, tasks, strict=True))
        self._nodes, self._grid = nodes, grid
        for client, (task, _) in self._asked:
            content = self.transport.pack(task, self._start)
            if self.secure:
                cast(ConfigRecord, content["config"])["secure"] = True
            yield Message(content, dst_node_id=nodes[client], message_type=MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, which come in the order of the merge (see `InOrderGrid`)."""
        server_round += self.first_round - 1
        pretrained = self.pretrained if server_round == 1 else frozenset(self._start)
        now = Round(self._start, self.parameters, self.memory, pretrained)
        begun = {name: now.begin(rule) for name, rule in self.rules.items()}
        clients, keys, self.failures = [], [], {}
        sent: Counter[str] = Counter()
        for (client, (task, key)), reply in zip(self._asked, replies, strict=True):
            try:
                update, parts = self._open(reply, task, key, self.sizes[client])
            except ValueError as error:
                why = printable(str(error))
                if self.plan.on_failure == "fail":
                    raise RunError(
                        f"client {client} failed in round {server_round}: {why} (finished "
                        "updates are kept; strategy.on_failure=survivors merges without it)"
                    ) from error
                self.failures[client] = why
                continue
            if not self.secure:
                now.add(update.tensors, update.examples, self.store.path(update.key), parts)
            for name, tensors in {UPDATE: update.tensors, **parts}.items():
                sent[name] += sum(value.nbytes for value in tensors.values())
            clients.append(client)
            keys.append(update.key)
            self.on_update(client, server_round, update)
        if len(clients) < self.plan.min_clients:
            raise RunError(
                f"round {server_round}: {len(clients)} clients finished, strategy.min_clients is "
                f"{self.plan.min_clients}; failed: {self.failures}"
            )
        size = sum(value.nbytes for value in self._start.values())
        self.round = Merged({}, clients, keys, [], down=size * len(self._asked), up=sent[UPDATE])
        if self.secure:
            self.merged = self._sum_securely(now, server_round)
            begun = {}
        else:
            self.merged = {}
        for name, accumulator in begun.items():
            try:
                state, steps, what, chosen = accumulator.finish()
            except ValueError as error:
                raise RunError(f"round {server_round}: {error}") from error
            if not self.usable(state):
                client = clients[self._farthest(keys)]
                raise RunError(
                    f"round {server_round}: {name}'s merge: {NOT_FINITE}; client {client}'s update "
                    "is the furthest from where it started"
                )
            if not (steps or what):
                what = f"{name} {digest(state)}"
            self.merged[name] = replace(
                self.round,
                state=state,
                steps=list(steps),
                rule=what,
                chosen=chosen,
                up=sum(sent[part] for part in self.rules[name].needs),
            )
        first = next((merged.state for merged in self.merged.values()), self._start)
        return ArrayRecord(first), MetricRecord({"clients": len(clients)})

    def _open(
        self, reply: Message, task: Task, key: str, size: int
    ) -> tuple[Update, dict[str, State]]:
        """The checked update of a reply, and its parts; ValueError for whatever is wrong."""
        if reply.has_error():
            raise ValueError(reason(reply.error.reason or str(reply.error.code)))
        epochs = task.recipe.epochs if trains(task) else 0
        said = read_reply(reply.content, size, epochs, len(task.held))
        if self.secure:
            own = Update(key, {}, said.examples, said.epochs, said.reused, said.resumed)
            return own, {}
        parts = {}
        for part in task.sends:
            if part != UPDATE:
                like = functools.partial(shapes, task, part, self.parameters, self._start, size)
                found = self.transport.unpack_part(reply.content, task, part, key, like)
                check(task, part, found, self.parameters, self._start, size, self.plan.max_norm)
                parts[part] = found
        if UPDATE not in task.sends:  # nobody needs it, so it did not travel
            return Update("", {}, said.examples, said.epochs, said.reused), parts
        update = read(self.store, self.transport.unpack(reply.content, said, key, self._start))
        if update is None:
            raise ValueError("its update is not in the store")
        check_update(update.tensors, self._start, self.plan.max_norm)
        robust = bool(self.rules) and all(rule.is_robust for rule in self.rules.values())
        large = not robust and has_outgrown(update.tensors, self._start)
        if large and not self.usable(update.tensors):
            raise ValueError(f"its weights are far too large: {NOT_FINITE}")
        # What the client says and did, not what reading it back says.
        update = replace(
            update,
            examples=said.examples,
            reused=said.reused,
            resumed=said.resumed,
            damaged=said.damaged,
        )
        return update, parts

    def _sum_securely(self, now: Round, server_round: int) -> dict[str, Merged]:
        """The merge of the first rule, from the sum of the updates of the round's clients."""
        (name, rule), size = next(iter(self.rules.items())), self.sizes
        ask = SecureSum(
            self._grid,
            {client: self._nodes[client] for client in self.round.clients},
            self._start,
            self.store if isinstance(self.transport, ByReference) else None,
            self.timeout,
        )
        try:
            means, there, factors = ask(lambda clients: public_weights(rule, clients, size))
            examples = [size[client] for client in there]
            state, steps = merge_sum(rule, now, means, factors, examples)
        except ValueError as error:
            raise RunError(f"round {server_round}: {error}") from error
        for client, why in ask.failures.items():
            if self.plan.on_failure == "fail":
                raise RunError(f"client {client} failed in round {server_round}: {why}")
            self.failures[client] = why
        if len(there) < self.plan.min_clients:
            raise RunError(
                f"round {server_round}: {len(there)} clients are in the secure sum, "
                f"strategy.min_clients is {self.plan.min_clients}; failed: {self.failures}"
            )
        if not self.usable(state):
            raise RunError(f"round {server_round}: the secure sum's merge: {NOT_FINITE}")
        keys = dict(zip(self.round.clients, self.round.keys, strict=True))
        up = 8 * sum(value.numel() for value in self._start.values()) * len(there)
        self.round = replace(self.round, clients=there, keys=[keys[c] for c in there], up=up)
        what = f"secure {name} {digest(state)}"
        return {name: replace(self.round, state=state, steps=steps, rule=what)}

    def _farthest(self, keys: Sequence[str]) -> int:
        """Position of the update with the greatest distance from the round's start."""
        updates = (self.store.get(key) for key in keys)
        norms = [distance(found.tensors, self._start) if found else 0.0 for found in updates]
        return norms.index(max(norms))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: every model is tested on the same photos, at the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing to aggregate."""
