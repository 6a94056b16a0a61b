"""Grids of merges, and choosing among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedcats.data import Images
from fedcats.errors import RunError
from fedcats.experiment.folders import file_stem
from fedcats.experiment.predictions import (
    Parts,
    Probabilities,
    image_scores,
    in_passes,
    kept_probabilities,
    probabilities,
    validation_scores,
)
from fedcats.merging.many import Point, distinct_points, ensemble, greedy_soup, merge_points
from fedcats.merging.plan import Merged, merge_order
from fedcats.merging.rules import Rule, Uniform
from fedcats.metrics import write_predictions
from fedcats.report.estimate import LAST, Work
from fedcats.tensors import State

if TYPE_CHECKING:
    from fedcats.experiment.inputs import Run
    from fedcats.report import Progress


_MEMORY = 8e9  # bytes of merged models that a grid holds at a time


@dataclass(frozen=True)
class SubModels:
    """The clients' own models of a round, as the store has them.

    Attributes
    ----------
    keys, examples
        By client (one that failed is missing): key of the update, number of images that it was
        trained on.
    """

    keys: Mapping[int, str]
    examples: Mapping[int, int]

    def parts(self, point: Point) -> Parts:
        """What the point's merge is the fold of."""
        keys, steps = [self.keys[client] for client in point.clients], point.steps(self.examples)
        if steps[0] != 1.0:
            raise RunError(f"{point.rule.name}: its first step is {steps[0]:g}; a grid needs 1")
        return Parts(tuple(keys), tuple(steps))


