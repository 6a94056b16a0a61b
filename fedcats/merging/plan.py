"""Who is merged, in which order, and what comes out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fedcats.merging.fold import effective_weights
from fedcats.merging.rules import in_a_round
from fedcats.seeding import derive_seed
from fedcats.tensors import State


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
        Of the fold; empty where the rule is none.
    rule
        Says then what it is, with all that it depends on beside the updates; also of a secure sum,
        whose bits are not those of the fold with these steps.
    chosen
        What the merge chose by itself, and on what; may be empty.
    down, up
        Bytes of the weights that the clients of the round were given, and of what came back of
        which the rule has need. In a simulation they do not travel.
    """

    state: State
    clients: list[int]
    keys: list[str]
    steps: list[float]
    rule: str = ""
    down: int = 0
    up: int = 0
    chosen: str = ""

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
    max_norm
        Bound of an update's distance from where it started; see `check_update`.
    """

    order: Sequence[int]
    fraction: float
    seed: int
    on_failure: str
    min_clients: int
    max_norm: float | None = None

    def clients(self, server_round: int) -> list[int]:
        """The clients of a round, in the order of the merge."""
        count = in_a_round(self.fraction, len(self.order))
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
