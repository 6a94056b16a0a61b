"""Grids of merges, and choosing among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fedcats.data import Images
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
from fedcats.merging.rules import RULES
from fedcats.metrics import write_predictions
from fedcats.report.estimate import LAST, Work
from fedcats.results import GridRow, MergeGrid, Scores
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
        keys = tuple(self.keys[client] for client in point.clients)
        return Parts(keys, tuple(point.steps(self.examples)))


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


def choose_beta(
    this: Run, own: SubModels, clients: Sequence[int], pool: Executor
) -> tuple[float, dict[str, float], Merged]:
    """``strategy.beta=auto``: the beta whose merge is best on the held-out training images.

    Parameters
    ----------
    clients
        Who is merged, in order.

    Returns
    -------
    (beta, accuracies, merged)
        The one of ``merge.betas`` with the highest accuracy there, of equal ones that with the
        lower loss; the accuracy of each; its merge.
    """
    order = [("strategy.order", clients)]
    points = distinct_points(["polyak"], this.config.merge.betas, order)
    tested = [one for (one,) in test_points(this, own, points, [this.validation], pool)]
    scored = [image_scores(this, this.validation, one) for one in tested]
    best = max(range(len(points)), key=lambda i: _rank(scored[i]))
    point = points[best]
    (state,) = merge_points(this.store, own.keys, own.examples, [point], pool)
    parts = own.parts(point)
    merged = Merged(state, list(clients), list(parts.keys), list(parts.steps))
    assert point.beta is not None
    accuracies = {f"{p.beta:g}": s["accuracy"] for p, s in zip(points, scored, strict=True)}
    return point.beta, accuracies, merged


def merge_grid(this: Run, own: SubModels, progress: Progress, pool: Executor) -> MergeGrid:
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
    rules = [rule for rule in config.rules if rule in RULES]
    points = distinct_points(rules, config.betas, orders)
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
        _row(this, point.rule, point.beta, point.order, list(point.clients), *predicted)
        for point, predicted in zip(points, tested, strict=True)
    ]
    singles = [Point("uniform", None, "", (client,)) for client in clients]
    alone = test_points(this, own, singles, sets, pool)
    if {"best", "soup"} & set(config.rules):
        by_client = dict(zip(clients, alone, strict=True))
        rank = {
            c: _rank(image_scores(this, this.validation, one[1])) for c, one in by_client.items()
        }
        ranked = sorted(clients, key=lambda client: rank[client], reverse=True)
        if "best" in config.rules:
            rows.append(_row(this, "best", None, None, ranked[:1], *by_client[ranked[0]]))
        if "soup" in config.rules:

            def score(chosen: Sequence[int]) -> tuple[float, float]:
                point = Point("uniform", None, "", tuple(chosen))
                ((on_validation,),) = test_points(this, own, [point], [this.validation], pool)
                return _rank(image_scores(this, this.validation, on_validation))

            chosen = greedy_soup(ranked, score)
            soup = Point("uniform", None, "", tuple(chosen))
            (predicted,) = test_points(this, own, [soup], sets, pool)
            rows.append(_row(this, "soup", None, None, chosen, *predicted))
    if "ensemble" in config.rules:
        together = [ensemble([one[i] for one in alone]) for i in range(len(sets))]
        rows.append(_row(this, "ensemble", None, None, clients, *together))
    count = sum(len(config.betas) * len(orders) for _ in rules) + len(config.rules) - len(rules)
    return {"points": count, "rows": rows}


def _row(
    this: Run,
    model: str,
    beta: float | None,
    order: str | None,
    clients: list[int],
    on_test: Probabilities,
    on_validation: Probabilities | None = None,
) -> GridRow:
    test = this.dataset.test
    words = [model, *([f"beta{beta:g}"] if beta is not None else []), *([order] if order else [])]
    file = f"predictions/{'-'.join(words)}.csv"
    write_predictions(this.folder / file, test.files, test.labels, on_test, this.dataset.classes)
    row = cast(
        GridRow,
        {
            "model": model,
            "strategy.beta": beta,
            "strategy.order": order,
            "clients": clients,
            **image_scores(this, test, on_test),
            "predictions": file,
        },
    )
    if on_validation is not None:
        row["validation"] = validation_scores(this, on_validation)
    return row


def _rank(scored: Scores) -> tuple[float, float]:
    return scored["accuracy"], -scored["loss"]


def _name(order: str | Sequence[int]) -> str:
    return order if isinstance(order, str) else "-".join(map(str, order))


def _batched(items: Sequence[int], size: int) -> Iterator[list[int]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
