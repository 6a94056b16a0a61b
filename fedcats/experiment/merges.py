"""Grids of merges, and choosing among them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from fedcats.data import Images
from fedcats.errors import RunError
from fedcats.experiment.folders import file_stem
from fedcats.experiment.predictions import Candidate, Parts, Predictor, Probabilities, finite
from fedcats.experiment.stored import candidate, merge_stored
from fedcats.merging.many import Point, distinct_points, ensemble, greedy_soup, merge_points
from fedcats.merging.plan import Merged, merge_order
from fedcats.merging.rules import Rule, Uniform
from fedcats.metrics import NOT_FINITE, write_predictions
from fedcats.metrics.choice import rank
from fedcats.report.estimate import LAST, Work
from fedcats.results import GridRow, MergeGrid
from fedcats.tensors import State

if TYPE_CHECKING:
    from fedcats.report import Progress


@dataclass(frozen=True)
class SubModels:
    """The clients' own models of a round, as the store has them.

    Attributes
    ----------
    keys, examples, beside
        By client (one that failed is missing): key of the update, number of images that it was
        trained on, keys of what it worked out beside it (of all clients).
    """

    keys: Mapping[int, str]
    examples: Mapping[int, int]
    beside: Mapping[int, Mapping[str, str]]

    def parts(self, point: Point) -> Parts:
        """What the point's merge is the fold of."""
        keys, steps = [self.keys[client] for client in point.clients], point.steps(self.examples)
        if steps[0] != 1.0:
            raise RunError(f"{point.rule.name}: its first step is {steps[0]:g}; a grid needs 1")
        return Parts(tuple(keys), tuple(steps))


def test_points(
    predictor: Predictor,
    own: SubModels,
    points: Sequence[Point],
    sets: Sequence[Images],
    done: Callable[[int], None] = lambda _: None,
) -> list[list[Probabilities]]:
    """Predictions of every point's merge on each of ``sets``; merged and computed only if new.

    ``done`` is called with the number of points tested so far.
    """
    by_parts = {own.parts(point): point for point in points}
    states: dict[Parts, State] = {}

    def merge(group: Sequence[Parts]) -> None:
        states.clear()
        merged = _merge(predictor, own, [by_parts[parts] for parts in group])
        states.update(zip(group, merged, strict=True))

    parts = [own.parts(point) for point in points]
    candidates = [Candidate(one, functools.partial(states.__getitem__, one)) for one in parts]
    return predictor.predict(candidates, sets, done, merge)


def _merge(predictor: Predictor, own: SubModels, points: Sequence[Point]) -> list[State]:
    with predictor.pool() as pool:
        return merge_points(predictor.store, own.keys, own.examples, points, pool)


def choose(
    predictor: Predictor, own: SubModels, rule: Rule, server_round: Merged
) -> tuple[Rule, dict[str, float], Merged]:
    """What is ``auto``: the choice whose merge is best on the held-out training images.

    Parameters
    ----------
    rule
        Of which a parameter is undecided.
    server_round
        Who is merged, in order.

    Returns
    -------
    (rule, accuracies, merged)
        The one of its choices (``merge.betas``) with the highest accuracy there, of equal ones
        that with the lower loss; the accuracy of each; its merge.
    """
    this = predictor.inputs
    if not rule.is_fold:
        return _choose_step(predictor, own, rule, server_round)
    order = [("strategy.order", server_round.clients)]
    points = distinct_points(rule.choices(this.config.merge.betas), order)
    tested = [one for (one,) in test_points(predictor, own, points, [this.validation])]
    scored = [predictor.scores(this.validation, one) for one in tested]
    point = points[max(range(len(points)), key=lambda i: rank(scored[i]))]
    (state,) = _merge(predictor, own, [point])
    merged = replace(
        server_round,
        state=state,
        steps=list(own.parts(point).steps),
        chosen=f"β on {_held(predictor)}",
    )
    accuracies = {
        f"{p.rule.record['beta']:g}": s["accuracy"] for p, s in zip(points, scored, strict=True)
    }
    return point.rule, accuracies, merged


