"""Merges of one round beside the mean, and what clients work out for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_heads import HEADS, PARAMETERS, Array, State, merged, of_client
from torch import nn

from fedcats.merging import encodings
from fedcats.merging.anchored import Scale, Stock
from fedcats.merging.curvature import Fisher, RegMean
from fedcats.merging.gram import packed, unpacked
from fedcats.merging.heads import Head
from fedcats.merging.rules import Round, Rule
from fedcats.merging.sparse import Dare, Half, Int8, Ties
from fedcats.training import parts

# --- merges of weights -----------------------------------------------------------------------


def models(seed: int, clients: int) -> tuple[State, list[State], list[int]]:
    draw = torch.Generator().manual_seed(seed)

    def one(scale: float) -> State:
        return {
            "conv": scale * torch.randn(4, 3, 3, 3, generator=draw),
            "running": 1 + scale * torch.rand(4, generator=draw),
            "count": torch.tensor(int(100 * scale)),
            "fc.weight": scale * torch.randn(5, 6, generator=draw),
            "fc.bias": scale * torch.randn(5, generator=draw),
        }

    start, deltas = one(1.0), [one(0.1) for _ in range(clients)]
    updates = [{k: (v + d[k]).to(v.dtype) for k, v in start.items()} for d in deltas]
    return start, updates, [3 + i for i in range(clients)]


def mean(updates: Sequence[State], name: str, weights: Sequence[int]) -> Array:
    values = np.stack([update[name].double().numpy() for update in updates])
    return np.tensordot(np.array(weights) / sum(weights), values, 1)


def same(state: State, name: str, expected: Array) -> None:
    assert state[name].dtype == (torch.int64 if name == "count" else torch.float32)
    assert np.allclose(state[name].double().numpy(), expected, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("clients", [1, 2, 10])
def test_stock_and_scale(clients: int) -> None:
    start, updates, examples = models(clients, clients)
    found = merged(Stock(), updates, examples, None, start, frozenset({"conv", "fc.bias"}))
    equal = [1] * clients
    for name in ("conv", "fc.bias"):
        w0 = start[name].double().numpy()
        deltas = np.stack([u[name].double().numpy() - w0 for u in updates]).reshape(clients, -1)
        unit = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
        t = 1.0
        if clients > 1:
            c = (unit @ unit.T)[~np.eye(clients, dtype=bool)].mean()
            t = min(1.0, max(0.0, clients * c / (1 + (clients - 1) * c)))
        same(found, name, w0 + t * deltas.mean(0).reshape(w0.shape))
    for name in ("fc.weight", "running"):
        same(found, name, mean(updates, name, equal))
    scale = merged(Scale(2, 0.5, None, [1]), updates, examples, None, start)
    for name, g in (("conv", 2), ("fc.weight", 0.5), ("running", 1)):
        w0 = start[name].double().numpy()
        same(scale, name, w0 + g * (mean(updates, name, examples) - w0))
    one = merged(Scale(1, None, 0.3, [1]), updates, examples, None, start)["conv"]
    w = updates[0]["conv"].double()
    for update in updates[1:]:
        w = 0.3 * update["conv"].double() + 0.7 * w
    assert torch.allclose(one.double(), w, atol=1e-6)


def test_fisher() -> None:
    start, updates, examples = models(4, 5)
    draw = torch.Generator().manual_seed(9)
    given = [
        {"fisher": {n: torch.rand(start[n].shape, generator=draw) ** 4 for n in PARAMETERS}}
        for _ in updates
    ]
    given[2]["fisher"]["fc.bias"].zero_()
    found = merged(Fisher(1e-3), updates, examples, given, start)
    for name in PARAMETERS:
        above = below = 0.0
        for n, update, one in zip(examples, updates, given, strict=True):
            f = one["fisher"][name].double().numpy()
            weight = n * (f + 1e-3 * (f.mean() or 1e-30))
            above, below = above + weight * update[name].double().numpy(), below + weight
        same(found, name, above / below)
    same(found, "running", mean(updates, "running", examples))


@pytest.mark.parametrize(("rows", "a"), [(1, 0.9), (3, 0.95), (40, 0.9), (7, 1.0), (7, 0.0)])
def test_regmean(rows: int, a: float) -> None:
    start, updates, examples = models(5, 4)
    draw = np.random.default_rng(rows)
    inputs = [np.maximum(draw.normal(size=(rows * n, 6)), 0) for n in examples]
    for x in inputs:
        x[:, 2] = 0  # a dead input
    inputs = [np.hstack([x, np.ones((len(x), 1))]) for x in inputs]
    counts = [torch.tensor([len(x)], dtype=torch.float64) for x in inputs]
    factors = [packed(torch.from_numpy(x)) for x in inputs]
    given = [{"inputs": {"fc": torch.cat(one)}} for one in zip(counts, factors, strict=True)]
    found = merged(RegMean(a, 1e-3), updates, examples, given, start)
    whole = [np.column_stack([u["fc.weight"].double(), u["fc.bias"].double()]) for u in updates]
    grams = [x.T @ x / len(x) for x in inputs]
    scaled = [a * g + (1 - a) * np.diag(np.diag(g)) for g in grams]
    weighted = [n * g for n, g in zip(examples, scaled, strict=True)]
    average = np.tensordot(np.array(examples) / sum(examples), np.stack(whole), 1)
    total = sum(weighted)
    ridge = 1e-3 * np.diag(sum(n * g for n, g in zip(examples, grams, strict=True))).mean()
    moved = sum((w - average) @ g for w, g in zip(whole, weighted, strict=True))
    expected = average + moved @ np.linalg.inv(total + ridge * np.eye(7))
    same(found, "fc.weight", expected[:, :-1])
    same(found, "fc.bias", expected[:, -1])
    same(found, "conv", mean(updates, "conv", examples))


def sent(rule: Rule, start: State, updates: Sequence[State]) -> list[dict[str, State]]:
    (need,) = rule.needs
    return [
        {need: encodings.encode(need, update, start, PARAMETERS, i)}
        for i, update in enumerate(updates)
    ]


def test_ties() -> None:
    start, updates, examples = models(6, 5)
    rule = Ties(0.3)
    found = merged(rule, updates, examples, sent(rule, start, updates), start)
    names = sorted(PARAMETERS)
    flat = np.stack(
        [np.concatenate([(u[n] - start[n]).flatten().numpy() for n in names]) for u in updates]
    ).astype(np.float64)
    keep = round(0.3 * flat.shape[1])
    for row in flat:
        row[np.argsort(-np.abs(row))[keep:]] = 0
    sign = np.where(flat.sum(0) >= 0, 1, -1)
    agree = flat * sign > 0
    expected = (flat * agree).sum(0) / np.maximum(agree.sum(0), 1)
    at = 0
    for name in names:
        size = start[name].numel()
        own = expected[at : at + size].reshape(start[name].shape)
        same(found, name, start[name].double().numpy() + own)
        at += size
    same(found, "running", mean(updates, "running", [1] * 5))
    same(found, "count", start["count"].numpy() + 10)


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(1, 40), scale=st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 1e6]),
    part=st.sampled_from(["fp16", "int8", "dare:0.5", "dare:0.99", "ties:0.01", "ties:0.9"]),
    seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_an_encoding_has_the_shapes_that_the_server_expects_and_can_be_read_back(
    size: int, scale: float, part: str, seed: int
) -> None:
    draw = torch.Generator().manual_seed(size)
    start = {"conv": torch.zeros(size), "count": torch.tensor(1), "fc.bias": torch.zeros(())}
    update = {
        "conv": scale * torch.randn(size, generator=draw),
        "count": torch.tensor(9),
        "fc.bias": torch.tensor(scale),
    }
    encoded = encodings.encode(part, update, start, PARAMETERS, seed)
    like = encodings.shapes(part, start, PARAMETERS, seed)
    assert {k: (v.shape, v.dtype) for k, v in encoded.items()} == {
        k: (v.shape, v.dtype) for k, v in like.items()
    }
    encodings.check(part, encoded, size + 1, seed)
    otherwise = dict(reversed(start.items()))  # as it may come out of a file
    found = encodings.decode(part, encoded, otherwise, PARAMETERS)
    assert list(found) == list(otherwise)
    assert float(found["count"]) == 8
    off = (found["conv"] - update["conv"]).abs().max()
    most = float(update["conv"].abs().max())
    if part in ("fp16", "int8"):
        step = most / 127 if part == "int8" else most * 2**-10
        assert off <= step * 1.001 + 1e-37
    else:
        kept = found["conv"] != 0
        factor = 1 / (1 - float(part[5:])) if part.startswith("dare") else 1.0
        assert torch.allclose(found["conv"][kept], factor * update["conv"][kept], rtol=1e-5)


@pytest.mark.parametrize("rule", [Half(), Int8(), Dare(0.7)])
def test_an_encoding_is_right_on_average(rule: Rule) -> None:
    """Of one client, over 400 seeds: within five standard errors of the update itself."""
    start, (update,), _ = models(7, 1)
    (need,) = rule.needs
    found = np.stack(
        [
            encodings.decode(
                need, encodings.encode(need, update, start, PARAMETERS, s), start, PARAMETERS
            )["conv"].numpy()
            for s in range(400)
        ]
    ).astype(np.float64)
    delta = (update["conv"].double() - start["conv"].double()).numpy()
    error = found.std(0) / 20 + 1e-7
    assert (np.abs(found.mean(0) - delta) < 5 * error).all()
    if need in ("fp16", "int8"):
        assert found.std() > 0  # rounded at random


# --- what clients work out -------------------------------------------------------------------


class Tiny(nn.Module):
    """A convolution, a change in place, and two linear layers."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.two(self.relu(self.one(x)))  # type: ignore[no-any-return]


