"""``mode=explain``: why merging works, or does not, from the stored sub-models; no training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fedcats.errors import RunError
from fedcats.experiment.evaluate import candidates
from fedcats.experiment.geometry import directions
from fedcats.experiment.own_photos import on_own_photos
from fedcats.experiment.predictions import Candidate, Parts, Predictor, Probabilities, finite
from fedcats.experiment.results import clock
from fedcats.experiment.thresholds import thresholds
from fedcats.merging.fold import effective_number, effective_weights
from fedcats.merging.many import Point
from fedcats.merging.mixture import Mixture, Stored, stored_models
from fedcats.merging.rules import Polyak
from fedcats.metrics import NOT_FINITE, paired_interval
from fedcats.metrics import explained as metrics
from fedcats.metrics.measures import MEASURES
from fedcats.report.estimate import LAST, Work
from fedcats.results.explained import (
    Explained,
    LastExplains,
    Line,
    Orders,
    Own,
    Shapley,
    Without,
)
from fedcats.results.names import submodel
from fedcats.seeding import derive_seed
from fedcats.training.fast import keep_freed_memory
from fedcats.training.update import put_weights, weights_key

if TYPE_CHECKING:
    from fedcats.experiment.train import Trained
    from fedcats.report import Progress

_AT_ONCE = 256e6  # bytes of probabilities that are in memory together


@dataclass(frozen=True)
class Answer:
    """What a model says of the test images: (n,) classes, and its mean cross entropy."""

    guess: NDArray[np.intp]
    loss: float


Answers = Mapping[Mixture, Answer]


@dataclass(frozen=True)
class _Models:
    """The run's models as mixtures; ``start`` is what the clients started from."""

    own: Mapping[int, Mixture]
    merged: Mapping[str, Mixture]
    centralized: Mixture | None
    start: Mixture

    @property
    def named(self) -> dict[str, Mixture]:
        one = {} if self.centralized is None else {"centralized": self.centralized}
        own = {submodel(client): mixture for client, mixture in self.own.items()}
        return {**own, **self.merged, **one}


def explain(predictor: Predictor, trained: Trained, start: str, progress: Progress) -> Explained:
    """Explain the merges of a run that is trained and tested.

    Parameters
    ----------
    start
        Digest of the weights that the clients started from.

    Returns
    -------
    dict
        `fedcats.results.explained.Explained`. All merges that it takes are tested on the test
        images and kept in the store, so that what was interrupted goes on where it stopped.

    Raises
    ------
    RunError
        When a model has no finite answers.
    """
    inputs, settings = predictor.inputs, predictor.inputs.config.explain
    labels, seconds = inputs.dataset.test.labels, dict[str, float]()
    models, order = _models(predictor, trained, start), _order(predictor, trained)
    quick = Predictor(inputs, predictor.store, _precision(predictor))
    clients = sorted(models.own)
    draw = random.Random(_seed(predictor, "clients"))
    some = sorted(draw.sample(clients, min(settings.clients, len(clients))))
    orders = metrics.draw_orders(clients, settings.orders, _seed(predictor, "orders"))
    points = [i / (settings.points - 1) for i in range(settings.points)] if settings.points else []
    polyaks = _polyaks(predictor, trained) if orders else []
    wholes = [name for name in models.merged if not trained.rules[name].is_last]  # no heads
    pairs = _pairs(models, some, wholes[:1]) if points else []
    without = _without(predictor, trained, models)
    game = _Game.of(predictor, models)
    mixtures = dict.fromkeys(
        [
            *models.named.values(),
            *(_merge(models, rule, one) for rule in polyaks for one in [order, *orders]),
            *([Mixture.mean([_key(models, c) for c in clients])] if orders else []),
            *(models.named[a].towards(models.named[b], t) for a, b in pairs for t in points),
            *(one for rest in without.values() for one in rest.values()),
            *game.mixtures.values(),
        ]
    )
    with clock(seconds, "tests"):
        answers = _test(quick, list(mixtures), progress)
    with clock(seconds, "updates"):
        keys = [_key(models, client) for client in some]
        layers, cosines = directions(
            predictor.store, keys, weights_key(start), inputs.trained_names
        )
    with clock(seconds, "own"):
        final = candidates(predictor, trained)
        own = _own(predictor, quick, final)
    with clock(seconds, "thresholds"):
        sets = [inputs.dataset.test, *([inputs.validation] if len(inputs.held) else [])]
        predicted = dict(zip(final, predictor.predict([*final.values()], sets), strict=True))
        without_half = thresholds(predictor, predicted)
    accuracy = {one: float(np.mean(answers[one].guess == labels)) for one in mixtures}
    other = [
        float(np.mean(predicted[name][0].argmax(axis=1) != answers[one].guess))
        for name, one in models.named.items()
    ]
    return {
        "precision": quick.precision,
        "disagreement": max(other, default=0.0),
        "clients": some,
        "orders": [
            _spread(
                rule,
                orders,
                [accuracy[_merge(models, rule, one)] for one in orders],
                accuracy[_merge(models, rule, order)],
                accuracy[Mixture.mean([_key(models, c) for c in clients])],
            )
            for rule in polyaks
        ],
        "points": points,
        "lines": [_line(models, a, b, points, answers, accuracy) for a, b in pairs],
        "layers": layers,
        "cosines": cosines,
        "own": own,
        "without": {
            name: [
                _helps(client, answers[models.merged[name]], answers[rest], labels)
                for client, rest in found.items()
            ]
            for name, found in without.items()
        },
        "shapley": game.result(accuracy) if settings.coalitions else None,
        "thresholds": without_half,
        "seconds": seconds,
    }