def test_points(
    this: Run,
    own: SubModels,
    points: Sequence[Point],
    sets: Sequence[Images],
    pool: Executor,
    done: Callable[[int], None] = lambda _: None,
) -> list[list[Probabilities]]:
    """Predictions of every point's merge on each of ``sets``; merged and computed only if new.

    ``done`` is called with the number of points tested so far.
    """
    found: dict[int, list[Probabilities]] = {}
    for i, point in enumerate(points):
        kept = [kept_probabilities(this, own.parts(point), images) for images in sets]
        if all(one is not None for one in kept):
            found[i] = [one for one in kept if one is not None]
    done(len(found))

    def test(group: Sequence[tuple[int, State]]) -> list[tuple[Probabilities, ...]]:
        models = [(own.parts(points[i]), lambda state=state: state) for i, state in group]
        return list(zip(*(probabilities(this, models, images) for images in sets), strict=True))

    missing = [i for i in range(len(points)) if i not in found]
    size = sum(this.initial.state[name].nbytes for name in this.trained_names)
    for group in _batched(missing, max(1, int(_MEMORY // size))):
        chosen = [points[i] for i in group]
        states = merge_points(this.store, own.keys, own.examples, chosen, pool)
        passes = in_passes(this, list(zip(group, states, strict=True)))
        for together, tested in zip(passes, pool.map(test, passes), strict=True):
            found |= {i: list(one) for (i, _), one in zip(together, tested, strict=True)}
            done(len(found))
    return [found[i] for i in range(len(points))]


def choose(
    this: Run, own: SubModels, rule: Rule, server_round: Merged, pool: Executor
) -> tuple[Rule, dict[str, float], Merged]:
    """``strategy.beta=auto``: the beta whose merge is best on the held-out training images.

    Parameters
    ----------
    rule
        Of which a parameter is undecided.
    server_round
        Who is merged, in order.

    Returns
    -------
    (rule, accuracies, merged)
        The one of ``merge.betas`` with the highest accuracy there, of equal ones that with the
        lower loss; the accuracy of each; its merge.
    """
    order = [("strategy.order", server_round.clients)]
    points = distinct_points(rule.choices(this.config.merge.betas), order)
    tested = [one for (one,) in test_points(this, own, points, [this.validation], pool)]
    scored = [image_scores(this, this.validation, one) for one in tested]
    point = points[max(range(len(points)), key=lambda i: _rank(scored[i]))]
    (state,) = merge_points(this.store, own.keys, own.examples, [point], pool)
    merged = replace(server_round, state=state, steps=list(own.parts(point).steps))
    accuracies = {
        f"{p.rule.record['beta']:g}": s["accuracy"] for p, s in zip(points, scored, strict=True)
    }
    return point.rule, accuracies, merged


def merge_grid(this: Run, own: SubModels, progress: Progress, pool: Executor) -> dict[str, Any]:
    """``mode=merge``: all rules, betas and orders of the configuration from one training.

    Returns
    -------
    dict
        ``points`` (how many combinations were asked for) and ``rows``, one for each merge that
        differs: ``model``, ``strategy.beta``, ``strategy.order``, ``clients``, the scores on the
        test images, on the held-out ones under ``validation``, and the file of predictions.
    """
    config = this.config.merge
    clients = sorted(own.keys)
    orders = []
    for order in config.orders:
        whole = merge_order(order, len(this.shards), this.config.seed)
        orders.append((_name(order), [client for client in whole if client in own.keys]))
    rules = this.config.grid
    points = distinct_points(rules, orders)
    held = len(this.validation) > 0
    sets = [this.dataset.test, *([this.validation] if held else [])]
    name = f"test {len(points)} merges"
    progress.expect({name: Work(sum(map(len, sets)) / 3 / this.workers, len(points), LAST, 1)})
    tested = test_points(
        this,
        own,
        points,
        sets,
        pool,
        lambda count: progress.update(name, count, len(points), None, "testing"),
    )
    progress.update(name, len(points), len(points), None, "done")
    rows = [
        _row(this, point.rule, point.order, list(point.clients), *predicted)
        for point, predicted in zip(points, tested, strict=True)
    ]
    singles = [Point(Uniform(), "", (client,)) for client in clients]
    alone = test_points(this, own, singles, sets, pool)
    if {"best", "soup"} & set(config.rules):
        by_client = dict(zip(clients, alone, strict=True))
        rank = {
            c: _rank(image_scores(this, this.validation, one[1])) for c, one in by_client.items()
        }
        ranked = sorted(clients, key=lambda client: rank[client], reverse=True)
        if "best" in config.rules:
            rows.append(_row(this, "best", None, ranked[:1], *by_client[ranked[0]]))
        if "soup" in config.rules:

            def score(chosen: Sequence[int]) -> tuple[float, float]:
                point = Point(Uniform(), "", tuple(chosen))
                ((on_validation,),) = test_points(this, own, [point], [this.validation], pool)
                return _rank(image_scores(this, this.validation, on_validation))

            chosen = greedy_soup(ranked, score)
            soup = Point(Uniform(), "", tuple(chosen))
            (predicted,) = test_points(this, own, [soup], sets, pool)
            rows.append(_row(this, "soup", None, chosen, *predicted))
    if "ensemble" in config.rules:
        together = [ensemble([one[i] for one in alone]) for i in range(len(sets))]
        rows.append(_row(this, "ensemble", None, clients, *together))
    folds = [name for name in config.rules if name in this.config.available]
    count = len(folds) * len(config.betas) * len(orders) + len(config.rules) - len(folds)
    return {"points": count, "rows": rows}


def _row(
    this: Run,
    rule: Rule | str,
    order: str | None,
    clients: list[int],
    on_test: Probabilities,
    on_validation: Probabilities | None = None,
) -> dict[str, Any]:
    test = this.dataset.test
    model = rule if isinstance(rule, str) else rule.name
    beta = None if isinstance(rule, str) else rule.record.get("beta")
    words = [file_stem(model), "" if beta is None else f"beta{beta:g}", order]
    file = f"predictions/{'-'.join(filter(None, words))}.csv"
    write_predictions(this.folder / file, test.files, test.labels, on_test, this.dataset.classes)
    row: dict[str, Any] = {
        "model": model,
        "strategy.beta": beta,
        "strategy.order": order,
        "clients": clients,
    }
    row |= image_scores(this, test, on_test) | {"predictions": file}
    if on_validation is not None:
        row["validation"] = validation_scores(this, on_validation)
    return row


def _rank(scored: dict[str, Any]) -> tuple[float, float]:
    return scored["accuracy"], -scored["loss"]


def _name(order: str | Sequence[int]) -> str:
    return order if isinstance(order, str) else "-".join(map(str, order))


def _batched(items: Sequence[int], size: int) -> Iterator[list[int]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
