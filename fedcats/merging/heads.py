"""Heads out of statistics: one linear layer on the start model's feature, and no training at all.

Each client sends sums over its photos (`fedcats.training.parts`), the server adds them up and
solves for the head once. So the head is that of all photos in one place, whoever has which: its
centralized twin is the same head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedcats.limits import checked, number, one_of
from fedcats.merging.rules import Accumulator, Merge, Round, WithSettings
from fedcats.models.names import FEATURES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_PENALTIES = tuple(10.0 ** (k / 2) for k in range(-8, 3))  # 0.0001 .. 10
_NEVER = -1e30  # bias of a class of which nobody has a photo


class Head(WithSettings):
    """A rule whose merge is a head, ``<features>.weight`` (C, d) and ``.bias`` (C,) float64.

    Attributes
    ----------
    features
        ``pooled``, ``flat`` or ``linear``, see `fedcats.models.features`.
    apart
        Whether `fit` gets each client's sums, and not only those of all.
    """

    is_last = True
    features: str
    apart: bool = False

    def begin(self, server_round: Round) -> Accumulator:
        """The sums of all clients."""
        return _Sums(self, server_round)

    def fit(self, sums: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, str]:
        """The head.

        Parameters
        ----------
        sums
            (S, C, d + 1) float64: of subsets of the photos of each class the sum of the features,
            and behind it the number of photos; one subset, all of them, unless `apart`.
        rows
            (r, d + 1) float64 with ``rows^T rows`` the Gram matrix of all photos' features, a 1
            behind each; (0, d + 1) where the rule does not need it.

        Returns
        -------
        (weight, bias, chosen)
            (C, d) and (C,) float64, and what was chosen, on what.

        Raises
        ------
        ValueError
            Where there are too few photos.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Ridge(Head):
    """Ridge regression of the classes' indicators on the feature with a constant 1.

    ``W = (G + lambda tr(G) / d I)^-1 [S_1 .. S_C]`` with ``G = sum phi phi^T`` and ``S_c`` the sum
    over the photos of class c.

    Attributes
    ----------
    penalty
        Lambda; ``auto``: the one of eleven from 0.0001 to 10 with the smallest generalized
        cross-validation error (Golub, Heath, Wahba 1979) of the training photos, which the sums
        alone give.
    """

    where = "strategy.ridge."
    name = "ridge"
    title = "ridge head"
    detail = ", {features}"
    features: str = one_of(*FEATURES)
    penalty: Any = checked(
        "a number above 0 | auto",
        lambda v: v == "auto" or (type(v) in (int, float) and 0 < v < float("inf")),
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """Class sums and the Gram matrix' factor."""
        return (f"sums:{self.features}:1", f"gram:{self.features}")

    def fit(self, sums: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, str]:
        """See above."""
        targets = sums.sum(0)
        basis, small = _row_space(rows)
        gram, right = small.T @ small, basis.T @ targets.T
        mean = float(gram.trace()) / rows.shape[1]
        penalty, chosen = self.penalty, ""
        if penalty == "auto":
            penalty = _cross_validated(gram, right, float(targets[:, -1].sum()), mean)
            chosen = f"λ = {penalty:.2g} by cross-validation (GCV) out of the clients' sums"
        head = basis @ _solve(gram, penalty * mean, right)
        return head[:-1].T.contiguous(), head[-1].clone(), chosen


@dataclass(frozen=True)
class Lda(Head):
    """Linear discriminant analysis with the covariance within the classes.

    ``Sigma = (G - sum n_c mu_c mu_c^T) / (N - C)``, of which a share ``shrinkage`` is replaced by
    ``tr(Sigma) / d I``; ``w_c = Sigma^-1 mu_c, b_c = -mu_c^T w_c / 2 + log(n_c / N)``. C is the
    number of classes that have photos.
    """

    where = "strategy.lda."
    name = "lda"
    title = "LDA head"
    detail = ", {features}"
    features: str = one_of(*FEATURES)
    shrinkage: float = number(0, 1, above=True)

    @property
    def needs(self) -> tuple[str, ...]:
        """Class sums and the Gram matrix' factor."""
        return (f"sums:{self.features}:1", f"gram:{self.features}")

    def fit(self, sums: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, str]:
        """See above."""
        count = int(sums[..., -1].sum())
        weight, bias = _discriminant(sums.sum(0), rows[:, :-1], count, self.shrinkage, self.title)
        return weight, bias, ""


@dataclass(frozen=True)
class ClassMeans(Head):
    """The nearest class mean: ``w_c = mu_c, b_c = -|mu_c|^2 / 2``."""

    where = "strategy.class_means."
    name = "class_means"
    title = "nearest class mean"
    detail = ", {features}"
    features: str = one_of(*FEATURES)

    @property
    def needs(self) -> tuple[str, ...]:
        """Class sums."""
        return (f"sums:{self.features}:1",)

    def fit(self, sums: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, str]:
        """See above."""
        means, counts = _means(sums.sum(0))
        return means, _absent(-(means**2).sum(1) / 2, counts), ""


@dataclass(frozen=True)
class MeansLda(Head):
    """`Lda` out of means alone: its covariance is that of the means of subsets of each class.

    The mean of m photos has the covariance ``Sigma / m``, so
    ``Sigma = sum_s m_s (mu_s - mu_c)(mu_s - mu_c)^T / (S - C)`` over all S subsets that are not
    empty.

    Attributes
    ----------
    subsets
        Into how many each client divides its photos of a class.
    """

    where = "strategy.means_lda."
    apart = True
    name = "means_lda"
    title = "LDA head from means"
    detail = ", {features}"
    features: str = one_of(*FEATURES)
    shrinkage: float = number(0, 1, above=True)
    subsets: int = number(1, 1000)

    @property
    def needs(self) -> tuple[str, ...]:
        """The sums of the subsets."""
        return (f"sums:{self.features}:{self.subsets}",)

    def fit(self, sums: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, str]:
        """See above."""
        every = sums.flatten(0, 1)
        every = every[every[:, -1] > 0]
        means = every[:, :-1] / every[:, -1:].sqrt()  # rows^T rows = sum m_s mu_s mu_s^T
        weight, bias = _discriminant(sums.sum(0), means, len(means), self.shrinkage, self.title)
        return weight, bias, ""


@dataclass
class _Sums(Accumulator):
    """The sums of all clients; the factor's rows are never more than twice the features."""

    rule: Head
    server_round: Round
    sums: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path) -> None:
        import torch

        from fedcats.merging.gram import stacked, unpacked

        for name in self.rule.needs:
            part = self.server_round.parts[name]
            if "sums" in part:
                self.sums.append(part["sums"])
                width = part["sums"].shape[-1]
            else:
                self.rows = stacked([*self.rows, unpacked(part["factor"], examples, width)])
        if not self.rule.apart:
            self.sums = [torch.cat(self.sums).sum(0, keepdim=True)]

    def finish(self) -> Merge:
        import torch

        from fedcats.merging.gram import one_thread

        if not self.sums:
            raise ValueError("nothing to merge: no update was added")
        sums = torch.cat(self.sums)
        with one_thread():
            rows = torch.cat([sums.new_zeros(0, sums.shape[-1]), *self.rows])
            weight, bias, chosen = self.rule.fit(sums, rows)
        names = (f"{self.rule.features}.weight", f"{self.rule.features}.bias")
        return Merge(dict(zip(names, (weight, bias), strict=True)), chosen=chosen)


