"""The secure sum over Flower: four questions to each client, see `fedcats.merging.secure`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedcats.errors import RunError
from fedcats.federated.flower_words import reason
from fedcats.federated.received import get_bytes, printable, read_tensors, record
from fedcats.merging import secure
from fedcats.merging.secure import Member, Public, Ring
from fedcats.storage import Store
from fedcats.training.update import read

ACTION = "secure"
_STATE, _UPDATE = "secure-sum", "secure-update"
_SEALED = 2 * secure.SHARE + 16  # bytes of both shares of a member; 16 vouch for the rest

T = TypeVar("T")


# --- at the client ------------------------------------------------------------------------------


def remember(context: Context, config: Mapping[str, Any], key: str) -> None:
    """Keep in mind, for the questions to come, where the update of this round is."""
    where = {"store": str(config["store"]), "key": key}
    context.state[_UPDATE] = ConfigRecord(where)  # type: ignore[arg-type]


def answer(content: RecordDict, context: Context) -> RecordDict:
    """A client's answer to one of the four questions; its secrets stay in its Flower context."""
    asked = cast(ConfigRecord, content["config"])
    step = cast(str, asked["step"])
    if step == "keys":
        member = Member()
    else:
        member = Member.from_json(str(cast(ConfigRecord, context.state[_STATE])["member"]))
    said, arrays = _STEPS[step](member, asked, context)
    if member.done:  # its secrets are of no use any more
        member = Member(done=True)
    context.state[_STATE] = ConfigRecord({"member": member.to_json()})
    return RecordDict({"info": ConfigRecord(said), "arrays": arrays})


def _keys(member: Member, asked: Any, context: Context) -> tuple[Any, ArrayRecord]:
    return {"keys": [*member.public]}, ArrayRecord()


def _share(member: Member, asked: Any, context: Context) -> tuple[Any, ArrayRecord]:
    keys = asked["keys"]
    publics = list(zip(keys[::2], keys[1::2], strict=True))
    return {"sealed": member.share(asked["index"], publics)}, ArrayRecord()


def _mask(member: Member, asked: Any, context: Context) -> tuple[Any, ArrayRecord]:
    if _UPDATE not in context.state:
        raise ValueError("this client has no update that is not in a secure sum yet")
    where = cast(ConfigRecord, context.state[_UPDATE])
    del context.state[_UPDATE]  # two sums of it, with others and without, would tell it
    store = Store(Path(str(where["store"])))
    update = read(store, str(where["key"]))
    if update is None:
        raise RunError("the update is no longer in the store: raise store.max_gb")
    if not 0 <= asked["factor"] < 1:
        raise ValueError(f"a sum in which this update counts {asked['factor']} is not secure")
    member.receive(dict(zip(asked["makers"], asked["sealed"], strict=True)))
    hidden = secure.masked(update.tensors, asked["factor"], member.masks())
    arrays = {
        name: torch.from_numpy(values.view(np.int64)).reshape(update.tensors[name].shape)
        for name, values in hidden
    }
    if asked["as"]:  # the store is the server's, too
        store.put(asked["as"], arrays, {"kind": "masked"})
        arrays = {}
    return {}, ArrayRecord(arrays)


def _unmask(member: Member, asked: Any, context: Context) -> tuple[Any, ArrayRecord]:
    shares = member.unmask(asked["present"])
    return {"shares": [shares[owner] for owner in sorted(shares)]}, ArrayRecord()


_STEPS = {"keys": _keys, "share": _share, "mask": _mask, "unmask": _unmask}


# --- at the server ------------------------------------------------------------------------------


