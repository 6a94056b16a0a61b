"""Heads out of statistics, against scikit-learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SklearnRidge

from fedcats.merging.gram import packed
from fedcats.merging.heads import ClassMeans, Head, Lda, MeansLda, Ridge
from fedcats.merging.rules import Round, Rule
from fedcats.models import build
from fedcats.models.features import features
from fedcats.training import parts

State = dict[str, torch.Tensor]
Array = NDArray[Any]
HEADS: list[Head] = [
    Ridge("pooled", "auto"),
    Ridge("pooled", 0.01),
    Lda("pooled", 0.05),
    ClassMeans("pooled"),
    MeansLda("pooled", 0.05, 3),
]
PARAMETERS = frozenset({"conv", "fc.weight", "fc.bias"})


def merged(
    rule: Rule,
    updates: Sequence[State],
    examples: Sequence[int],
    given: Sequence[dict[str, State]] | None = None,
    start: State | None = None,
    pretrained: frozenset[str] = PARAMETERS,
) -> State:
    now = Round(start or {}, PARAMETERS, pretrained=pretrained)
    accumulator = now.begin(rule)
    for i, (update, count) in enumerate(zip(updates, examples, strict=True)):
        now.add(update, count, Path(), given[i] if given else {})
    return accumulator.finish().state


# --- heads out of statistics -----------------------------------------------------------------


def of_client(rule: Head, x: Array, y: Array, classes: int) -> dict[str, State]:
    table = torch.cat([torch.from_numpy(x), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    given: dict[str, State] = {}
    for need in rule.needs:
        if need.startswith("gram"):
            given[need] = {"factor": packed(table)}
        else:
            subsets = int(need.split(":")[2])
            given[need] = {"sums": parts._sums(table, y, classes, subsets)}
    return given


def head(rule: Head, x: Array, y: Array, owner: Array, classes: int) -> tuple[Array, Array]:
    mine = [owner == client for client in np.unique(owner)]
    given = [of_client(rule, x[own], y[own], classes) for own in mine]
    state = merged(rule, [{}] * len(mine), [int(own.sum()) for own in mine], given)
    return state["pooled.weight"].numpy(), state["pooled.bias"].numpy()


def photos(seed: int, n: int, d: int, classes: int) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), draw.integers(0, classes, n)])
    return draw.normal(size=(len(y), d)) + draw.normal(size=(classes, d))[y], y


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), n=st.integers(3, 60), d=st.integers(1, 30),
    classes=st.integers(2, 4), clients=st.integers(1, 80), sparse=st.booleans(),
)  # fmt: skip
def test_a_head_is_that_of_all_photos_in_one_place_whoever_has_which(
    seed: int, n: int, d: int, classes: int, clients: int, sparse: bool
) -> None:
    x, y = photos(seed, n, d, classes)
    if sparse:  # as behind a ReLU
        x = np.maximum(x, 0)
    inside = ((x - np.stack([x[y == c].mean(0) for c in range(classes)])[y]) ** 2).sum()
    assume(inside > 1e-4 * (x**2).sum())  # LDA refuses 0, and little is lost in rounding
    owner = np.random.default_rng(seed).integers(0, clients, len(y))
    everyone_one = np.arange(len(y))
    for rule in HEADS[:4]:  # the last one depends on the subsets by its definition
        weight, bias = head(rule, x, y, np.zeros(len(y)), classes)
        scale = max(1.0, np.abs(weight).max(), np.abs(bias).max())
        for dealt in (owner, everyone_one):
            own_weight, own_bias = head(rule, x, y, dealt, classes)
            assert np.abs(own_weight - weight).max() < 1e-9 * scale
            assert np.abs(own_bias - bias).max() < 1e-9 * scale
    by_means, lda = HEADS[4], HEADS[2]  # of single photos the means' spread is the photos' own
    for a, b in zip(
        head(by_means, x, y, everyone_one, classes), head(lda, x, y, owner, classes), strict=True
    ):
        assert np.abs(a - b).max() < 1e-9 * max(1.0, np.abs(b).max())


@pytest.mark.parametrize(("n", "d"), [(200, 12), (20, 50)])
def test_heads_are_those_of_scikit_learn(n: int, d: int) -> None:
    x, y = photos(1, n, d, 3)
    owner = np.random.default_rng(1).integers(0, 10, len(y))
    weight, bias = head(Lda("pooled", 0.05), x, y, owner, 3)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.05).fit(x, y)
    inner = theirs.coef_ * (len(y) - 3) / len(y)  # they divide by N instead of N - C
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    assert np.allclose(weight, inner, rtol=1e-9, atol=1e-9)
    priors = np.log(np.bincount(y) / len(y))
    assert np.allclose(bias, priors - (inner * means).sum(1) / 2, rtol=1e-9, atol=1e-9)

    weight, bias = head(Ridge("pooled", 0.01), x, y, owner, 3)
    phi = np.hstack([x, np.ones((len(x), 1))])
    alpha = 0.01 * (phi**2).sum() / (d + 1)
    ridge = SklearnRidge(alpha=alpha, fit_intercept=False).fit(phi, np.eye(3)[y])
    assert np.allclose(np.column_stack([weight, bias]), ridge.coef_, rtol=1e-9, atol=1e-9)

    weight, bias = head(ClassMeans("pooled"), x, y, owner, 3)
    nearest = ((x[:, None] - means) ** 2).sum(2).argmin(1)
    assert ((x @ weight.T + bias).argmax(1) == nearest).all()


def test_a_penalty_is_that_of_the_smallest_generalized_cross_validation_error() -> None:
    x, y = photos(2, 60, 20, 2)
    phi, targets = np.hstack([x, np.ones((len(x), 1))]), np.eye(2)[y]

    def error(penalty: float) -> float:
        ridge = penalty * (phi**2).sum() / phi.shape[1]
        hat = phi @ np.linalg.solve(phi.T @ phi + ridge * np.eye(phi.shape[1]), phi.T)
        rest = ((targets - hat @ targets) ** 2).sum()
        return float(len(y) * rest / (len(y) - np.trace(hat)) ** 2)

    best = min((10.0 ** (k / 2) for k in range(-8, 3)), key=error)
    found = head(Ridge("pooled", "auto"), x, y, y, 2)
    assert all(
        np.allclose(a, b)
        for a, b in zip(found, head(Ridge("pooled", best), x, y, y, 2), strict=True)
    )


def test_a_class_of_nobody_is_never_taken_and_too_few_photos_are_refused() -> None:
    x, y = photos(3, 30, 5, 2)
    for rule in HEADS:
        weight, bias = head(rule, x, y, y, 4)
        assert np.isfinite(weight).all()
        scores = x @ weight.T + bias
        if not isinstance(rule, Ridge):  # of which an unseen class' scores are all 0
            assert scores.argmax(1).max() <= 1
    with pytest.raises(ValueError, match=r"LDA head: 2 photos or subsets .* have no spread"):
        head(Lda("pooled", 0.05), x[:2], np.array([0, 1]), np.arange(2), 2)
    with pytest.raises(ValueError, match="all photos of a class have the same features"):
        head(Lda("pooled", 0.05), np.ones((4, 3)), np.array([0, 1, 0, 1]), np.arange(4), 2)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("alexnet", (256, 9216, 4096)),
        ("resnet18", (512, 512, 10)),
        ("mobilenet_v3_small", (576, 576, 1024)),
        ("squeezenet1_1", (512, 512 * 13 * 13, 512 * 13 * 13)),  # no linear layer: what it gets
    ],
)
def test_features_of_a_model(name: str, sizes: tuple[int, int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build.build(name, 10).eval()
        x = torch.randn(2, 3, 224, 224)
    pooled, flat, linear = (features(model, which, x) for which in ("pooled", "flat", "linear"))
    assert (pooled.shape[1], flat.shape[1], linear.shape[1]) == sizes
    assert torch.allclose(pooled, flat.view(2, sizes[0], -1).mean(2), atol=1e-6)