def _means(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature (C, d), 0 of a class without photos, and number of photos (C,)."""
    counts = sums[:, -1]
    return sums[:, :-1] / counts.clamp(min=1)[:, None], counts


def _absent(bias: Tensor, counts: Tensor) -> Tensor:
    """The biases, with which a class without photos is never taken."""
    return bias.masked_fill(counts == 0, _NEVER)


def _discriminant(
    sums: Tensor, rows: Tensor, count: int, shrinkage: float, title: str
) -> tuple[Tensor, Tensor]:
    """LDA's weights and biases; ``rows^T rows`` is the sum of squares of ``count`` vectors."""
    means, counts = _means(sums)
    freedom = count - int((counts > 0).sum())
    if freedom < 1:
        raise ValueError(f"{title}: {count} photos or subsets of {count} classes have no spread")
    basis, small = _row_space(rows)
    inside = means @ basis
    scatter = small.T @ small - inside.T @ (counts[:, None] * inside)
    sigma = (1 - shrinkage) * scatter / freedom
    target = float(scatter.trace()) / freedom / rows.shape[1]
    if not target > 0:
        raise ValueError(f"{title}: all photos of a class have the same features")
    inner = _solve(sigma, shrinkage * target, inside.T).T
    prior = (counts / counts.sum()).clamp(min=1e-300).log()
    return inner @ basis.T, _absent(prior - (inner * inside).sum(1) / 2, counts)


def _row_space(rows: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (d, r) of the space of the rows, r <= d, and the rows in it.

    Of many features and few photos a small system is left. The means lie in it as well.
    """
    import torch

    if len(rows) >= rows.shape[1]:
        return torch.eye(rows.shape[1], dtype=rows.dtype), rows
    basis = torch.linalg.qr(rows.T).Q
    return basis, rows @ basis


def _solve(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """``(matrix + ridge I)^-1 right`` by Cholesky."""
    import torch

    whole = matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype)
    factor, failed = torch.linalg.cholesky_ex(whole)
    if failed:
        raise ValueError("the sums of the clients' features give no positive definite matrix")
    return torch.cholesky_solve(right, factor)


def _cross_validated(gram: Tensor, right: Tensor, count: float, mean: float) -> float:
    """The penalty with the smallest ``N RSS / (N - trace of the hat matrix)^2``."""
    import torch

    values, vectors = torch.linalg.eigh(gram)
    real = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[real], vectors[:, real]
    inside = ((vectors.T @ right) ** 2).sum(1) / values
    # Nothing small is a difference of large numbers: else rounding would choose.
    beyond = count - len(values)
    outside = max(count - float(inside.sum()), 0.0) if beyond > 0 else 0.0

    def error(penalty: float) -> float:
        kept = penalty * mean / (values + penalty * mean)
        rss = outside + float((inside * kept**2).sum())
        return count * rss / (beyond + float(kept.sum())) ** 2

    best: float = min(_PENALTIES, key=error)
    return best
