"""Secure sum: the server learns the weighted sum of the clients' updates and none of them.

The protocol of Bonawitz et al. (2017, doi:10.1145/3133956.3133982, Figure 4, honest but curious):
each client hides its update under one mask for every other client, which cancel in the sum, and
one of its own; secrets for taking away the masks of those who drop out, or stay, are shared among
all. No transport here: `Member` is a client's side, `unmasked` the server's.

Arithmetic is that of whole numbers modulo 2^64: a weight w with public factor c counts as
``round(c * w * 2^40)``. A mask is the key stream of ChaCha20 under a key of 256 bits, which two
clients agree on by X25519 (of 128 bits of security).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from fedcats.merging.adaptive import ServerOptimizer
from fedcats.merging.fold import effective_weights, rounded
from fedcats.merging.rules import FedAvg, Round, Rule

Ring = npt.NDArray[np.uint64]

LEAST = 3  # of two, each knows the other's update from the sum
_SCALE = 2.0**40
_LARGEST = 2.0**22  # of a weight: their mean, scaled, stays within 63 bits
_PRIME = 2**521 - 1  # of the field in which 256-bit secrets are shared
_CHUNK = 2**17  # numbers masked at a time
SHARE = 66  # bytes of a share


def threshold(members: int) -> int:
    """How many must answer in the end: more than two thirds, so that lies to a third gain nothing.

    A server that told some that a member is there and others that it is not would need as many
    answers twice.
    """
    return 2 * members // 3 + 1


# --- fixed point --------------------------------------------------------------------------------


def encode(value: Tensor, factor: float) -> Ring:
    """A tensor times a factor from 0 to 1 in the ring, flat; ValueError for what does not fit."""
    flat = value.detach().reshape(-1).to(torch.float64).numpy()
    if not (np.abs(flat) <= _LARGEST).all():  # NaN neither
        raise ValueError(f"a weight beyond {_LARGEST:g}, or not finite, has no secure sum")
    scaled = np.empty(len(flat), dtype=np.int64)
    np.rint(flat * (factor * _SCALE), out=scaled, casting="unsafe")
    return scaled.view(np.uint64)


def decode(total: Ring, factors: float, like: Tensor) -> Tensor:
    """The mean of which a sum in the ring is, ``factors`` being the sum of the factors; float64."""
    mean = total.view(np.int64).astype(np.float64) / (factors * _SCALE)
    return torch.from_numpy(mean).reshape(like.shape)


def clear_mean(
    updates: Sequence[Mapping[str, Tensor]], factors: Sequence[float]
) -> dict[str, Tensor]:
    """What the secure sum must give, byte for byte: the same arithmetic without masks; float64."""
    means = {}
    for name, like in updates[0].items():
        total = np.zeros(like.numel(), dtype=np.uint64)
        for update, factor in zip(updates, factors, strict=True):
            total += encode(update[name], factor)
        means[name] = decode(total, sum(factors), like)
    return means


# --- secrets ------------------------------------------------------------------------------------


def split(secret: bytes, members: int, least: int) -> list[bytes]:
    """Shamir's shares of 32 bytes, one for each member; any ``least`` of them give it back."""
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [secrets.randbelow(_PRIME) for _ in range(least - 1)]
    shares = []
    for x in range(1, members + 1):
        y = 0
        for coefficient in reversed(polynomial):
            y = (y * x + coefficient) % _PRIME
        shares.append(y.to_bytes(SHARE, "big"))
    return shares


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these shares are, by member from 0; ValueError for no such shares."""
    secret = 0
    for i, share in shares.items():
        top, bottom = 1, 1
        for j in shares:
            if j != i:
                top, bottom = top * (j + 1) % _PRIME, bottom * (j - i) % _PRIME
        secret += int.from_bytes(share, "big") * top * pow(bottom, -1, _PRIME)
    try:
        return (secret % _PRIME).to_bytes(32, "big")
    except OverflowError:
        raise ValueError("the shares of a secret do not fit together") from None


def _derive(secret: bytes, use: str) -> bytes:
    """A key of 256 bits for one use of a secret of as many."""
    return HKDF(SHA256(), 32, None, f"fedcats secure sum, {use}".encode()).derive(secret)


def _agree(private: bytes, public: bytes, use: str) -> bytes:
    shared = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(public)
    )
    return _derive(shared, use)


def _private() -> bytes:
    return X25519PrivateKey.generate().private_bytes_raw()


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Mask:
    """The key stream of a mask: added to, or taken from, one array after another."""

    def __init__(self, key: bytes, *, add: bool) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
        self._apply: Callable[..., Ring] = np.add if add else np.subtract

    def __call__(self, values: Ring) -> None:
        """In place; the next numbers of the stream."""
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            stream = np.frombuffer(self._cipher.update(bytes(part.nbytes)), dtype="<u8")
            self._apply(part, stream, out=part)


# --- a client's side ----------------------------------------------------------------------------

Public = tuple[bytes, bytes]
"""A member's public keys: for shares, and for masks."""


