"""Robust merges: coordinate median, trimmed mean, Krum.

They need all updates at one time, so they are no folds (see `fedcats.merging.fold`). They read
them from the store's files slice by slice: in memory is one model and a slice of each update.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

_ELEMENTS = 2**22  # of all updates together, in memory at one time


@dataclass(frozen=True)
class Robust:
    """A robust rule.

    Attributes
    ----------
    name
        One of `ROBUST`.
    trim
        Share of the values of each weight that ``trimmed_mean`` leaves out at either end, 0 to
        below 0.5.
    malicious
        How many bad clients ``krum`` expects.
    """

    name: str
    trim: float
    malicious: int

    @property
    def label(self) -> str:
        """The rule with what it depends on."""
        return {
            "median": "median",
            "trimmed_mean": f"trimmed mean {self.trim:g}",
            "krum": f"krum {self.malicious}",
        }[self.name]

    def merge(self, updates: Sequence[Path]) -> tuple[dict[str, Tensor], list[float]]:
        """Merge updates.

        Parameters
        ----------
        updates
            Their safetensors files: checked, with the same keys, shapes and dtypes.

        Returns
        -------
        (merged, steps)
            Tensors in the updates' dtypes; the steps of the `Fold` that this is, empty when it is
            none: for Krum, the one that takes the chosen update and nothing else.

        Raises
        ------
        ValueError
            When there are too few updates.
        """
        n = len(updates)
        if n == 0:
            raise ValueError("nothing to merge: no update was added")
        if self.name == "krum":
            chosen = krum(updates, self.malicious)
            steps = [1.0, *(float(i == chosen) for i in range(1, n))]
            return _whole(updates[chosen]), steps
        # The median is the mean of what is left when all but the middle one or two are cut away.
        cut = (n - 1) // 2 if self.name == "median" else int(self.trim * n)
        return trimmed_mean(updates, cut), []


def trimmed_mean(updates: Sequence[Path], cut: int) -> dict[str, Tensor]:
    """For each weight the mean of its values without the ``cut`` smallest and largest ones."""
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


def krum(updates: Sequence[Path], malicious: int) -> int:
    """Position of the update that is nearest to its neighbours (Blanchard et al. 2017).

    The score of an update is the sum of its squared distances to the ``n - malicious - 2`` nearest
    others, in float64 from the differences themselves: ``x^2 + y^2 - 2xy`` in float32 knows
    nothing of small updates of large models. The first one wins a tie.

    Raises
    ------
    ValueError
        For fewer than ``2 * malicious + 3`` updates, which Krum's promise needs.
    """
    n = len(updates)
    if n < 2 * malicious + 3:
        raise ValueError(
            f"krum with strategy.malicious={malicious} needs at least {2 * malicious + 3} clients, "
            f"there are {n}"
        )
    squared = torch.zeros(n, n, dtype=torch.float64)
    for _, _, values in _slices(updates):
        flat = values.double().reshape(n, -1)
        for i in range(n - 1):
            squared[i, i + 1 :] += ((flat[i + 1 :] - flat[i]) ** 2).sum(dim=1)
    squared += squared.T.clone()
    nearest = squared.fill_diagonal_(math.inf).sort(dim=1).values[:, : n - malicious - 2]
    return int(nearest.sum(dim=1).argmin())


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


def _whole(update: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(update, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