class Pixels:
    """Stands for `fedcats.data.Images`."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def input(self, batch: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self.x[batch]


@pytest.mark.parametrize("norm", [False, True])
def test_fisher_and_inputs_are_those_of_a_plain_loop(norm: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, images = Tiny(norm=norm).eval(), Pixels(torch.randn(70, 3, 8, 8))
    names = [name for name, _ in model.named_parameters()]
    found = parts._fisher(model, images, ["one", "two"], names, 5)  # type: ignore[arg-type]
    assert list(found) == names
    draw, total = torch.Generator().manual_seed(5), dict.fromkeys(names, 0.0)
    for p in model.parameters():
        p.requires_grad_()
    for x in images.x:
        scores = torch.log_softmax(model(x[None])[0], 0)
        label = int(torch.multinomial(scores.detach().exp(), 1, generator=draw))
        model.zero_grad()
        scores[label].backward()
        total = {n: total[n] + p.grad.double() ** 2 for n, p in model.named_parameters()}  # type: ignore[union-attr]
    for name in names:
        assert torch.allclose(found[name].double(), total[name] / 70, rtol=1e-4, atol=1e-9)
    inputs = parts._inputs(model, images, names)  # type: ignore[arg-type]
    with torch.no_grad():
        x = model.relu(model.norm(model.conv(images.x))).mean((2, 3)).double()
        x = torch.cat([x, torch.ones(70, 1)], 1)
    assert inputs["one"][0] == 70
    r = unpacked(inputs["one"][1:], 70, 5)
    assert torch.allclose(r.T @ r, x.T @ x, rtol=1e-5)
    assert set(inputs) == {"one", "two"}


def held(thing: object) -> int:
    """Numbers in all tensors that something holds."""
    if isinstance(thing, torch.Tensor):
        return thing.numel()
    if isinstance(thing, dict | list | tuple):
        return sum(map(held, thing.values() if isinstance(thing, dict) else thing))
    return held(vars(thing)) if hasattr(thing, "__dict__") and not callable(thing) else 0


@pytest.mark.parametrize(
    "rule", [Stock(), Fisher(1e-3), RegMean(0.9, 1e-3), Ties(0.2), Dare(0.5), HEADS[0], HEADS[3]]
)
def test_memory_does_not_grow_with_the_number_of_clients(rule: Rule) -> None:
    start, updates, examples = models(8, 40)
    now = Round(start, PARAMETERS, pretrained=PARAMETERS)
    accumulator, sizes = now.begin(rule), []
    for i, (update, n) in enumerate(zip(updates, examples, strict=True), 1):
        x = np.random.default_rng(i).normal(size=(n, 7))
        given: dict[str, State] = {"fisher": {name: start[name] ** 2 for name in PARAMETERS}}
        count = torch.tensor([n], dtype=torch.float64)
        given["inputs"] = {"fc": torch.cat([count, packed(torch.from_numpy(x))])}
        if isinstance(rule, Head):
            given = of_client(rule, x, np.arange(n) % 2, 2)
        elif isinstance(rule, Ties | Dare):
            given = sent(rule, start, [update])[0]
        now.add(update, n, Path(), given)
        now.parts = {}
        if i in (10, 40):
            sizes.append(held({**vars(accumulator), "server_round": None}))
    assert sizes[1] <= 1.5 * sizes[0]
