"""``privacy=measure``: what each model of a run gives away of its training photos.

Nothing is trained for it: each client's model was trained without the other clients' photos, and so
is a shadow model for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedcats.experiment.evaluate import candidates
from fedcats.experiment.predictions import Predictor
from fedcats.experiment.train import Trained
from fedcats.metrics.membership import (
    ATTACKS,
    CONFIDENCE,
    LEAST_SHADOWS,
    RATES,
    Interval,
    Mask,
    Measured,
    Numbers,
    Trial,
    auc_difference,
    auc_interval,
    leave_out,
    log_odds,
    resamples,
    tpr_interval,
)
from fedcats.report import Progress
from fedcats.report.estimate import LAST, Work
from fedcats.results import Results
from fedcats.results.names import client_of, is_merged, is_submodel
from fedcats.results.privacy import AttackScores, Estimate, Membership, Privacy
from fedcats.seeding import derive_seed
from fedcats.text import write_csv

_TEST = "test on the training images"


@dataclass(frozen=True)
class Attacked:
    """A model under attack.

    Attributes
    ----------
    member
        (n,), which photos it was trained on: training photos, then test photos.
    usable
        (n,), for which there are as many shadow models as there should be.
    shadows
        How many; 0: too few clients, and only the loss is there.
    scores
        By attack, (n,).
    """

    member: Mask
    usable: Mask
    shadows: int
    scores: dict[str, Numbers]


def measure_privacy(
    predictor: Predictor, trained: Trained, results: Results, progress: Progress
) -> None:
    """Attack every scored model that anybody gets; say under ``privacy`` what came of it."""
    inputs = predictor.inputs
    train, test = inputs.dataset.train, inputs.dataset.test
    models = {
        name: one
        for name, one in candidates(predictor, trained).items()
        # Of the model with fewer steps, which nobody gets, not all photos are members.
        if name in results["models"] and name != "same_steps"
    }
    work = Work(len(train) / 3 / inputs.workers, len(models), LAST, 1)
    progress.expect({_TEST: work})

    def done(count: int) -> None:
        state = "testing" if count < len(models) else "done"
        progress.update(_TEST, count, len(models), None, state)

    predicted = predictor.predict([*models.values()], [train, test], done)
    labels = np.concatenate([train.labels, test.labels])
    phi = {
        name: log_odds(labels, np.concatenate(both))
        for name, both in zip(models, predicted, strict=True)
    }
    members = _members(predictor, trained, list(models))
    draw = np.random.default_rng(derive_seed(inputs.config.draws.own, "shadows"))
    attacked = _attack(phi, members, draw.random((len(inputs.shards), len(labels))))
    draw = np.random.default_rng(derive_seed(inputs.config.draws.own, "membership"))
    results["privacy"] = _judge(attacked, resamples([len(train), len(test)], draw))
    if inputs.config.privacy.exposed:
        _write_exposed(predictor, attacked, inputs.config.privacy.exposed)


def _members(predictor: Predictor, trained: Trained, models: Sequence[str]) -> dict[str, Mask]:
    """Which photos each model was trained on; a copy under another name is the same photo."""
    inputs = predictor.inputs
    train, test = inputs.dataset.train, inputs.dataset.test
    digests = np.array([*train.digests, *test.digests])

    def of(positions: np.ndarray) -> Mask:
        return np.isin(digests, digests[positions])

    found = {}
    for name in models:
        if name == "centralized":
            found[name] = of(inputs.baseline)
        elif (client := _client(name)) is not None:
            found[name] = of(inputs.shards[client])
        else:
            who = sorted({client for merged in trained.earlier for client in merged[name].clients})
            found[name] = of(np.concatenate([inputs.shards[client] for client in who]))
    return found


def _attack(
    phi: Mapping[str, Numbers], members: Mapping[str, Mask], lots: Numbers
) -> dict[str, Attacked]:
    """Every attack on every model; the clients' models, of which ``lots`` are, are the shadows."""
    own = {name: client for name in phi if (client := _client(name)) is not None}
    attacked = {}
    for name, mine in phi.items():
        others = [one for one in own if one != name]
        # Of a photo of another client one fewer did not train on it than of all the others.
        count = len(others) - 1
        shadows, usable, attacks = np.zeros((0, len(mine))), np.ones(len(mine), dtype=bool), ATTACKS
        if count >= LEAST_SHADOWS:
            eligible = ~np.stack([members[one] for one in others])
            chosen, usable = leave_out(eligible, count, lots[[own[one] for one in others]])
            shadows = np.take_along_axis(np.stack([phi[one] for one in others]), chosen, axis=0)
        else:
            attacks = {"loss": ATTACKS["loss"]}
        scores = {attack: np.full(len(mine), np.nan) for attack in attacks}
        if usable.any():
            for attack, score in attacks.items():
                scores[attack][usable] = score(mine[usable], shadows[:, usable])
        attacked[name] = Attacked(members[name], usable, len(shadows), scores)
    return attacked