def _models(predictor: Predictor, trained: Trained, start: str) -> _Models:
    """All as mixtures; a merge that is no fold is put into the store."""
    store, keys = predictor.store, trained.own().keys
    base = trained.updates.get("centralized")
    merged, added = {}, []
    for name, one in trained.merged.items():
        if one.steps:
            merged[name] = Mixture.of_fold(one.keys, one.steps, weights_key(start))
        else:
            added.append(weights_key(put_weights(store, one.state)))
            merged[name] = Mixture.of([(added[-1], 1.0)])
    store.hold(added, "merged")
    for key in [*keys.values(), *([base.key] if base else [])]:
        if store.get(key) is None:  # reads and checks it; what follows reads mapped memory
            raise RunError(f"store {store.root}: a sub-model is gone; run the same again")
    return _Models(
        {client: Mixture.of([(key, 1.0)]) for client, key in sorted(keys.items())},
        merged,
        Mixture.of([(base.key, 1.0)]) if base else None,
        Mixture.of([(weights_key(start), 1.0)]),
    )


def _key(models: _Models, client: int) -> str:
    return models.own[client].shares[0][0]


def _seed(predictor: Predictor, what: str) -> int:
    return derive_seed(predictor.inputs.config.draws.own, "explain", what)


def _precision(predictor: Predictor) -> str:
    """``auto``: bfloat16 where the processor multiplies such numbers, four times as fast."""
    wanted = predictor.inputs.config.explain.precision
    if wanted != "auto":
        return wanted
    able = getattr(torch.cpu, "get_capabilities", dict[str, bool])().get("amx_bf16", False)
    return "bfloat16" if able and predictor.inputs.device == "cpu" else "float32"


