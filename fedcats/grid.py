"""Testing models, none twice, and choosing among merges on held-out training images.

A model is known by what it was merged from (`Parts`), so its predictions are found in the store
without its weights: a grid of merges that was tested once costs nothing the second time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedcats.data import MEAN, STD, Images
from fedcats.merging.many import Point, distinct_points, ensemble, greedy_soup, merge_points
from fedcats.merging.plan import Merged, merge_order
from fedcats.merging.rules import RULES
from fedcats.metrics import scores, write_predictions
from fedcats.models import build
from fedcats.report.estimate import LAST, Work
from fedcats.storage import content_key
from fedcats.tensors import State
from fedcats.training import recipe
from fedcats.training.cuda import full_precision
from fedcats.training.frozen import SharedTest, share_test
from fedcats.training.loop import predict

if TYPE_CHECKING:
    from fedcats.experiment import Run
    from fedcats.report import Progress

Probabilities = NDArray[np.float32]

_MEMORY = 8e9  # bytes of merged models that a grid holds at a time
_PASS_MEMORY = 1e9  # of those that a thread tests in one pass over the photos

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What a model is the fold of: keys of updates in the store, in order, and the steps.

    A merge that is no fold has no steps, and ``rule`` says what it is.
    """

    keys: tuple[str, ...]
    steps: tuple[float, ...] = (1.0,)
    rule: str = ""


Candidate = tuple[Parts, Callable[[], State]]
"""A model to be tested; the second gives its trained tensors by state-dict key, if needed."""


def in_passes(this: Run, candidates: Sequence[T]) -> list[list[T]]:
    """What is tested together in one pass over the photos: as many models as fit, all workers busy.

    A thread holds up to 1 GB of models, at most eight of them.
    """
    size = sum(value.nbytes for value in this.initial.state.values())
    together = max(1, min(8, int(_PASS_MEMORY // size)))
    rounds = math.ceil(len(candidates) / (together * this.workers))
    count = min(len(candidates), rounds * this.workers)
    bounds = [round(i * len(candidates) / count) for i in range(count + 1)] if count else []
    return [list(candidates[start:stop]) for start, stop in itertools.pairwise(bounds)]


def probabilities(
    this: Run, candidates: Sequence[Candidate], images: Images
) -> list[Probabilities]:
    """Each model's class probabilities (n, classes), float32: from the store, else computed.

    Those that are not in the store are tested in one pass over the images, and kept there.
    """
    found = [_kept(this, parts, images) for parts, _ in candidates]
    missing = [i for i, kept in enumerate(found) if kept is None]
    if missing:
        torch.set_num_threads(this.config.runner.threads)
        full_precision()
        frozen = _frozen(this, images)
        states = (candidates[i][1]() for i in missing)
        if frozen is None:
            new = predict([_model(this, this.initial.state | state) for state in states], images)
        else:
            new = [frozen.predict(state) for state in states]
        for i, one in zip(missing, new, strict=True):
            parts = candidates[i][0]
            about = {"kind": "predictions", "examples": len(images), "updates": len(parts.keys)}
            key = _predictions_key(this, parts, images)
            this.store.put(key, {"probabilities": torch.from_numpy(one)}, about)
            found[i] = one
    return cast(list[Probabilities], found)


def _model(this: Run, whole: State) -> nn.Module:
    model = build.empty(this.config.model.name, len(this.dataset.classes), whole)
    return model.to(this.device).to(memory_format=torch.channels_last)


def _frozen(this: Run, images: Images) -> SharedTest | None:
    """The frozen part's answers, which all models of a run share; worked out once."""
    if this.config.model.trainable == "all":
        return None
    with this.lock:
        if images.digest not in this.frozen:
            model = _model(this, this.initial.state)
            names, threads = this.trained_names, this.workers
            this.frozen[images.digest] = share_test(model, names, images, threads=threads)
        return this.frozen[images.digest]


def _kept(this: Run, parts: Parts, images: Images) -> Probabilities | None:
    entry = this.store.get(_predictions_key(this, parts, images))
    return None if entry is None else entry.tensors["probabilities"].numpy()


def _predictions_key(this: Run, parts: Parts, images: Images) -> str:
    config = this.config
    return content_key(
        {
            "kind": "predictions",
            "version": recipe.VERSION,
            "torch": torch.__version__,
            "model": [config.model.name, len(this.dataset.classes)],
            "base": this.base,
            "updates": parts.keys,
            "steps": parts.steps or parts.rule,
            "images": images.digest,
            "normalise": [MEAN, STD],
            "threads": config.runner.threads,
            "device": this.device,
            "processor": torch.backends.cpu.get_cpu_capability(),
        }
    )


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
        kept = [_kept(this, own.parts(point), images) for images in sets]
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
    scored = [_scores(this, this.validation, one) for one in tested]
    best = max(range(len(points)), key=lambda i: _rank(scored[i]))
    point = points[best]
    (state,) = merge_points(this.store, own.keys, own.examples, [point], pool)
    parts = own.parts(point)
    merged = Merged(state, list(clients), list(parts.keys), list(parts.steps))
    assert point.beta is not None
    accuracies = {f"{p.beta:g}": s["accuracy"] for p, s in zip(points, scored, strict=True)}
    return point.beta, accuracies, merged


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
        rank = {c: _rank(_scores(this, this.validation, one[1])) for c, one in by_client.items()}
        ranked = sorted(clients, key=lambda client: rank[client], reverse=True)
        if "best" in config.rules:
            rows.append(_row(this, "best", None, None, ranked[:1], *by_client[ranked[0]]))
        if "soup" in config.rules:

            def score(chosen: Sequence[int]) -> tuple[float, float]:
                point = Point("uniform", None, "", tuple(chosen))
                ((on_validation,),) = test_points(this, own, [point], [this.validation], pool)
                return _rank(_scores(this, this.validation, on_validation))

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
) -> dict[str, Any]:
    test = this.dataset.test
    words = [model, *([f"beta{beta:g}"] if beta is not None else []), *([order] if order else [])]
    file = f"predictions/{'-'.join(words)}.csv"
    write_predictions(this.folder / file, test.files, test.labels, on_test, this.dataset.classes)
    row: dict[str, Any] = {
        "model": model,
        "strategy.beta": beta,
        "strategy.order": order,
        "clients": clients,
    }
    row |= _scores(this, test, on_test) | {"predictions": file}
    if on_validation is not None:
        row["validation"] = validation_scores(this, on_validation)
    return row


def validation_scores(this: Run, predicted: Probabilities) -> dict[str, Any]:
    """Scores on the held-out training images, in short."""
    found = _scores(this, this.validation, predicted)
    return {key: found[key] for key in ("accuracy", "loss", "n")}


def _scores(this: Run, images: Images, predicted: Probabilities) -> dict[str, Any]:
    return scores(images.labels, predicted, this.dataset.classes)


def _rank(scored: dict[str, Any]) -> tuple[float, float]:
    return scored["accuracy"], -scored["loss"]


def _name(order: str | Sequence[int]) -> str:
    return order if isinstance(order, str) else "-".join(map(str, order))


def _batched(items: Sequence[int], size: int) -> Iterator[list[int]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
