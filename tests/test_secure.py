"""The secure sum: equal to the clear one, whoever drops out, and nothing to be seen before."""

import contextlib
import inspect
import random
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.experiment.run import run as experiment
from fedcats.experiment.server_app import configuration
from fedcats.federated.client_app import app
from fedcats.federated.local import LocalGrid
from fedcats.federated.secure import SecureSum, remember
from fedcats.merging import secure
from fedcats.merging.adaptive import FedAvgM
from fedcats.merging.fold import effective_weights
from fedcats.merging.rules import FedAvg, Polyak, Round, Uniform
from fedcats.merging.secure import (
    Member,
    clear_mean,
    encode,
    join,
    masked,
    mean,
    merge_sum,
    public_weights,
    split,
    threshold,
    unmasked,
)
from fedcats.storage import Store


def update(seed: int, elements: int = 20) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(elements, 3, generator=generator),
        "counter": torch.tensor(seed * 1000 + 7),
        "empty": torch.zeros(0, 2),
    }


def session(clients: int, silent: set[int]) -> tuple[list[Member], dict[int, list[bytes]]]:
    """Members that know each other's keys; the silent ones make no shares for the others."""
    members = [Member() for _ in range(clients)]
    publics = [member.public for member in members]
    sealed = {i: m.share(i, publics) for i, m in enumerate(members) if i not in silent}
    for i in sealed:
        members[i].receive({j: sealed[j][i] for j in sealed if j != i})
        members[i] = Member.from_json(members[i].to_json())
    return members, sealed


def secure_mean(members, sealed, updates, factors, gone, mute):
    present = [i for i in sealed if i not in gone]
    sums = {name: np.zeros(value.numel(), np.uint64) for name, value in updates[0].items()}
    for i in present:
        for name, one in masked(updates[i], factors[i], members[i].masks()):
            sums[name] += one
    answers = {i: members[i].unmask(present) for i in present if i not in mute}
    masks = unmasked([m.public for m in members], list(sealed), present, answers)
    return mean(sums, masks, sum(factors[i] for i in present), updates[0]), present


@pytest.mark.parametrize("seed", range(20))
def test_with_any_drop_outs_it_is_the_clear_sum_of_the_others_byte_for_byte(seed):
    """Some drop out before their shares, some before their update, some before the last answer."""
    draw = random.Random(seed)
    clients = draw.randint(3, 12)
    spare = draw.sample(range(clients), clients - threshold(clients))
    stages = [draw.randrange(4) for _ in spare]
    silent, gone, mute = (
        {c for c, s in zip(spare, stages, strict=True) if s == k} for k in range(3)
    )
    members, sealed = session(clients, silent)
    updates = [update(100 * seed + i) for i in range(clients)]
    steps = [1.0, *(draw.random() for _ in range(clients - 1))]
    factors = effective_weights(steps)
    found, present = secure_mean(members, sealed, updates, factors, gone, mute)
    assert present == [i for i in range(clients) if i not in silent | gone]
    clear = clear_mean([updates[i] for i in present], [factors[i] for i in present])
    for name, value in clear.items():
        assert found[name].numpy().tobytes() == value.numpy().tobytes()
    total = sum(factors[i] for i in present)
    exact = sum(factors[i] / total * updates[i]["weight"].double() for i in present)
    assert torch.allclose(found["weight"], exact, rtol=0, atol=len(present) * 2**-41 / total)


def test_too_few_answers_or_wrong_ones_give_no_sum():
    members, sealed = session(7, set())
    updates, factors = [update(i) for i in range(7)], [1 / 7] * 7
    with pytest.raises(ValueError, match="4 of 7 clients are left, it takes 5"):
        secure_mean(members, sealed, updates, factors, {0}, {1, 2})
    members, sealed = session(7, set())
    present = range(6)
    answers = {i: members[i].unmask(present) for i in present}
    answers[0] = {**answers[0], 6: bytes(66)}
    with pytest.raises(ValueError, match="do not fit together"):
        unmasked([m.public for m in members], range(7), present, answers)