@dataclass
class Member:
    """A client in one secure sum, whose messages it answers in the order of the methods.

    Its secrets are new for each sum. What the server tells it, it checks as far as it can: it
    never gives both secrets of anybody, and answers the last question once.
    """

    share_key: bytes = field(default_factory=_private)
    mask_key: bytes = field(default_factory=_private)
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    index: int = -1
    publics: list[Public] = field(default_factory=list)
    held: dict[int, bytes] = field(default_factory=dict)
    done: bool = False

    def to_json(self) -> str:
        """For the time between two messages."""
        return json.dumps(asdict(self), default=bytes.hex)

    @classmethod
    def from_json(cls, text: str) -> Member:
        """What `to_json` wrote."""
        read = json.loads(text)
        a, b, seed = (bytes.fromhex(read[name]) for name in ("share_key", "mask_key", "seed"))
        publics = [(bytes.fromhex(p), bytes.fromhex(q)) for p, q in read["publics"]]
        held = {int(i): bytes.fromhex(one) for i, one in read["held"].items()}
        return cls(a, b, seed, read["index"], publics, held, read["done"])

    @property
    def public(self) -> Public:
        """Its keys, for the others."""
        return _public(self.share_key), _public(self.mask_key)

    def share(self, index: int, publics: Sequence[Public]) -> list[bytes]:
        """Shares of its secrets for each member (empty: itself), which only that one can read."""
        if self.publics or len(publics) < LEAST or publics[index] != self.public:
            raise ValueError("a secure sum that this client does not take part in")
        if len({key for pair in publics for key in pair}) < 2 * len(publics):
            raise ValueError("two members of the secure sum have the same key")
        self.index, self.publics = index, list(publics)
        count = len(publics)
        own = [split(s, count, threshold(count)) for s in (self.seed, self.mask_key)]
        both = [a + b for a, b in zip(*own, strict=True)]
        self.held = {index: both[index]}
        return [
            b""
            if other == index
            else self._seal(other, index, other).encrypt(bytes(12), text, None)
            for other, text in enumerate(both)
        ]

    def receive(self, sealed: Mapping[int, bytes]) -> None:
        """The shares that the others made for it; who made none has no part in the sum."""
        if len(self.held) != 1 or self.index in sealed:
            raise ValueError("the shares of a secure sum came twice")
        try:
            for other, text in sealed.items():
                opened = self._seal(other, other, self.index).decrypt(bytes(12), text, None)
                if len(opened) != 2 * SHARE:
                    raise ValueError("a share of the secure sum has another length")
                self.held[other] = opened
        except InvalidTag:
            raise ValueError("a share of the secure sum is not what its maker sent") from None
        if len(self.held) < threshold(len(self.publics)):
            raise ValueError("too few members of the secure sum")

    def masks(self) -> list[Mask]:
        """For its update: its own mask, and one for each other member."""
        own = Mask(_derive(self.seed, "own mask"), add=True)
        return [own, *_pair_masks(self.mask_key, self.index, self.publics, self.held)]

    def unmask(self, present: Collection[int]) -> dict[int, bytes]:
        """For each member a share of one secret: of its seed if its sum came, else of its key."""
        there = set(present)
        known = there <= {*self.held} and self.index in there
        if self.done or not known or len(there) < threshold(len(self.publics)):
            raise ValueError("a question about the secure sum that is not answered")
        self.done = True
        return {i: both[:SHARE] if i in there else both[SHARE:] for i, both in self.held.items()}

    def _seal(self, other: int, maker: int, reader: int) -> ChaCha20Poly1305:
        """A cipher for one text: each way between two members has its key."""
        use = f"share of {maker} for {reader}"
        return ChaCha20Poly1305(_agree(self.share_key, self.publics[other][0], use))