def _test(predictor: Predictor, mixtures: Sequence[Mixture], progress: Progress) -> Answers:
    """Test each on the test images; of a few at a time the probabilities are in memory."""
    test, total = predictor.inputs.dataset.test, len(mixtures)
    name = f"test {total} mixtures"
    progress.expect({name: Work(len(test) / 3 / predictor.inputs.workers, total, LAST, 1)})
    keep_freed_memory(32)  # MB: what the first layers give for a batch, and glibc's most
    found: dict[Mixture, Answer] = {}
    step = max(64, int(_AT_ONCE // (4 * len(test) * len(predictor.inputs.dataset.classes))))
    with stored_models(predictor.store) as stored:
        for start in range(0, total, step):
            some = mixtures[start : start + step]

            def tested(count: int, start: int = start) -> None:
                progress.update(name, start + count, total, None, "testing")

            made = [_candidate(one, stored, predictor.dtype) for one in some]
            for one, (p,) in zip(some, predictor.predict(made, [test], tested), strict=True):
                if not finite([p]):
                    raise RunError(f"mode=explain: of a mixture of sub-models {NOT_FINITE}")
                loss = MEASURES["log_loss"](test.labels, p, np.ones(len(test))).value
                found[one] = Answer(p.argmax(axis=1), loss)
    progress.update(name, total, total, None, "done")
    return found


def _candidate(mixture: Mixture, stored: Stored, dtype: torch.dtype) -> Candidate:
    keys = tuple(key for key, _ in mixture.shares)
    shares = " ".join(repr(share) for _, share in mixture.shares)
    if shares == "1.0":  # a model as it is stored, perhaps a head, which is float32
        return Candidate(Parts(keys), lambda: dict(stored(keys[0])))
    return Candidate(Parts(keys, (), f"sum of {shares}"), lambda: mixture.state(stored, dtype))


# --- orders -----------------------------------------------------------------------------------


def _order(predictor: Predictor, trained: Trained) -> list[int]:
    """The run's own order of the merge."""
    there = trained.own().keys
    return [client for client in predictor.inputs.plan.order if client in there]


def _polyaks(predictor: Predictor, trained: Trained) -> list[Polyak]:
    config = predictor.inputs.config
    rule = cast(Polyak, trained.rules.get("polyak", config.available["polyak"]))
    betas = config.explain.betas or [rule.beta]
    return [cast(Polyak, one) for one in rule.choices(betas)]


def _merge(models: _Models, rule: Polyak, order: Sequence[int]) -> Mixture:
    keys = [_key(models, client) for client in order]
    steps = Point(rule, "", tuple(order)).steps(dict.fromkeys(order, 1))
    return Mixture.of_fold(keys, steps, models.start.shares[0][0])


def _spread(
    rule: Polyak,
    orders: Sequence[Sequence[int]],
    found: list[float],
    reported: float,
    plain: float,
) -> Orders:
    steps = [rule.step(i, 1, i) for i in range(1, len(orders[0]) + 1)]
    shares = effective_weights(steps)
    values = np.array(found)
    below = float(np.mean(values < reported) + np.mean(values == reported) / 2)
    by_last = [metrics.explained_by_last(orders, found, count) for count in metrics.LASTS]
    return {
        "beta": rule.beta,
        "n_eff": effective_number([*shares, 1 - sum(shares)]),
        "every": len(orders) == math.factorial(len(orders[0])),
        "accuracies": found,
        "last": [order[-1] for order in orders],
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(found) > 1 else 0.0,
        "worst": float(values.min()),
        "best": float(values.max()),
        "reported": reported,
        "below": below,
        "plain_mean": plain,
        "explained": cast(
            LastExplains, dict(zip(("last", "last_two", "last_three"), by_last, strict=True))
        ),
    }


# --- lines ------------------------------------------------------------------------------------


def _pairs(models: _Models, clients: Sequence[int], merged: Sequence[str]) -> list[tuple[str, str]]:
    """Of all drawn sub-models, the first rule's merge and the centralized model."""
    names = [submodel(client) for client in clients]
    names += [*merged, *(["centralized"] if models.centralized else [])]
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def _line(
    models: _Models,
    first: str,
    second: str,
    points: Sequence[float],
    answers: Answers,
    accuracy: Mapping[Mixture, float],
) -> Line:
    along = [models.named[first].towards(models.named[second], t) for t in points]
    loss, right = [answers[one].loss for one in along], [accuracy[one] for one in along]
    return {
        "first": first,
        "second": second,
        "loss": loss,
        "accuracy": right,
        "barrier": metrics.excess(loss, points),
        "drop": metrics.excess([-one for one in right], points),
    }


# --- clients ----------------------------------------------------------------------------------


def _own(predictor: Predictor, quick: Predictor, final: Mapping[str, Candidate]) -> list[Own]:
    """Every model on each client's photos, those trained on and those held out."""
    inputs = predictor.inputs
    validation = inputs.validation
    held = [[np.zeros((0, 1), dtype=np.float32)] * len(inputs.shards)] * len(final)
    if len(inputs.held):
        positions = [np.searchsorted(inputs.held, part) for part in inputs.parts]
        on_held = predictor.predict([*final.values()], [validation])
        held = [[one[at] for at in positions] for (one,) in on_held]
    labels = inputs.dataset.train.labels
    trained_on = [labels[shard] for shard in inputs.shards]
    held_out = [labels[part] for part in inputs.parts] or [labels[:0]] * len(inputs.shards)

    def by_class(found: Sequence[Probabilities], truth: Sequence[Any]) -> Iterator[Any]:
        for p, y in zip(found, truth, strict=True):
            right = p.argmax(axis=1) == y
            yield [_share(right[y == k]) for k in range(len(inputs.dataset.classes))]

    def whole(found: Sequence[Probabilities], truth: Sequence[Any]) -> list[float | None]:
        return [_share(p.argmax(axis=1) == y) for p, y in zip(found, truth, strict=True)]

    return [
        {
            "model": name,
            "trained": whole(mine, trained_on),
            "held_out": whole(rest, held_out),
            "trained_by_class": list(by_class(mine, trained_on)),
            "held_out_by_class": list(by_class(rest, held_out)),
        }
        for name, mine, rest in zip(
            final, on_own_photos(quick, [*final.values()]), held, strict=True
        )
    ]


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if len(right) else None


def _without(
    predictor: Predictor, trained: Trained, models: _Models
) -> dict[str, dict[int, Mixture]]:
    """Each merge that is a fold without each client, by rule and client."""
    examples, found = trained.own().examples, dict[str, dict[int, Mixture]]()
    for name, merged in trained.merged.items():
        rule = trained.rules[name]
        if not rule.is_fold or len(merged.clients) < 2:
            continue
        found[name] = {}
        for client in sorted(merged.clients):
            rest = [one for one in merged.clients if one != client]
            steps = Point(rule, "", tuple(rest)).steps(examples)
            keys = [_key(models, one) for one in rest]
            found[name][client] = Mixture.of_fold(keys, steps, models.start.shares[0][0])
    return found


def _helps(client: int, with_it: Answer, without: Answer, labels: NDArray[np.int64]) -> Without:
    here, there = with_it.guess == labels, without.guess == labels
    only = int(np.sum(here & ~there)), int(np.sum(there & ~here))
    low, high = paired_interval(*only, len(labels))
    difference = (only[0] - only[1]) / len(labels)
    return {"client": client, "difference": difference, "low": low, "high": high}


@dataclass(frozen=True)
class _Game:
    """Coalitions of clients, and the plain means that they are worth."""

    clients: list[int]
    orders: list[tuple[int, ...]]
    mixtures: dict[metrics.Coalition, Mixture]

    @classmethod
    def of(cls, predictor: Predictor, models: _Models) -> _Game:
        clients, most = sorted(models.own), predictor.inputs.config.explain.coalitions
        if not most:
            return cls(clients, [], {})
        orders = metrics.draw_pairs(clients, most, _seed(predictor, "coalitions"))
        met = metrics.coalitions(clients, orders)
        means = {one: Mixture.mean([_key(models, c) for c in sorted(one)]) for one in met}
        return cls(clients, orders, {frozenset(): models.start, **means})

    def result(self, accuracy: Mapping[Mixture, float]) -> Shapley:
        """The values, with the interval of their sampling: of t, over pairs of orders."""
        from scipy.stats import t

        value = {one: accuracy[mixture] for one, mixture in self.mixtures.items()}
        found = metrics.shapley(self.clients, value, self.orders)
        wide = float(t.ppf(0.975, found.pairs - 1)) if found.pairs else 0.0
        both = list(zip(found.values, found.errors, strict=True))
        return {
            "clients": self.clients,
            "values": found.values,
            "low": [one - wide * error for one, error in both],
            "high": [one + wide * error for one, error in both],
            "nobody": value[frozenset()],
            "everybody": value[frozenset(self.clients)],
            "coalitions": len(value) - 1,
            "exact": not found.pairs,
        }