def _choose_step(
    predictor: Predictor, own: SubModels, rule: Rule, server_round: Merged
) -> tuple[Rule, dict[str, float], Merged]:
    """`choose` of a rule that is no fold."""
    validation = predictor.inputs.validation
    keys = {client: own.keys[client] for client in server_round.clients}
    merges = merge_stored(predictor, rule.choices(()), keys, own.examples, own.beside)
    candidates = [candidate([*keys.values()], one) for one in merges]
    scored = [
        predictor.scores(validation, one) for (one,) in predictor.predict(candidates, [validation])
    ]
    best = max(range(len(merges)), key=lambda i: rank(scored[i]))
    accuracies = {one.rule.label: s["accuracy"] for one, s in zip(merges, scored, strict=True)}
    merged = replace(
        server_round,
        state=merges[best].merge.state,
        rule=candidates[best].parts.rule,
        chosen=f"g on {_held(predictor)}",
    )
    return merges[best].rule, accuracies, merged


def _held(predictor: Predictor) -> str:
    return f"{len(predictor.inputs.validation):,} held-out training images"


def merge_grid(predictor: Predictor, own: SubModels, progress: Progress) -> MergeGrid:
    """``mode=merge``: all rules, betas and orders of the configuration from one training.

    Returns
    -------
    dict
        ``points`` (how many combinations were asked for) and ``rows``, one for each merge that
        differs: ``model``, ``strategy.beta``, ``strategy.order``, ``clients``, the scores on the
        test images, on the held-out ones under ``validation``, and the file of predictions.
        Rules that are no fold merge in the order of the partition.
    """
    this = predictor.inputs
    config = this.config.merge
    clients = sorted(own.keys)
    orders = []
    for order in config.orders:
        whole = merge_order(order, len(this.shards), this.config.draws.shards)
        orders.append((_name(order), [client for client in whole if client in own.keys]))
    singles = [Point(Uniform(), "", (client,)) for client in clients]
    held = len(this.validation) > 0
    sets = [this.dataset.test, *([this.validation] if held else [])]
    alone = test_points(predictor, own, singles, sets)
    for client, predicted in zip(clients, alone, strict=True):
        if not finite(predicted):
            raise RunError(f"client {client} cannot be merged: {NOT_FINITE}")
    points = distinct_points(this.config.grid, orders)
    name = f"test {len(points)} merges"
    progress.expect({name: Work(sum(map(len, sets)) / 3 / this.workers, len(points), LAST, 1)})
    tested = test_points(
        predictor,
        own,
        points,
        sets,
        lambda count: progress.update(name, count, len(points), None, "testing"),
    )
    progress.update(name, len(points), len(points), None, "done")
    rows = [
        _row(predictor, point.rule, point.order, list(point.clients), *predicted)
        for point, predicted in zip(points, tested, strict=True)
    ]
    rows += _others(predictor, own, clients, sets, progress)
    if {"best", "soup"} & set(config.rules):
        by_client = dict(zip(clients, alone, strict=True))
        ranks = {c: rank(predictor.scores(this.validation, one[1])) for c, one in by_client.items()}
        ranked = sorted(clients, key=lambda client: ranks[client], reverse=True)
        if "best" in config.rules:
            rows.append(_row(predictor, "best", None, ranked[:1], *by_client[ranked[0]]))
        if "soup" in config.rules:

            def score(chosen: Sequence[int]) -> tuple[float, float]:
                point = Point(Uniform(), "", tuple(chosen))
                ((on_validation,),) = test_points(predictor, own, [point], [this.validation])
                return rank(predictor.scores(this.validation, on_validation))

            chosen = greedy_soup(ranked, score)
            soup = Point(Uniform(), "", tuple(chosen))
            (predicted,) = test_points(predictor, own, [soup], sets)
            rows.append(_row(predictor, "soup", None, chosen, *predicted))
    if "ensemble" in config.rules:
        together = [ensemble([one[i] for one in alone]) for i in range(len(sets))]
        rows.append(_row(predictor, "ensemble", None, clients, *together))
    _say_chosen(predictor, rows)
    folds = [rule.name for rule in this.config.merged_by if rule.is_fold]
    others = sum(len(rule.choices(())) for rule in this.config.merged_by if not rule.is_fold)
    models = len(config.rules) - len(this.config.merged_by)
    count = len(folds) * len(config.betas) * len(orders) + others + models
    return {"points": count, "rows": rows}