def _pair_masks(
    private: bytes, index: int, publics: Sequence[Public], others: Collection[int]
) -> Iterator[Mask]:
    """The masks of member ``index`` with others: of each pair one adds, the other subtracts."""
    for other in sorted({*others} - {index}):
        key = _agree(private, publics[other][1], "mask of a pair")
        yield Mask(key, add=index < other)


def masked(
    update: Mapping[str, Tensor], factor: float, masks: Sequence[Mask]
) -> Iterator[tuple[str, Ring]]:
    """The update by state-dict key, in their order, each array flat and under all masks."""
    for name in sorted(update):
        values = encode(update[name], factor)
        for mask in masks:
            mask(values)
        yield name, values


# --- the server's side --------------------------------------------------------------------------


def unmasked(
    publics: Sequence[Public],
    members: Collection[int],
    present: Collection[int],
    answers: Mapping[int, Mapping[int, bytes]],
) -> list[Mask]:
    """What is left to take away from the sum of the masked updates of ``present``.

    Parameters
    ----------
    members
        Whose shares all others have; each masked its update with all of these.
    answers
        What `Member.unmask` gave, by member.

    Raises
    ------
    ValueError
        With too few answers, or with such that do not fit together.
    """
    need = threshold(len(publics))
    if len(answers) < need:
        raise ValueError(f"{len(answers)} of {len(publics)} clients are left, it takes {need}")
    some = {i: answers[i] for i in sorted(answers)[:need]}
    left = []
    for owner in members:
        secret = join({i: shares[owner] for i, shares in some.items()})
        if owner in present:
            left.append(Mask(_derive(secret, "own mask"), add=False))
        elif _public(secret) != publics[owner][1]:
            raise ValueError("the shares of a secret do not fit together")
        else:
            left += _pair_masks(secret, owner, publics, present)
    return left


def mean(
    sums: Mapping[str, Ring], masks: Sequence[Mask], factors: float, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The mean by state-dict key, float64: the masks are taken away."""
    for name in sorted(like):
        for mask in masks:
            mask(sums[name])
    return {name: decode(sums[name], factors, value) for name, value in like.items()}


# --- rules --------------------------------------------------------------------------------------


def refusal(rule: Rule, clients: int) -> str:
    """Why a secure sum of so many clients cannot be merged by a rule; empty if it can."""
    if not (rule.is_fold or isinstance(rule, ServerOptimizer)):
        return f"{rule.name} needs the single updates"
    if clients < LEAST:
        return f"of {clients} clients' sum each knows too much; allowed are {LEAST} and more"
    if max(public_weights(rule, range(LEAST), [1] * LEAST)) == 1.0:
        return f"{rule.label}: the sum would be one client's update"
    return ""


def public_weights(rule: Rule, clients: Sequence[int], sizes: Sequence[int]) -> list[float]:
    """How much of each client is in the rule's sum, in the order of the merge.

    Of a server optimizer, the mean that it takes its step by.
    """
    fold = FedAvg() if isinstance(rule, ServerOptimizer) else rule
    steps, total = [], 0
    for i, client in enumerate(clients, 1):
        total += sizes[client]
        steps.append(fold.step(i, sizes[client], total))
    return effective_weights(steps)


def merge_sum(
    rule: Rule,
    server_round: Round,
    means: Mapping[str, Tensor],
    factors: Sequence[float],
    examples: Sequence[int],
) -> tuple[dict[str, Tensor], list[float]]:
    """The merge, in the dtypes of the round's start, and the steps of the fold that it equals.

    Parameters
    ----------
    means
        Of the updates, weighted by ``factors``, float64.
    factors, examples
        Of the clients whose updates are in it. The share of one that dropped out after it was
        weighed goes to the others in proportion (with ``strategy.start=global`` to that start).
    """
    start = server_round.start
    if isinstance(rule, ServerOptimizer):
        merge = rule.begin(server_round)
        server_round.add(means, sum(examples), Path())
        return merge.finish().state, []
    kept = 0.0
    if rule.step(1, 1, 1) != 1.0:  # of the model that the round started from
        kept = 1.0 - sum(factors)
    total, steps = kept, []
    for factor in factors:
        total += factor
        steps.append(factor / total)
    state = {
        name: rounded(kept * start[name].double() + (1 - kept) * value if kept else value, dtype)
        for name, value in means.items()
        for dtype in [start[name].dtype]
    }
    return state, steps
