"""Models that are weighted sums of stored ones: merges in any order, coalitions, lines between."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import safetensors
import torch

from fedcats.errors import RunError
from fedcats.merging.fold import effective_weights, rounded
from fedcats.storage import Store
from fedcats.tensors import State

_CHUNK = 1 << 15  # elements summed at a time: small enough for a core's cache


@dataclass(frozen=True)
class Mixture:
    """``sum(c_i w_i)``, a function of the shares alone: equal shares are one model.

    Attributes
    ----------
    shares
        (key in the store, c_i), by key, none of them 0. Those of a merge add up to 1.
    """

    shares: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, shares: Iterable[tuple[str, float]]) -> Mixture:
        """Of shares in any order; those of one key are added up."""
        total: dict[str, float] = {}
        for key, share in shares:
            total[key] = total.get(key, 0.0) + share
        return cls(tuple(sorted((key, share) for key, share in total.items() if share)))

    @classmethod
    def of_fold(cls, keys: Sequence[str], steps: Sequence[float], start: str) -> Mixture:
        """A merge with these steps; what they leave of the fold's start is that key's share."""
        own = effective_weights(steps)
        rest = 1.0 - sum(own) if steps[0] != 1.0 else 0.0
        return cls.of([(start, rest), *zip(keys, own, strict=True)])

    @classmethod
    def mean(cls, keys: Sequence[str]) -> Mixture:
        """The plain mean."""
        return cls.of((key, 1.0 / len(keys)) for key in keys)

    def towards(self, other: Mixture, t: float) -> Mixture:
        """The point ``(1 - t) self + t other`` on the line to another one."""
        if self == other:
            return self
        here = [(key, (1.0 - t) * share) for key, share in self.shares]
        return self.of([*here, *((key, t * share) for key, share in other.shares)])

    def state(self, stored: Stored, dtype: torch.dtype | None = None) -> State:
        """Its tensors by state-dict key: summed in float64 and rounded once.

        Parameters
        ----------
        stored
            See `stored_models`.
        dtype
            To which floating ones are rounded then, chunk by chunk.
        """
        sources = [stored(key) for key, _ in self.shares]
        state: State = {}
        for name, like in sources[0].items():
            own = like.dtype
            state[name] = torch.empty_like(like, dtype=dtype if own.is_floating_point else own)
            flat = [source[name].reshape(-1) for source in sources]
            out, size = state[name].view(-1), min(_CHUNK, flat[0].numel())
            total, one = torch.empty(2, size, dtype=torch.float64)
            for start in range(0, flat[0].numel(), _CHUNK):
                part = slice(start, start + _CHUNK)
                count = len(out[part])
                total[:count].copy_(flat[0][part]).mul_(self.shares[0][1])
                for tensor, (_, share) in zip(flat[1:], self.shares[1:], strict=True):
                    one[:count].copy_(tensor[part])
                    total.add_(one, alpha=share)
                out[part] = rounded(total[:count], own)
        return state


Stored = Callable[[str], State]


@contextlib.contextmanager
def stored_models(store: Store) -> Iterator[Stored]:
    """``stored(key)``: a stored model's tensors, mapped into memory once and until the end.

    It raises RunError when the model is gone. Several threads may call it.
    """
    with contextlib.ExitStack() as stack:

        @functools.cache
        def stored(key: str) -> State:
            try:
                file = stack.enter_context(safetensors.safe_open(store.path(key), framework="pt"))
            except OSError as error:
                why = f"store {store.root}: a model is gone; run the same again"
                raise RunError(why) from error
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

        yield stored