def test_a_member_says_no_more_than_it_must():
    members, _ = session(4, set())
    for present in ([0, 1], [1, 2, 3], [0, 1, 2, 9]):
        with pytest.raises(ValueError, match="not answered"):
            members[0].unmask(present)
    given = members[0].unmask([0, 1, 2])
    of_seed, of_key = members[0].held[1][:66], members[0].held[3][66:]
    assert given[1] == of_seed and given[3] == of_key
    with pytest.raises(ValueError, match="not answered"):
        members[0].unmask([0, 1, 2, 3])
    fresh = [Member() for _ in range(4)]
    publics = [m.public for m in fresh]
    for index, keys in ((0, publics[:2]), (1, publics), (0, [*publics, publics[1]])):
        with pytest.raises(ValueError, match=r"take part|same key"):
            fresh[0].share(index, keys)
    texts = {i: m.share(i, publics) for i, m in enumerate(fresh)}
    swapped = {1: texts[2][0], 2: texts[1][0], 3: texts[3][0]}
    with pytest.raises(ValueError, match="not what its maker sent"):
        fresh[0].receive(swapped)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.randoms())
def test_any_enough_shares_give_the_secret_and_fewer_do_not(secret, members, draw):
    least = draw.randint(1, members)
    shares = dict(enumerate(split(secret, members, least)))
    some = draw.sample(range(members), least)
    assert join({i: shares[i] for i in some}) == secret
    if least > 1:
        with contextlib.suppress(ValueError):
            assert join({i: shares[i] for i in some[1:]}) != secret


def test_a_masked_update_is_as_good_as_random():
    """Of an update of nothing but zeros: each of the eight bytes of a number, and their pairs."""
    members, _ = session(3, set())
    zeros = {"weight": torch.zeros(200_000)}
    ((_, values),) = masked(zeros, 1.0, members[0].masks())
    seen = values.view(np.uint8).reshape(-1, 8).astype(int)
    cells = [*seen.T, seen[:, 0] * 256 + seen[:, 1], seen[:-1, 7] * 256 + seen[1:, 7]]
    p = [
        stats.chisquare(np.bincount(cell, minlength=65536 if i > 7 else 256)).pvalue
        for i, cell in enumerate(cells)
    ]
    assert min(p) > 1e-4 / len(p)
    ((_, again),) = masked(zeros, 1.0, session(3, set())[0][0].masks())
    assert not np.array_equal(again, values)


def test_masks_have_256_bits_by_construction(monkeypatch):
    """Every key of a mask has 32 bytes of the system's randomness or X25519; no other generator."""
    keys = []
    cipher = secure.algorithms.ChaCha20
    monkeypatch.setattr(
        secure.algorithms, "ChaCha20", lambda key, nonce: keys.append(key) or cipher(key, nonce)
    )
    members, _ = session(5, set())
    for member in members:
        member.masks()
    assert len(keys) == 25 and len({*keys}) == 5 + 10 and {len(key) for key in keys} == {32}
    secret = {secret for m in members for secret in (m.seed, m.mask_key, m.share_key)}
    assert len(secret) == 15 and {len(one) for one in secret} == {32}
    text = inspect.getsource(secure)
    assert not re.search(r"np\.random|torch\.(rand|manual_seed|Generator)|import random", text)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-4e6, 4e6, width=32), min_size=1, max_size=9), st.floats(0, 1))
def test_fixed_point_keeps_what_float32_has(values, factor):
    value = torch.tensor(values)
    (found,) = (
        clear_mean([{"w": value}, {"w": value}], [factor, 1 - factor])["w"]
        .double()
        .split(len(values))
    )
    assert torch.allclose(found, value.double(), rtol=1e-15, atol=2**-40)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e7])
def test_what_does_not_fit_the_ring_is_refused(bad):
    with pytest.raises(ValueError, match="no secure sum"):
        encode(torch.tensor([0.0, bad]), 0.5)


