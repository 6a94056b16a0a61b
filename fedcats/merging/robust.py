"""What robust rules compute: trimmed mean (and median), Krum's choice.

They need all updates at one time, so they are no folds (see `fedcats.merging.fold`). They read
them from the store's files slice by slice: in memory is one model and a slice of each update.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

_ELEMENTS = 2**22  # of all updates together, in memory at one time


def trimmed_mean(updates: Sequence[Path], cut: int) -> dict[str, Tensor]:
    """For each weight the mean of its values without the ``cut`` smallest and largest ones.

    ``updates`` are safetensors files with the same keys, shapes and dtypes: so has the result.
    """
    merged: dict[str, Tensor] = {}
    for name, rows, values in _slices(updates):
        kept = values.sort(dim=0).values[cut : len(values) - cut].double().mean(dim=0)
        if not values.dtype.is_floating_point:
            kept = kept.round()
        if rows.start == 0:
            with safetensors.safe_open(updates[0], framework="pt") as file:
                shape = file.get_slice(name).get_shape()
            merged[name] = torch.empty(shape, dtype=values.dtype)
        merged[name].view(-1, *values.shape[2:])[rows] = kept.to(values.dtype)
    return merged


def nearest(updates: Sequence[Path], malicious: int) -> int:
    """Krum's choice: position of the update that is nearest to its neighbours.

    The score of an update is the sum of its squared distances to the ``n - malicious - 2`` nearest
    others, in float64 from the differences themselves: ``x^2 + y^2 - 2xy`` in float32 knows
    nothing of small updates of large models. The first one wins a tie.
    """
    n = len(updates)
    squared = torch.zeros(n, n, dtype=torch.float64)
    for _, _, values in _slices(updates):
        flat = values.double().reshape(n, -1)
        for i in range(n - 1):
            squared[i, i + 1 :] += ((flat[i + 1 :] - flat[i]) ** 2).sum(dim=1)
    squared += squared.T.clone()
    neighbours = squared.fill_diagonal_(math.inf).sort(dim=1).values[:, : n - malicious - 2]
    return int(neighbours.sum(dim=1).argmin())


def _slices(updates: Sequence[Path]) -> Iterator[tuple[str, slice, Tensor]]:
    """Key, rows and (updates, rows, ..) values of every tensor, a limited number at a time."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safetensors.safe_open(p, framework="pt")) for p in updates]
        for name in sorted(files[0].keys()):
            views = [file.get_slice(name) for file in files]
            shape = views[0].get_shape()
            if not shape:  # a number has no rows
                yield name, slice(0, 1), torch.stack([f.get_tensor(name) for f in files])[:, None]
                continue
            rows = max(1, _ELEMENTS // (len(files) * max(1, math.prod(shape[1:]))))
            for start in range(0, shape[0], rows):
                stop = min(start + rows, shape[0])
                yield name, slice(start, stop), torch.stack([v[start:stop] for v in views])


def whole(update: Path) -> dict[str, Tensor]:
    """All tensors of an update."""
    with safetensors.safe_open(update, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
