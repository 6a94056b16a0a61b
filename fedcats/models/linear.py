"""A linear layer's product, with few rows of the input at the speed of memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Above this batch size a linear layer is no longer bound by memory, and small blocks only cost.
BLOCK_BATCH = 16


def untrained_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``F.linear`` of a frozen layer; for few rows on the CPU as one batched product.

    Of AlexNet's large ones MKL reads the weight half as fast again this way.
    """
    slices = sliced(layer.weight.detach(), 64)
    if x.dim() != 2 or len(x) > BLOCK_BATCH or x.device.type != "cpu" or len(slices) == 1:
        return F.linear(x, layer.weight, layer.bias)
    y = sliced_product(x, slices)
    return y if layer.bias is None else y.add_(layer.bias.detach())


def sliced(weight: Tensor, count: int) -> Tensor:
    """The whole weight (out, in) as (count, out/count, in), or (1, out, in) if that cannot be."""
    return weight.view(count if len(weight) % count == 0 else 1, -1, weight.shape[1])


def sliced_product(x: Tensor, slices: Tensor) -> Tensor:
    """``x W^T`` for a weight as (k, out/k, in); no view, so it may be changed in place."""
    parts = torch.bmm(x.expand(len(slices), *x.shape), slices.transpose(1, 2))
    y = x.new_empty(len(x), slices.shape[0] * slices.shape[1])
    y.view(len(x), len(slices), -1).copy_(parts.transpose(0, 1))
    return y
