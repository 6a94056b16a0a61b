"""What differential privacy promises, in words and a table: ``privacy=dp``."""

from __future__ import annotations

import math

from fedcats.report import view
from fedcats.report.tables import EMPTY, Table
from fedcats.results import Results
from fedcats.results.privacy import DifferentialPrivacy, PrivateTraining

_FALSE_ALARMS = 0.01


def sentences(results: Results) -> list[str]:
    """What is promised to whom, what has no part in it, and what the baseline promises."""
    if (found := results.get("dp")) is None:
        return []
    what = view.things(results)
    one = what.removesuffix("s")
    said = [*_of_clients(results, found, one), *_of_baseline(results, found)]
    if any(training["epsilon"] is not None for training in _trainings(found)):
        said.append(
            "Epsilon holds against whoever does not know the seed, from which the noise is drawn: "
            "it is in results.json. It is of weights. Losses in training, and whatever else this "
            f"report works out from training {what}, have no noise."
        )
    return said


def promise(results: Results) -> Table | None:
    """Each training's noise and its epsilon; alike clients in one row."""
    if (found := results.get("dp")) is None:
        return None
    alike: dict[str, list[int]] = {}
    for client, training in enumerate(found["clients"]):
        alike.setdefault(repr(training), []).append(client)
    rows = []
    for clients in alike.values():
        names = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients)} clients"
        rows.append((names, *_row(found["clients"][clients[0]])))
    rows += [(view.TITLES[name], *_row(one)) for name, one in found["centralized"].items()]
    what = view.things(results)
    note = (
        f"Each {what.removesuffix('s')} is in a step by a coin of its own. Noise: standard "
        f"deviation in multiples of the clip, {found['clip']:g}. Epsilon at delta "
        f"{found['delta']:g}, of all steps together; counted by {found['accountant']}. Unit: "
        f"{found['unit']}; neighbours: {found['neighbours']}."
    )
    header = ("who", what, "in a step", "steps", "noise", "epsilon")
    return Table("What is promised", header, rows, note=note)


def _trainings(found: DifferentialPrivacy) -> list[PrivateTraining]:
    return [*found["clients"], *found["centralized"].values()]


def _row(one: PrivateTraining) -> tuple[str, ...]:
    epsilon = EMPTY if one["epsilon"] is None else _at_most(one["epsilon"])
    expected = one["rate"] * one["photos"]
    return (str(one["photos"]), f"{expected:g}", str(one["steps"]), f"{one['noise']:g}", epsilon)


def _at_most(epsilon: float) -> str:
    """Rounded up: a bound that is rounded down is none."""
    return f"{math.ceil(100 * epsilon - 1e-9) / 100:.2f}"


def _of_clients(results: Results, found: DifferentialPrivacy, one: str) -> list[str]:
    if not found["clients"]:
        return []
    epsilon, delta, rounds = found["epsilon"], found["delta"], results["config"]["rounds"]
    if epsilon is None:
        return [
            f"Each {one}'s gradient was clipped, but without noise: the clients' updates promise "
            "nothing."
        ]
    over = f" in all {rounds} rounds" if rounds > 1 else ""
    text = (
        f"What a client sends{over}, and so each merged model, is differentially private: with or "
        f"without one of its {one}s, epsilon is at most {_at_most(epsilon)} at delta {delta:g}. "
    )
    most = math.exp(min(epsilon, 700)) * _FALSE_ALARMS + delta
    if most < 1:
        text += f"No attack finds a {one} with a probability above {100 * most:.1f}% at "
    else:
        text += f"So large an epsilon alone does not keep an attack from finding a {one} at "
    said = [f"{text}{100 * _FALSE_ALARMS:g}% false alarms."]
    if rounds > 1 and len(results["config"]["strategy"]["rules"]) > 1:
        said.append(
            "That is of one rule's rounds. Several rules' have the same noise, so whoever sees two "
            "of them can take part of it away."
        )
    if shared := results["data"]["in_several_shards"]:
        said.append(
            f"In several shards: {len(shared)} {one}{'s' * (len(shared) > 1)}, for which the "
            "clients' epsilons add up."
        )
    return said


def _of_baseline(results: Results, found: DifferentialPrivacy) -> list[str]:
    if (one := found["centralized"].get("centralized")) is None:
        if "centralized" not in results["models"]:
            return []
        return [
            "What is trained in one place has neither clipping nor noise: the gap between merged "
            "and centralized has the price of privacy in it."
        ]
    if one["epsilon"] is None:
        return ["What is trained in one place was clipped without noise, too."]
    text = (
        "The centralized model is trained by the same method, and promises epsilon "
        f"{_at_most(one['epsilon'])} by itself, against whoever sees that model"
    )
    if found["clients"] and not math.isclose(one["epsilon"], found["epsilon"] or 0, rel_tol=0.05):
        text += (
            ", not what the clients' updates promise; so the gap to it has a price of privacy in it"
        )
    elif found["clients"]:
        text += (
            "; so the gap to it is what merging costs at a like promise, not what privacy costs: "
            "for that compare with a run with privacy=none"
        )
    return [f"{text}."]
