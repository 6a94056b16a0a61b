"""Updates in fewer bytes: a client's differences from where it started, and back.

``fp16``, ``int8``, ``dare:<share left out>``, ``ties:<share kept>``. Buffers (batch norm's) are
few, and travel as they are.
"""

import math
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcats.tensors import State

ENCODINGS = ("fp16", "int8", "dare", "ties")
_VALUES, _KEPT, _SEED, _SCALES = "values", "kept", "seed", "scales"  # beside state-dict keys


def encode(
    part: str,
    update: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    parameters: Set[str],
    seed: int,
) -> State:
    """What is sent for an update.

    Parameters
    ----------
    part
        The encoding with its parameter.
    update, start
        By state-dict key, the same keys.
    parameters
        Keys of what is encoded; all others stay as they are.
    seed
        Of the draws of this client in this round.
    """
    kind, _, given = part.partition(":")
    names = _order(start, parameters)
    sent = {name: update[name] for name in start if name not in parameters}
    flat = [(update[name].double() - start[name].double()).flatten().float() for name in names]
    draw = np.random.default_rng(seed)
    if kind in ("fp16", "int8"):
        scales = np.array([_largest(one) for one in flat], dtype=np.float32)
        rounding = _half if kind == "fp16" else _int8
        with np.errstate(invalid="ignore"):  # of what is not finite, which the server refuses
            for name, one, scale in zip(names, flat, scales, strict=True):
                values = (one / float(scale) if scale > 0 else one).numpy()
                codes = rounding(values, draw)
                sent[name] = torch.from_numpy(codes).view(start[name].shape)
        return {**sent, _SCALES: torch.from_numpy(scales)}
    if kind == "dare":
        keep = 1 - float(given)
        masks = _drawn(seed, keep, [len(one) for one in flat])
        kept = [one[mask] / keep for one, mask in zip(flat, masks, strict=True)]
        return {**sent, _VALUES: torch.cat(kept), _SEED: torch.tensor([seed])}
    every = torch.cat(flat).numpy()
    mask = _greatest(np.abs(every), _number_kept(len(every), float(given)))
    bits = torch.from_numpy(np.packbits(mask))
    return {**sent, _VALUES: torch.from_numpy(every[mask]), _KEPT: bits}


def decode(
    part: str, sent: Mapping[str, Tensor], start: Mapping[str, Tensor], parameters: Set[str]
) -> State:
    """Differences from the start, float32 of parameters and float64 of the others."""
    kind, _, given = part.partition(":")
    names = _order(start, parameters)
    sizes = [start[name].numel() for name in names]
    found = {n: sent[n].double() - v.double() for n, v in start.items() if n not in parameters}
    if kind in ("fp16", "int8"):
        steps = 1.0 if kind == "fp16" else 127.0
        for name, scale in zip(names, sent[_SCALES].tolist(), strict=True):
            found[name] = sent[name].float() * (scale / steps)
    else:
        if kind == "dare":
            masks = torch.cat(_drawn(int(sent[_SEED]), 1 - float(given), sizes))
        else:
            kept = np.unpackbits(sent[_KEPT].numpy(), count=sum(sizes))
            masks = torch.from_numpy(kept.astype(bool))
        every = torch.zeros(sum(sizes))
        every[masks] = sent[_VALUES]
        for name, one in zip(names, torch.split(every, sizes), strict=True):
            found[name] = one.view(start[name].shape)
    return {name: found[name] for name in start}


def shapes(part: str, start: Mapping[str, Tensor], parameters: Set[str], seed: int) -> State:
    """What `encode` gives, by shapes and dtypes: meta tensors."""
    kind, _, given = part.partition(":")
    names = _order(start, parameters)
    sizes = [start[name].numel() for name in names]
    sent = {name: _meta(v.shape, v.dtype) for name, v in start.items() if name not in parameters}
    if kind in ("fp16", "int8"):
        codes = torch.float16 if kind == "fp16" else torch.int8
        sent |= {name: _meta(start[name].shape, codes) for name in names}
        return {**sent, _SCALES: _meta((len(names),), torch.float32)}
    if kind == "dare":
        count = sum(int(mask.sum()) for mask in _drawn(seed, 1 - float(given), sizes))
        sent[_SEED] = _meta((1,), torch.int64)
    else:
        count = _number_kept(sum(sizes), float(given))
        sent[_KEPT] = _meta((math.ceil(sum(sizes) / 8),), torch.uint8)
    return {**sent, _VALUES: _meta((count,), torch.float32)}


def check(part: str, sent: Mapping[str, Tensor], sizes: int, seed: int) -> None:
    """ValueError for what has the right shapes and cannot be read back."""
    if _SEED in sent and int(sent[_SEED]) != seed:
        raise ValueError(f"its {part} has the seed {int(sent[_SEED])}, its task's is {seed}")
    if _KEPT in sent:
        bits = np.unpackbits(sent[_KEPT].numpy())
        if int(bits[:sizes].sum()) != len(sent[_VALUES]) or bits[sizes:].any():
            raise ValueError(f"its {part} has {len(sent[_VALUES])} values for other places")


def _order(start: Mapping[str, Tensor], parameters: Set[str]) -> list[str]:
    """The same at client and server: what comes out of a file has another order than a model."""
    return sorted(name for name in start if name in parameters)


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if len(values) else 0.0


def _drawn(seed: int, keep: float, sizes: list[int]) -> list[Tensor]:
    """What is kept of each tensor."""
    draw = np.random.default_rng(seed)
    return [torch.from_numpy(draw.random(size, dtype=np.float32) < keep) for size in sizes]


def _number_kept(size: int, keep: float) -> int:
    return min(size, max(1, round(keep * size)))


def _greatest(values: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Where the ``count`` greatest are; of equal ones the first."""
    bound = np.partition(values, len(values) - count)[len(values) - count]
    mask: NDArray[np.bool_] = values > bound
    equal = np.flatnonzero(values == bound)[: count - int(mask.sum())]
    mask[equal] = True
    return mask


def _int8(values: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.int8]:
    """127 times the values in [-1, 1], to one of the two nearest whole numbers at random."""
    below = np.floor(127 * values + draw.random(len(values), dtype=np.float32))
    codes: NDArray[np.int8] = np.clip(below, -127, 127).astype(np.int8)
    return codes


def _half(values: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float16]:
    """Values in [-1, 1] to one of the two nearest of float16 at random, right on average."""
    near = values.astype(np.float16)
    off = values - near.astype(np.float32)
    other = np.nextafter(near, np.copysign(np.float16(np.inf), off.astype(np.float16)))
    gap = np.abs(other.astype(np.float32) - near.astype(np.float32))
    return np.where(draw.random(len(values), dtype=np.float32) * gap < np.abs(off), other, near)