def _client(model: str) -> int | None:
    """Whose own model it is."""
    return client_of(model) if is_submodel(model) else None


def _judge(attacked: Mapping[str, Attacked], weights: np.ndarray) -> Privacy:
    found: Privacy = {"confidence": CONFIDENCE, "models": {}, "hidden": {}}
    everyone = np.ones(weights.shape[1], dtype=bool)
    for name, one in attacked.items():
        if said := _membership([one], everyone, weights):
            found["models"][name] = said
    own = [one for name, one in attacked.items() if is_submodel(name)]
    if said := _membership(own, everyone, weights):
        found["clients"] = said
    for name, one in attacked.items():
        if not is_merged(name) or len(own) < 2:
            continue
        nobody = ~(one.member | np.any([client.member for client in own], axis=0))
        hidden = {}
        for attack in own[0].scores:
            against = [_trial(which, attack, nobody) for which in (own, [one])]
            if all(against):
                pair = (Measured(trial, weights) for trial in against if trial)
                hidden[attack] = _estimate(auc_difference(*pair))
        found["hidden"][name] = hidden
    return found


def _trial(models: Sequence[Attacked], attack: str, nonmembers: Mask) -> Trial | None:
    """All pairs of these models with a photo of theirs, or with one of ``nonmembers``.

    None where there is no member or no non-member.
    """
    pairs = [np.flatnonzero(one.usable & (one.member | nonmembers)) for one in models]
    if not pairs:
        return None
    member = np.concatenate([m.member[i] for m, i in zip(models, pairs, strict=True)])
    if member.all() or not member.any():
        return None
    score = np.concatenate([m.scores[attack][i] for m, i in zip(models, pairs, strict=True)])
    return Trial(score, member, np.concatenate(pairs))


def _membership(
    models: Sequence[Attacked], nonmembers: Mask, weights: np.ndarray
) -> Membership | None:
    attacks: dict[str, AttackScores] = {}
    members = others = 0
    for attack in models[0].scores if models else ():
        trial = _trial(models, attack, nonmembers)
        if trial is None:
            return None
        measured = Measured(trial, weights)
        members, others = measured.members, measured.nonmembers
        rates = {rate: tpr_interval(measured, rate) for rate in RATES}
        attacks[attack] = {
            "auc": _estimate(auc_interval(measured)),
            "tpr": {f"{r:g}": None if one is None else _estimate(one) for r, one in rates.items()},
            "roc": measured.roc(),
        }
    if not attacks:
        return None
    return {
        "members": members,
        "nonmembers": others,
        "shadows": models[0].shadows,
        "left_out": sum(int((~one.usable).sum()) for one in models),
        "attacks": attacks,
    }


def _estimate(found: Interval) -> Estimate:
    value, low, high = found
    return {"value": value, "low": low, "high": high}


def _write_exposed(predictor: Predictor, attacked: Mapping[str, Attacked], count: int) -> None:
    """The training photos that their client's update gives away most: a list and a sheet.

    Local: neither is part of the report, which may be sent to somebody.
    """
    from fedcats.data.sheet import contact_sheet

    inputs = predictor.inputs
    train = inputs.dataset.train
    found = []
    for name, one in attacked.items():
        if (client := _client(name)) is not None:
            scores = one.scores.get("lira", one.scores["loss"])
            found += [(float(scores[i]), int(i), client) for i in inputs.shards[client]]
    ranked = sorted((one for one in found if np.isfinite(one[0])), reverse=True)[:count]
    rows: list[Sequence[object]] = [("rank", "client", "file", "label", "score")]
    for rank, (score, i, client) in enumerate(ranked, 1):
        label = inputs.dataset.classes[train.labels[i]]
        rows.append((rank, client, train.files[i], label, f"{score:.6g}"))
    write_csv(inputs.folder / "exposed.csv", rows)
    contact_sheet(train, [i for _, i, _ in ranked]).save(inputs.folder / "exposed.png")