@dataclass
class SecureSum:
    """One secure sum of the updates that these clients have.

    Attributes
    ----------
    nodes
        By client.
    like
        Tensors by state-dict key: each update has their keys and shapes.
    shared
        The store that server and clients have in common, in a simulation; else None.
    timeout
        Seconds for each answer; None: any.
    failures
        Who dropped out, and why.
    """

    grid: Grid
    nodes: Mapping[int, int]
    like: Mapping[str, Tensor]
    shared: Store | None
    timeout: float | None = None
    failures: dict[int, str] = field(default_factory=dict)

    def __call__(
        self, weigh: Callable[[Sequence[int]], Sequence[float]]
    ) -> tuple[dict[str, Tensor], list[int], list[float]]:
        """The mean of the updates.

        Parameters
        ----------
        weigh
            For the clients that are in the sum, in order, their factors from 0 to below 1.

        Returns
        -------
        (means, clients, factors)
            By state-dict key, float64; whose updates are in it, in order, and their factors, by
            whose sum it is divided: not those of who dropped out after they were weighed.

        Raises
        ------
        ValueError
            When too few clients are left.
        """
        keys = self._ask("keys", {client: {} for client in self.nodes}, _read_keys)
        order = [*keys]  # a member's number is its place here
        self._enough(order, order)
        publics: list[Public] = [keys[client] for client in order]
        every = [key for pair in publics for key in pair]
        questions: dict[int, Any] = {
            client: {"keys": every, "index": i} for i, client in enumerate(order)
        }
        sealed = self._ask(
            "share",
            questions,
            lambda client, content: get_bytes(
                record(content, "info", ConfigRecord),
                "sealed",
                [_SEALED * (other != client) for other in order],
            ),
        )
        members = [order.index(client) for client in sealed]
        self._enough(members, order)
        factors = dict(zip(sealed, map(float, weigh([*sealed])), strict=True))
        return self._sum(order, publics, sealed, factors)

    def _sum(
        self,
        order: list[int],
        publics: list[Public],
        sealed: Mapping[int, list[bytes]],
        factors: Mapping[int, float],
    ) -> tuple[dict[str, Tensor], list[int], list[float]]:
        number = {client: i for i, client in enumerate(order)}
        name = {c: f"masked-{uuid.uuid4().hex}" if self.shared else "" for c in sealed}
        questions: dict[int, Any] = {
            client: {
                "makers": [number[other] for other in sealed if other != client],
                "sealed": [sealed[o][number[client]] for o in sealed if o != client],
                "factor": factors[client],
                "as": name[client],
            }
            for client in sealed
        }
        sums = {key: np.zeros(value.numel(), dtype=np.uint64) for key, value in self.like.items()}

        def add(client: int, content: RecordDict) -> None:
            for key, values in self._arrays(content, name[client]).items():
                sums[key] += values

        if self.shared:
            self.shared.hold(name.values(), "secure")
        there = [*self._ask("mask", questions, add)]
        self._enough(there, order)
        present = [number[client] for client in there]
        answers = self._ask(
            "unmask",
            {client: {"present": present} for client in there},
            lambda _, content: get_bytes(
                record(content, "info", ConfigRecord), "shares", [secure.SHARE] * len(sealed)
            ),
        )
        owners = sorted(number[client] for client in sealed)
        by_member = {
            number[client]: dict(zip(owners, shares, strict=True))
            for client, shares in answers.items()
        }
        masks = secure.unmasked(publics, owners, present, by_member)
        own = [factors[client] for client in there]
        return secure.mean(sums, masks, sum(own), self.like), there, own

    def _ask(
        self, step: str, questions: Mapping[int, Any], take: Callable[[int, RecordDict], T]
    ) -> dict[int, T]:
        """What ``take`` makes of each client's answer; who gives none that it can take failed."""
        messages = [
            Message(
                RecordDict({"config": ConfigRecord({"step": step, **body})}),
                dst_node_id=self.nodes[client],
                message_type=f"query.{ACTION}",
            )
            for client, body in questions.items()
        ]
        replies: Iterable[Message] = self.grid.send_and_receive(messages, timeout=self.timeout)
        found: dict[int, T] = {}
        for client, reply in zip(questions, replies, strict=True):
            try:
                if reply.has_error():
                    raise ValueError(reason(reply.error.reason or str(reply.error.code)))
                found[client] = take(client, reply.content)
            except ValueError as error:
                self.failures[client] = f"secure sum: {printable(str(error))}"
        return found

    def _arrays(self, content: RecordDict, name: str) -> dict[str, Ring]:
        """A masked update, whole and of the right shapes; else ValueError."""
        like = {k: torch.empty(v.shape, dtype=torch.int64) for k, v in self.like.items()}
        if self.shared is None:
            found = read_tensors(content, like)
        else:
            entry = self.shared.get(name)
            self.shared.remove(name)
            if entry is None or {k: v.shape for k, v in entry.tensors.items()} != {
                k: v.shape for k, v in like.items()
            }:
                raise ValueError("its masked update is not in the store")
            found = entry.tensors
        return {k: value.reshape(-1).numpy().view(np.uint64) for k, value in found.items()}

    def _enough(self, left: Sequence[int], order: Sequence[int]) -> None:
        need = max(secure.LEAST, secure.threshold(len(order)))
        if len(left) < need:
            why = f"{len(left)} of {len(order)} clients are left, a secure sum takes {need}"
            first = next(iter(self.failures.items()), None)
            raise ValueError(why + (f"; client {first[0]}: {first[1]}" if first else ""))


def _read_keys(client: int, content: RecordDict) -> Public:
    share, mask = get_bytes(record(content, "info", ConfigRecord), "keys", [32, 32])
    return share, mask