class Clients(LocalGrid):
    """Clients with updates of their own; ``broken`` are (client, step) that fail, or lie."""

    def __init__(self, root: Path, clients: int, shared: bool, broken: dict[tuple[int, str], str]):
        super().__init__(app, clients)
        self.broken = broken
        self.updates = [update(i, 5) for i in range(clients)]
        for client, own in enumerate(self.updates):
            store = Store(root if shared else root / str(client))
            about = {"kind": "update", "examples": 1, "epochs": []}
            store.put(f"own{client}", own, about)
            remember(self._contexts[client + 1], {"store": store.root}, f"own{client}")

    def _call(self, message: Message) -> Message:
        step = message.content["config"]["step"]
        fault = self.broken.get((message.metadata.dst_node_id - 1, step))
        if fault == "dead":
            return Message(Error(code=0, reason="gone"), reply_to=message)
        reply = super()._call(message)
        if fault == "lie":
            reply.content["info"] = ConfigRecord({"keys": [b"x"], "sealed": [1], "shares": "no"})
            reply.content["arrays"] = ArrayRecord({"weight": torch.zeros(3)})
        return reply


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fault", ["dead", "lie"])
@pytest.mark.parametrize("step", ["keys", "share", "mask", "unmask", ""])
def test_over_flower_whoever_fails_the_others_are_summed(tmp_path, shared, fault, step):
    """A client with the server's store answers by reference, so that it can only vanish there."""
    grid = Clients(tmp_path, 5, shared, {(1, step): fault})
    store = Store(tmp_path) if shared else None
    ask = SecureSum(grid, {c: c + 1 for c in range(5)}, grid.updates[0], store)
    sizes = [3, 1, 4, 1, 5]
    means, clients, factors = ask(lambda who: public_weights(FedAvg(), who, sizes))
    lost = step in ("keys", "share", "mask") and not (shared and (fault, step) == ("lie", "mask"))
    assert clients == [0, *([] if lost else [1]), 2, 3, 4]
    assert [*ask.failures] == ([1] if lost or step == "unmask" else [])
    clear = clear_mean([grid.updates[c] for c in clients], factors)
    assert all(torch.equal(means[name], value) for name, value in clear.items())
    assert not [*tmp_path.glob("masked-*")]
    grid.broken.clear()
    again = SecureSum(grid, ask.nodes, ask.like, store)
    with pytest.raises(ValueError, match="no update that is not in a secure sum yet"):
        again(lambda who: [0.1] * len(who))


def test_too_few_clients_are_an_error_that_names_the_first(tmp_path):
    broken = {(0, "mask"): "dead", (3, "mask"): "dead"}
    grid = Clients(tmp_path, 5, False, broken)
    ask = SecureSum(grid, {c: c + 1 for c in range(5)}, grid.updates[0], None)
    with pytest.raises(ValueError, match=r"3 of 5 clients are left, .* takes 4; client 0: .*gone"):
        ask(lambda who: [0.2] * len(who))


@pytest.mark.parametrize(
    "rule",
    [
        Polyak(beta=0.5),
        Polyak(beta=0.3, start="global"),
        FedAvg(),
        Uniform(),
        FedAvgM(lr=1.0, momentum=0.9),
    ],
)
def test_a_merge_of_the_sum_is_the_rules_own_within_the_fixed_point(rule):
    updates, sizes, start = [update(i) for i in range(1, 6)], [3, 1, 4, 1, 5], update(0)
    names = frozenset({"weight", "empty"})
    fold, own = Round(start, names), Round(start, names)
    begun = fold.begin(rule)
    for one, size in zip(updates, sizes, strict=True):
        fold.add(one, size, Path())
    factors = public_weights(rule, range(5), sizes)
    state, steps = merge_sum(rule, own, clear_mean(updates, factors), factors, sizes)
    expected = begun.finish()
    for name, value in expected.state.items():
        assert state[name].dtype == value.dtype
        assert torch.allclose(state[name], value, rtol=1e-6, atol=1e-9)
    if expected.steps:
        assert steps == pytest.approx([*expected.steps])


