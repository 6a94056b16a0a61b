"""Merges that know what each client's model is sensitive to: its Fisher information, its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from fedcats.limits import number
from fedcats.merging.rules import UPDATE, Accumulator, FedAvg, Merge, Round, WithSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from fedcats.merging.fold import Fold


@dataclass(frozen=True)
class Fisher(WithSettings):
    """Fisher merging (Matena and Raffel 2022, arXiv:2111.09832), diagonal.

    ``w = sum n_i (F_i + eps) w_i / sum n_i (F_i + eps)`` with F_i the mean over the client's
    photos of the squared gradient of the log probability of a label drawn from its own model.
    Buffers, of which there is no gradient, are averaged as by FedAvg.

    Attributes
    ----------
    eps
        In means of F over the tensor: after some epochs F is nearly 0 in places.
    """

    where = "strategy.fisher."
    name = "fisher"
    title = "Fisher"
    eps: float = number(0, above=True)

    @property
    def needs(self) -> tuple[str, ...]:
        """The update, and as many numbers once more."""
        return (UPDATE, "fisher")

    def begin(self, server_round: Round) -> Accumulator:
        """Two sums of the size of the model, and FedAvg's fold for buffers."""
        return _Fisher(self, server_round, cast("Fold", server_round.begin(FedAvg())))


@dataclass
class _Fisher(Accumulator):
    rule: Fisher
    server_round: Round
    mean: Fold
    above: dict[str, Tensor] = field(default_factory=dict)
    below: dict[str, Tensor] = field(default_factory=dict)

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        from fedcats.merging.gram import one_thread

        for name, found in self.server_round.parts["fisher"].items():
            weight = found.double()
            with one_thread():
                mean = float(weight.mean())
            # Where a client's F is 0 throughout, its share is a plain one of a tiny weight.
            weight.add_(self.rule.eps * (mean or 1e-30)).mul_(examples)
            if name in self.below:
                self.below[name] += weight
                self.above[name] += weight.mul_(update[name].double())
            else:
                self.below[name] = weight
                self.above[name] = weight * update[name].double()

    def finish(self) -> Merge:
        from fedcats.merging.fold import rounded

        state = self.mean.result()
        for name, below in self.below.items():
            state[name] = rounded(self.above[name] / below, state[name].dtype)
        return Merge(state)


@dataclass(frozen=True)
class RegMean(WithSettings):
    """RegMean (Jin et al. 2023, arXiv:2212.09849) for linear layers; all others by FedAvg.

    ``W = Wbar + (sum n_i (W_i - Wbar) G_i)(sum n_i G_i + lambda I)^-1``, G_i the mean of ``x x^T``
    over the inputs of the layer (a 1 behind each, for the bias) in the client's own model, its
    entries off the diagonal multiplied by ``off_diagonal``.

    Attributes
    ----------
    off_diagonal
        In the paper 0.9 to 0.95.
    ridge
        Lambda, in means of the diagonal of ``sum n_i G_i``: inputs that are always 0 need one.
    """

    where = "strategy.regmean."
    name = "regmean"
    title = "RegMean"
    off_diagonal: float = number(0, 1)
    ridge: float = number(0, above=True)

    @property
    def needs(self) -> tuple[str, ...]:
        """The update, and the factors of the Gram matrices of the inputs."""
        return (UPDATE, "inputs")

    def begin(self, server_round: Round) -> Accumulator:
        """FedAvg's fold, and for each layer a sum of its size and the factors."""
        return _RegMean(self, server_round, cast("Fold", server_round.begin(FedAvg())))


@dataclass
class _Layer:
    """Of one linear layer ``sum n_i Delta_i G_i``, and the rows with ``R^T R = sum n_i X_i``."""

    total: Tensor
    diagonal: Tensor
    rows: list[Tensor] = field(default_factory=list)


@dataclass
class _RegMean(Accumulator):
    rule: RegMean
    server_round: Round
    mean: Fold
    layers: dict[str, _Layer] = field(default_factory=dict)

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        from fedcats.merging.gram import one_thread, stacked, unpacked

        a = self.rule.off_diagonal
        for name, part in self.server_round.parts["inputs"].items():
            start = augmented(self.server_round.start, name)
            delta = augmented(update, name) - start
            width = delta.shape[1]
            count = int(part[0])  # rows behind the factor; it is of their sum, G_i their mean
            with one_thread():
                rows = unpacked(part[1:], count, width) * (examples / count) ** 0.5
                diagonal = (rows**2).sum(0)
                moved = a * ((delta @ rows.T) @ rows) + (1 - a) * (delta * diagonal)
            if name not in self.layers:
                self.layers[name] = _Layer(moved, diagonal, [rows])
                continue
            layer = self.layers[name]
            layer.total += moved
            layer.diagonal += diagonal
            layer.rows = stacked([*layer.rows, rows])

    def finish(self) -> Merge:
        import torch

        from fedcats.merging.fold import rounded
        from fedcats.merging.gram import one_thread

        exact, state = self.mean.exact(), self.mean.result()
        a = self.rule.off_diagonal
        for name, layer in self.layers.items():
            start = augmented(self.server_round.start, name)
            mean = augmented(exact, name) - start
            with one_thread():
                x = torch.cat(layer.rows)
                total = layer.total - a * ((mean @ x.T) @ x) - (1 - a) * (mean * layer.diagonal)
                ridge = self.rule.ridge * float(layer.diagonal.mean())
                value = start + mean + times_inverse(total, x, a, layer.diagonal, ridge)
            weight, bias = f"{name}.weight", f"{name}.bias"
            out = value if bias not in state else value[:, :-1]
            state[weight] = rounded(out, state[weight].dtype)
            if bias in state:
                state[bias] = rounded(value[:, -1], state[bias].dtype)
        return Merge(state)


def augmented(state: Mapping[str, Tensor], layer: str) -> Tensor:
    """A linear layer's weight with its bias as a last column, if it has one, float64."""
    import torch

    weight = state[f"{layer}.weight"].double()
    if f"{layer}.bias" not in state:
        return weight
    return torch.cat([weight, state[f"{layer}.bias"].double()[:, None]], dim=1)


def times_inverse(left: Tensor, x: Tensor, a: float, diagonal: Tensor, ridge: float) -> Tensor:
    """``left (a x^T x + D)^-1`` with ``D = (1 - a) diag(diagonal) + ridge I``, by Woodbury.

    ``D^-1 - D^-1 x^T (I / a + x D^-1 x^T)^-1 x D^-1``: the solve is of the number of rows of x.
    """
    import torch

    scaled = left / ((1 - a) * diagonal + ridge)
    if a == 0:
        return scaled
    weighted = x / ((1 - a) * diagonal + ridge)
    inner = weighted @ x.T + torch.eye(len(x), dtype=x.dtype) / a
    solved = torch.cholesky_solve((scaled @ x.T).T, torch.linalg.cholesky(inner))
    return scaled - solved.T @ weighted
