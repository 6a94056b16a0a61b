"""``privacy=dp``: the step, what it promises, what is refused, and an audit of it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from builders import plain_recipe, plain_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedcats.config import cross_checks
from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.errors import UserError
from fedcats.experiment.server_app import configuration
from fedcats.metrics.epsilon import client_noise, noise_for, renyi, spent, usual_delta
from fedcats.report import dp as words
from fedcats.report.epsilon_figure import over_epsilon
from fedcats.training import dp as private
from fedcats.training.loop import PlainStep, train
from fedcats.training.recipe import DpSgd
from fedcats.training.update import Task

CLIPPED = DpSgd(clip=0.5, noise=0.0, rate=0.5, expected=3.0)


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def photos(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, 2, 2, generator=draw), torch.arange(n) % 3


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def auditing() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "privacy_audit.py"
    spec = importlib.util.spec_from_file_location("privacy_audit", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["privacy_audit"] = module
    spec.loader.exec_module(module)
    return module


# --- the step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [1, 2, 64])
def test_each_photos_gradient_is_clipped_whatever_fits_into_memory(
    in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, twin = small(), small()
    weights = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr(private, "_BYTES", in_memory * weights)
    step = private.DpStep(model, plain_recipe(lr=0.1), replace(CLIPPED, rate=1.0), 0)
    x, y = photos(6)
    for batch in step.batches(range(1), 6):
        assert len(batch) <= in_memory
        step(x[batch], y[batch])
    total = torch.zeros_like(flat(twin))
    for i in range(6):
        twin.zero_grad()
        nn.functional.cross_entropy(twin(x[i : i + 1]), y[i : i + 1]).backward()
        gradient = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
        total += gradient * min(1.0, 0.5 / float(gradient.norm()))
    assert torch.allclose(flat(model), flat(twin) - 0.1 * total / 3.0, atol=1e-6)


def test_without_clipping_and_noise_it_is_the_plain_step_on_all_photos() -> None:
    recipe = plain_recipe(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, proximal_mu=0.5)
    model, twin = small(), small()
    start = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    step = private.DpStep(model, recipe, DpSgd(1e6, 0.0, 1.0, 6.0), 0, start)
    plain = PlainStep(twin, recipe, start)
    x, y = photos(6)
    for number in range(3):
        for batch in step.batches(range(number, number + 1), 6):
            loss = step(x[batch], y[batch])
        assert float(loss) == pytest.approx(float(plain(x, y)), rel=1e-5)
    assert torch.allclose(flat(model), flat(twin), atol=1e-6)


def test_an_empty_batch_takes_a_step_of_noise_alone() -> None:
    model = small()
    before = flat(model)
    dp = DpSgd(clip=2.0, noise=3.0, rate=1e-12, expected=4.0)
    step = private.DpStep(model, plain_recipe(lr=1.0), dp, 0)
    moved = []
    for batch in step.batches(range(200), 5):
        assert len(batch) == 0
        assert float(step(torch.zeros(0, 3, 2, 2), batch)) == 0
        moved.append(flat(model) - before)
        before = flat(model)
    noise = torch.stack(moved)
    assert float(noise.std()) == pytest.approx(2.0 * 3.0 / 4.0, rel=0.02)
    assert abs(float(noise.mean())) < 0.05


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 300), rate=st.floats(0.001, 1.0), seed=st.integers(0, 2**60))
def test_every_step_draws_each_photo_by_itself(n: int, rate: float, seed: int) -> None:
    step = private.DpStep(small(), plain_recipe(), replace(CLIPPED, rate=rate), seed)
    pieces = [batch.tolist() for batch in step.batches(range(20), n)]
    assert [batch.tolist() for batch in step.batches(range(20), n)] == pieces  # one seed
    assert all(sorted({*piece}) == piece for piece in pieces)
    assert all(0 <= i < n for piece in pieces for i in piece)
    if rate == 1.0:
        assert Counter(i for piece in pieces for i in piece) == dict.fromkeys(range(n), 20)
    drawn = sum(map(len, pieces))
    assert abs(drawn - 20 * n * rate) <= 6 * math.sqrt(20 * n * rate * (1 - rate)) + 6


def test_sizes_of_batches_are_binomial_and_photos_independent() -> None:
    step = private.DpStep(small(), plain_recipe(), replace(CLIPPED, rate=0.1), 7)
    taken = np.zeros((4000, 10))
    for number in range(4000):
        for batch in step.batches(range(number, number + 1), 10):
            taken[number, batch] = 1
    sizes = taken.sum(1)
    assert sizes.min() == 0 and sizes.max() > 3  # a shuffled loader has neither
    assert sizes.var() == pytest.approx(10 * 0.1 * 0.9, rel=0.1)
    apart = np.corrcoef(taken.T) - np.eye(10)
    assert np.abs(apart).max() < 5 / math.sqrt(4000)


def test_training_is_one_result_and_goes_on_after_any_epoch(auditing: ModuleType) -> None:
    images = auditing.canaries(12, 3, 0)
    recipe = plain_recipe(epochs=3, batch_size=2, lr=0.1, momentum=0.9)
    dp = DpSgd(1.0, 1.0, 1 / 6, 2.0)

    def new() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * auditing.SIDE**2, 3))

    whole, again, halves = new(), new(), new()
    kept: list[Any] = []

    def keep(done: Any, step: Any) -> None:
        kept.append((done, {n: t.clone() for n, t in step.state().items()}))

    done = train(whole, images, recipe, 5, dp=dp, after_epoch=keep)
    train(again, images, recipe, 5, dp=dp)
    assert torch.equal(flat(whole), flat(again))
    assert [epoch.steps for epoch in done] == [6, 6, 6]  # set beforehand
    first = replace(recipe, epochs=1)
    train(halves, images, first, 5, dp=dp)
    train(halves, images, recipe, 5, dp=dp, done=kept[0][0], optimizer_state=kept[0][1])
    assert torch.equal(flat(whole), flat(halves))
    train(again, images, recipe, 6, dp=dp)
    assert not torch.equal(flat(whole), flat(again))
    assert not any(m._forward_hooks or m._backward_hooks for m in whole.modules())


def test_only_with_dp_it_is_in_the_key(auditing: ModuleType) -> None:
    ((task, _),) = plain_tasks([3], 1, "start")
    images = auditing.canaries(4, 2, 0)
    object.__setattr__(images, "digest", "d")
    private_task = replace(task, dp=CLIPPED)
    keys = [task.key(images), private_task.key(images)]
    keys.append(replace(task, dp=replace(CLIPPED, noise=1.0)).key(images))
    assert len({*keys}) == 3
    assert Task.from_json(private_task.to_json()) == private_task
    old = {k: v for k, v in json.loads(task.to_json()).items() if k != "dp"}
    assert Task.from_json(json.dumps(old)).key(images) == keys[0]


# --- what it promises ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"), [(1.0, 0.02, 500, 1e-4), (2.0, 0.3, 40, 1e-5)]
)
def test_the_accountant_agrees_with_opacus(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    from opacus.accountants import RDPAccountant

    other = RDPAccountant()
    other.history = [(noise, rate, steps)]
    by_opacus = other.get_epsilon(delta)
    found = spent(noise, rate, steps, delta)
    assert 0.7 * by_opacus < found <= by_opacus + 1e-9
    assert renyi(noise, rate, steps, delta) == pytest.approx(by_opacus, rel=0.1)
    assert spent(noise, rate, 2 * steps, delta) > found  # over more rounds


def test_of_full_steps_it_is_the_gaussian_mechanisms() -> None:
    exact, nearly = (spent(3.0, rate, 4, 1e-5) for rate in (1.0, 1 - 1e-9))
    assert nearly == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("epsilon", "rate"), [(1.0, 0.3), (3.0, 0.3), (8.0, 1.0), (0.1, 1.0)])
def test_noise_for_an_epsilon_is_just_enough(epsilon: float, rate: float) -> None:
    noise = noise_for(epsilon, rate, 40, 1e-4)
    assert 0.97 * epsilon < spent(noise, rate, 40, 1e-4) <= epsilon


@pytest.mark.parametrize("photos", [1, 9, 10, 99, 1000, 2003])
def test_delta_is_below_one_photo(photos: int) -> None:
    assert usual_delta(photos) < 1 / photos <= 10 * usual_delta(photos)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["privacy.noise=1"], "privacy.epsilon=8, privacy.noise=1.0: one follows from the other"),
        (["privacy.epsilon=null"], "privacy.epsilon=None, privacy.noise=None: one follows"),
        (["privacy.epsilon=0"], "privacy.epsilon=0: allowed is null or a number above 0 | inf"),
        (["privacy.epsilon=nan"], "privacy.epsilon=nan: allowed is"),
        (["privacy.clip=0"], "privacy.clip=0.0: allowed is a number above 0"),
        (["strategy.beta=auto"], "strategy.beta=auto: chooses on held-out photos"),
        (["strategy.rules=[scale]"], "strategy.scale.g=auto: chooses on held-out photos"),
        (["mode=merge", "merge.rules=[soup]"], "merge.rules=['soup']: chooses on held-out"),
        (["mode=centralized", "privacy.centralized=false"], "nothing would be private"),
        (["mode=merge", "privacy.measure=true"], "privacy.measure=true: not in mode=merge"),
        *[
            ([f"strategy.rules=[{rule}]"], f"strategy.rules: {rule} merges by what clients work")
            for rule in ("fisher", "regmean", "ridge", "lda", "class_means", "means_lda")
        ],
    ],
)
def test_refused_before_anything_starts(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load(compose_config(["privacy=dp", *overrides]))


def test_not_where_the_server_gives_sites_their_seed() -> None:
    raw = configuration({"overrides": "privacy=dp", "home": ""}, simulated=False)
    with pytest.raises(UserError, match="privacy=dp: not in a real federation"):
        load(raw)


@pytest.mark.slow
def test_every_other_rule_is_allowed() -> None:
    from fedcats.merging.registry import RULES

    refused = {"fisher", "regmean", "ridge", "lda", "class_means", "means_lda"}
    for rule in {*RULES} - refused:
        decided = [f"strategy.rules=[{rule}]", "strategy.malicious=1", "strategy.scale.g=1"]
        load(compose_config(["privacy=dp", *decided]))


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fedcats\[privacy\]'"):
        load(compose_config(["privacy=dp"]))
    load(compose_config([]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.name=resnet18"], "resnet18 has no gradient of each photo by itself: bn1"),
        (["privacy.unit=client"], r"of 2 clients' 723,\d+ weights is \d+ times as long"),
        (["privacy.delta=0.5"], "privacy.delta=0.5: with 16 photos"),
    ],
)
def test_refused_before_training(run: Any, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run("runner=local", "privacy=dp", *overrides)


def test_noise_that_hides_a_client_is_longer_than_an_update() -> None:
    assert client_noise(8.0, 0.01, 10, 57_012_034) > 100
    assert client_noise(8.0, 0.01, 10_000, 1026) < 0.01


# --- a run --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_says_what_it_promises(run: Any) -> None:
    options = ["runner=local", "privacy=dp", "privacy.epsilon=null", "privacy.noise=2", "rounds=2"]
    options += ["train.epochs=1", "model.trainable=head", "privacy.measure=true"]
    options += ["strategy.rules=[fedavg]"]
    results, folder = run(*options)
    found = results["dp"]
    assert [one["steps"] for one in found["clients"]] == [4, 4]  # of both rounds
    assert found["delta"] == 0.01 and found["clients"][0]["rate"] == 0.5
    assert found["epsilon"] == spent(2.0, 0.5, 4, 0.01)
    assert found["centralized"]["centralized"]["steps"] == 8
    page = (folder / "report.html").read_text()
    assert "What is promised" in page and f"at most {found['epsilon']:.2f}" in page
    assert results["privacy"]["models"]["fedavg"]
    plain, _ = run(
        *options[:2], "privacy.epsilon=inf", "mode=federated", "train.epochs=1", folder="inf"
    )
    assert plain["config"]["privacy"]["epsilon"] == "inf" and plain["dp"]["epsilon"] is None
    assert plain["dp"]["centralized"] == {} and not plain["store"]["reused"]


def promised(epsilon: float | None, **changes: Any) -> Any:
    one = {"photos": 198, "rate": 0.1, "steps": 40, "noise": 1.0, "epsilon": epsilon}
    dp = {
        "unit": "one photo", "neighbours": "with or without", "delta": 1e-4, "clip": 1.0,
        "accountant": "a", "epsilon": epsilon, "clients": [one, one],
        "centralized": {"centralized": one},
    }  # fmt: skip
    config = {"rounds": 1, "strategy": {"rules": ["fedavg"]}}
    return {
        "dp": dp | changes, "config": config,
        "data": {"source": "folder", "in_several_shards": []}, "models": {"centralized": {}},
    }  # fmt: skip


def test_words_follow_from_the_numbers() -> None:
    said = " ".join(words.sentences(promised(1.0)))
    assert "at most 1.00 at delta 0.0001" in said and "above 2.7% at 1% false alarms" in said
    assert "alone does not keep an attack" in words.sentences(promised(8.0))[0]
    assert "promise nothing" in words.sentences(promised(None))[0]
    without = promised(1.0, centralized={})
    assert "price of privacy" in " ".join(words.sentences(without))
    without["models"] = {}  # mode=federated
    assert "price of privacy" not in " ".join(words.sentences(without))
    alone = words.sentences(promised(1.0, clients=[]))
    assert "merging" not in " ".join(alone) and len(alone) == 2
    several = promised(1.0)
    several["config"] = {"rounds": 3, "strategy": {"rules": ["fedavg", "polyak"]}}
    several["data"]["in_several_shards"] = [[{}, {}]]
    said = " ".join(words.sentences(several))
    assert "in all 3 rounds" in said and "the same noise" in said and "add up" in said
    table = words.promise(promised(1.0))
    assert table is not None and table.rows[0][0] == "2 clients"
    assert words.sentences({"data": {}}) == [] and words.promise({}) is None  # type: ignore[arg-type,typeddict-item]


def point(model: str, epsilon: float, accuracy: float, **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(("accuracy", "precision", "recall", "f1", "loss"), accuracy)
    return {"model": model, "privacy.epsilon": epsilon, "n": 100, **scores, **more}


def test_figure_over_epsilon() -> None:
    attacked = {"auc": 0.6, "auc_low": 0.55, "auc_high": 0.65}
    values = (1, 2, 4, 8, math.inf)
    rows = [point(m, e, 0.6, **attacked) for m in ("fedavg", "centralized") for e in values]
    figure = over_epsilon(rows)
    assert figure is not None and len(figure.axes) == 2
    ticks = figure.axes[1].get_xticks().tolist()
    assert [one.get_text() for one in figure.axes[1].get_xticklabels()] == list("1248∞")
    assert ticks == sorted(ticks) and all(math.isfinite(one) for one in ticks)
    assert over_epsilon([point("fedavg", e, 0.6) for e in (1, math.inf)]) is not None
    assert over_epsilon([point("fedavg", 1, 0.6)]) is None
    assert over_epsilon([{**rows[0], "privacy.epsilon": None}]) is None
    assert over_epsilon([*rows, *({**row, "seed": 1} for row in rows)]) is not None


# --- an audit -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lower_bound_from_one_run_stays_below_epsilon(auditing: ModuleType) -> None:
    noise = noise_for(2.0, auditing.RATE, auditing.STEPS, auditing.DELTA)
    for seed in range(5):
        bound, _, _ = auditing.audit(seed, noise, 400)
        open_bound, _, _ = auditing.audit(seed, 0.0, 400)
        assert bound <= 2.0 < open_bound  # without noise the same audit would find out


def test_the_bound_of_the_audit(auditing: ModuleType) -> None:
    """With delta 0 it is the binomial test of randomized response, by hand."""
    assert auditing.p_value(100, 20, 20, 0.0, 0.0) == pytest.approx(0.5**20)
    share = 0.05 ** (1 / 100)
    assert auditing.lower_bound(100, 100, 100, 0.0, 0.05) == pytest.approx(
        math.log(share / (1 - share)), abs=2e-3
    )
    assert auditing.lower_bound(100, 100, 50, 1e-5, 0.05) == 0