@pytest.mark.slow
def test_one_run_with_it(run):
    overrides = [
        "partition.num_shards=3", "train.epochs=1", "runner=local", "strategy.secure=true",
        "strategy.rules=[fedavg]", "mode=federated",
    ]  # fmt: skip
    results, _ = run(*overrides)
    model = results["models"]["fedavg"]
    assert model["effective_weights"] == pytest.approx([1 / 3] * 3, abs=0.1)
    assert model["bytes"]["up"] == pytest.approx(2 * model["bytes"]["down"], rel=0.01)
    clear, _ = run(*[o for o in overrides if "secure" not in o], folder="clear")
    assert [m["loss"] for m in (model, clear["models"]["fedavg"])] == pytest.approx(
        [model["loss"]] * 2, abs=1e-4
    )


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["strategy.rules=[median]"], "median needs the single updates"),
        (["strategy.rules=[krum]"], "krum needs the single updates"),
        (["strategy.rules=[polyak]", "strategy.beta=1"], "the sum would be one client's update"),
        (["strategy.rules=[polyak]", "strategy.beta=0"], "the sum would be one client's update"),
        (["strategy.rules=[fedavg]", "partition.num_shards=2"], "allowed are 3 and more"),
        (["strategy.rules=[polyak,fedavg]"], "allowed is one rule"),
        (["strategy.rules=[fedavg]", "strategy.max_norm=1"], "max_norm needs the single updates"),
        (["strategy.rules=[polyak]", "strategy.beta=auto"], "beta=auto needs the single updates"),
        (["strategy.rules=[fedavg]", "mode=merge"], "mode=merge needs the single updates"),
    ],
)
def test_what_needs_single_updates_is_refused(overrides, why):
    with pytest.raises(UserError, match=re.escape("strategy.secure=true: ") + ".*" + why):
        load(compose_config(["strategy.secure=true", *overrides]))


@pytest.mark.slow
def test_in_a_real_federation_no_update_leaves_its_site(tmp_path, photos):
    class Sites(LocalGrid):
        sent: ClassVar[list[Message]] = []

        def __init__(self) -> None:
            super().__init__(app, 3)
            for node, context in self._contexts.items():
                own = {"partition-id": node - 1, "num-partitions": 3, "data-path": str(photos)}
                context.node_config = own

        def _call(self, message: Message) -> Message:
            self.sent.append(super()._call(message))
            return self.sent[-1]

    overrides = (
        f"data=folder data.root={photos} model.name=squeezenet1_1 model.weights=none seed=5 "
        "train.epochs=1 strategy.rules=[polyak] strategy.secure=true rounds=2 save_models=none"
    )
    raw = configuration({"overrides": overrides, "home": ""}, simulated=False)
    results = experiment(raw, tmp_path / "run", Sites())
    assert {*results["models"]} == {"polyak"} and len(results["store"]["trained"]) == 3 * 2
    assert results["models"]["polyak"]["effective_weights"] == [0.25, 0.25, 0.5]
    arrays = [m.content["arrays"] for m in Sites.sent if "arrays" in m.content]
    masked = [one for one in arrays if len(one)]
    assert len(arrays) > len(masked) == 3 * 2
    assert {one.numpy().dtype for record in masked for one in record.values()} == {np.dtype("i8")}


def test_two_sites_are_too_few_before_anything_is_trained(tmp_path, photos):
    grid = LocalGrid(app, 2)
    for node, context in grid._contexts.items():
        own = {"partition-id": node - 1, "num-partitions": 2, "data-path": str(photos)}
        context.node_config = own
    overrides = (
        f"data=folder data.root={photos} model.name=squeezenet1_1 model.weights=none "
        "strategy=fedavg strategy.secure=true"
    )
    raw = configuration({"overrides": overrides, "home": ""}, simulated=False)
    with pytest.raises(UserError, match="of 2 clients' sum each knows too much"):
        experiment(raw, tmp_path / "run", grid)