def _others(
    predictor: Predictor,
    own: SubModels,
    clients: Sequence[int],
    sets: Sequence[Images],
    progress: Progress,
) -> list[GridRow]:
    """The rows of the rules that are no folds: a few at a time, each with all of its choices."""
    this = predictor.inputs
    rules = [rule for rule in this.config.merged_by if not rule.is_fold]
    keys = {client: own.keys[client] for client in clients}
    rows = []
    for done, rule in enumerate(rules):
        progress.update("other rules", done, len(rules), None, "merging")
        merges = merge_stored(predictor, rule.choices(()), keys, own.examples, own.beside)
        candidates = [candidate([*keys.values()], one) for one in merges]
        for one, predicted in zip(merges, predictor.predict(candidates, sets), strict=True):
            if not finite(predicted):
                raise RunError(f"{one.rule.label}: {NOT_FINITE}")
            rows.append(_row(predictor, one.rule, None, [*clients], *predicted))
            rows[-1]["bytes"] = one.up / len(clients)
            if one.merge.chosen:
                rows[-1]["chosen"] = one.merge.chosen
    if rules:
        progress.update("other rules", len(rules), len(rules), None, "done")
    return rows


def _say_chosen(predictor: Predictor, rows: Sequence[GridRow]) -> None:
    """Say of one row of each model that it is the choice, and where it was made.

    Not on the test images: of a model that is there with several settings the one that is best on
    the held-out images, without any that of the configuration.
    """
    strategy = predictor.inputs.config.strategy
    available = predictor.inputs.config.available
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        if "chosen" in own[0]:
            continue
        if len(own) == 1:
            what = "who is merged" if model == "soup" else "which one" if model == "best" else ""
            own[0]["chosen"] = f"{what} on {_held(predictor)}" if what else "nothing to choose"
        elif "validation" in own[0]:
            best = max(own, key=lambda row: rank(row["validation"]))
            best["chosen"] = f"among {len(own)} settings on {_held(predictor)}"
        else:
            order = _name(strategy.order)
            beta = available[model].record.get("beta")
            for row in own:
                if (row["strategy.beta"], row["strategy.order"]) == (beta, order):
                    row["chosen"] = "as configured"


def _row(
    predictor: Predictor,
    rule: Rule | str,
    order: str | None,
    clients: list[int],
    on_test: Probabilities,
    on_validation: Probabilities | None = None,
) -> GridRow:
    test, classes = predictor.inputs.dataset.test, predictor.inputs.dataset.classes
    model = rule if isinstance(rule, str) else rule.name
    beta = None if isinstance(rule, str) else rule.record.get("beta")
    step = None if isinstance(rule, str) else rule.record.get("settings", {}).get("g")
    words = [file_stem(model), "" if beta is None else f"beta{beta:g}", order]
    words += ["" if step is None else f"g{step:g}"]
    file = f"predictions/{'-'.join(filter(None, words))}.csv"
    path = predictor.inputs.folder / file
    write_predictions(path, test.files, test.labels, on_test, classes)
    scored = predictor.scores(test, on_test)
    named = {"model": model, "strategy.beta": beta, "strategy.order": order, "clients": clients}
    sha256 = hashlib.sha256(on_test.tobytes()).hexdigest()
    row = cast(GridRow, {**named, **scored, "predictions": file, "sha256": sha256})
    state = predictor.inputs.initial.state
    row["bytes"] = sum(state[name].nbytes for name in predictor.inputs.trained_names)
    if not isinstance(rule, str):
        row["title"] = rule.label
    if on_validation is not None:
        row["validation"] = predictor.validation_scores(on_validation)
    return row


def _name(order: str | Sequence[int]) -> str:
    return order if isinstance(order, str) else "-".join(map(str, order))
