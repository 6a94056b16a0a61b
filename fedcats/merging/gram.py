"""Gram matrices by their factors: ``R^T R`` is the matrix, R has as many rows as there are photos.

R (of a QR) is smaller than the matrix where photos are fewer than features, and better conditioned.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores: for what is the same in every run."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def packed_size(rows: int, width: int) -> int:
    """Numbers in a packed factor of so many rows (of photos), each with ``width`` features."""
    kept = min(rows, width)
    return kept * width - kept * (kept - 1) // 2


def packed(rows: Tensor) -> Tensor:
    """The factor R of (n, d) rows, float64, without the zeros below its diagonal, as a vector."""
    with one_thread():
        factor = torch.linalg.qr(rows.double(), mode="r").R
    above: Tensor = factor[torch.ones_like(factor, dtype=torch.bool).triu()]
    return above


def unpacked(vector: Tensor, rows: int, width: int) -> Tensor:
    """The factor, (min(n, d), d), of a packed one of ``rows`` photos."""
    factor = vector.new_zeros(min(rows, width), width)
    factor[torch.ones_like(factor, dtype=torch.bool).triu()] = vector
    return factor


def stacked(factors: Sequence[Tensor]) -> list[Tensor]:
    """Factors whose Gram matrices add up to the same; one where they have too many rows.

    So memory does not grow with the number of clients.
    """
    width = factors[0].shape[1]
    if sum(map(len, factors)) <= 2 * width:
        return list(factors)
    with one_thread():
        return [torch.linalg.qr(torch.cat(list(factors)), mode="r").R]
