"""Lengths and directions of stored updates, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import safetensors
import torch

from fedcats.metrics.explained import geometry
from fedcats.results.explained import Layer
from fedcats.storage import Store

_CHUNK = 1 << 17  # elements of each update at a time: one MB in float64


def directions(
    store: Store, keys: Sequence[str], start: str, names: Sequence[str]
) -> tuple[list[Layer], list[list[float]]]:
    """How long the updates ``w_i - w_start`` are, and how much they point the same way.

    Parameters
    ----------
    keys, start
        Of the clients' weights and of those that they started from, in the store.
    names
        State-dict keys in the order of the model; integers (batch norm's counters) are left out.

    Returns
    -------
    (layers, cosines)
        By layer, and (K, K) of all layers together.
    """
    grams: dict[str, torch.Tensor] = {}
    norms: dict[str, float] = {}
    sizes: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(safetensors.safe_open(store.path(key), framework="pt"))
            for key in (start, *keys)
        ]
        for name in names:
            base, *own = (file.get_tensor(name).reshape(-1) for file in files)
            if not base.dtype.is_floating_point:
                continue
            layer = name.rpartition(".")[0] or name
            gram = grams.setdefault(layer, torch.zeros(len(keys), len(keys), dtype=torch.float64))
            for at in range(0, base.numel(), _CHUNK):
                here = base[at : at + _CHUNK].double()
                moved = torch.stack([one[at : at + _CHUNK].double() - here for one in own])
                gram += moved @ moved.T
                norms[layer] = norms.get(layer, 0.0) + float(here @ here)
            sizes[layer] = sizes.get(layer, 0) + base.numel()
    whole = torch.stack([*grams.values()]).sum(dim=0).numpy()
    found = geometry({layer: gram.numpy() for layer, gram in grams.items()})
    above = np.triu_indices(len(keys), 1)
    layers: list[Layer] = [
        {
            "layer": layer,
            "weights": sizes[layer],
            "length": lengths.tolist(),
            "relative": float(lengths.mean()) / norms[layer] ** 0.5 if norms[layer] else None,
            "cosine": float(cosines[above].mean()) if len(keys) > 1 else None,
        }
        for layer, (lengths, cosines) in found.items()
    ]
    return layers, geometry({"": whole})[""][1].tolist()
