"""Many merges from the same stored sub-models: grids of rules, betas and orders, soup, ensemble.

Nothing here trains: sub-models come from the store, and every merge is the fold of
`fedcats.merging.fold`, so a point of a grid has the same bytes as a run of its own.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray

from fedcats.errors import RunError
from fedcats.merging.fold import Fold
from fedcats.merging.rules import Rule
from fedcats.storage import Store
from fedcats.tensors import State

_CHUNK = 1 << 16  # elements folded at a time: small enough for a core's cache


@dataclass(frozen=True)
class Point:
    """One merge of a grid.

    Attributes
    ----------
    rule
        That `is_fold`.
    order, clients
        The order's name in the configuration, and what it means: client numbers.
    """

    rule: Rule
    order: str
    clients: tuple[int, ...]

    def steps(self, examples: Mapping[int, int]) -> list[float]:
        """The fold's steps for the numbers of examples by client."""
        total, steps = 0, []
        for i, client in enumerate(self.clients, 1):
            total += examples[client]
            steps.append(self.rule.step(i, examples[client], total))
        return steps


def distinct_points(
    rules: Iterable[Rule], orders: Iterable[tuple[str, Sequence[int]]]
) -> list[Point]:
    """Every combination, once."""
    orders = list(orders)
    points = [Point(rule, name, tuple(clients)) for rule in rules for name, clients in orders]
    seen = {(point.rule, point.clients): point for point in reversed(points)}
    return [point for point in points if seen[point.rule, point.clients] is point]


def merge_points(
    store: Store,
    keys: Mapping[int, str],
    examples: Mapping[int, int],
    points: Sequence[Point],
    pool: Executor,
) -> list[State]:
    """Merge stored sub-models in many ways at once, reading each of them once.

    Parameters
    ----------
    store, keys
        The sub-models by client: keys of their updates in the store.
    examples
        Number of images that each was trained on.
    points
        The merges; all of their results are in memory together.
    pool
        Threads that share the work.

    Returns
    -------
    list of dict
        Merged tensors for each point, byte for byte those of `Fold` over whole models.

    Raises
    ------
    RunError
        When a sub-model is not in the store, or damaged.
    """
    with contextlib.ExitStack() as stack:
        files = []
        place = {client: i for i, client in enumerate(keys)}
        for key in dict.fromkeys(keys.values()):
            if store.get(key) is None:  # reads and checks it; what follows reads mapped memory
                raise RunError(f"store {store.root}: a sub-model is gone; run the same again")
        for key in keys.values():
            file = safetensors.safe_open(store.path(key), framework="pt")
            files.append(stack.enter_context(file))
        merged: list[State] = [{} for _ in points]
        for name in files[0].keys():  # noqa: SIM118
            tensors = [file.get_tensor(name) for file in files]
            for state in merged:
                state[name] = torch.empty_like(tensors[0])
            flat = [tensor.reshape(-1) for tensor in tensors]
            out = [state[name].view(-1) for state in merged]

            def fold(start: int, flat: list[torch.Tensor] = flat, out: list[torch.Tensor] = out):  # type: ignore[no-untyped-def]
                torch.set_num_threads(1)
                part = slice(start, start + _CHUNK)
                pieces = [{"": tensor[part]} for tensor in flat]
                for point, target in zip(points, out, strict=True):
                    one = Fold(point.rule)
                    for client in point.clients:
                        one.add(pieces[place[client]], examples[client])
                    target[part] = one.result()[""]

            list(pool.map(fold, range(0, flat[0].numel(), _CHUNK)))
    return merged


def greedy_soup(
    ranked: Sequence[int], score: Callable[[Sequence[int]], tuple[float, float]]
) -> list[int]:
    """Greedy soup (Wortsman et al., 2022): add each sub-model to the plain mean if that helps.

    Parameters
    ----------
    ranked
        Clients, the best on the validation images first.
    score
        Of the plain mean of some clients on the validation images; higher is better.

    Returns
    -------
    list of int
        The clients whose plain mean is the soup, in the order in which they were taken.
    """
    chosen, best = [ranked[0]], score(ranked[:1])
    for client in ranked[1:]:
        found = score([*chosen, client])
        if found >= best:
            chosen, best = [*chosen, client], found
    return chosen


def ensemble(probabilities: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The logit ensemble: the softmax of the mean logits of several models.

    Parameters
    ----------
    probabilities
        Of each model, (n, classes) float32. A logit is their logarithm up to a constant for each
        image, which the softmax does not see; below 1e-38 it is cut off.

    Returns
    -------
    ndarray
        (n, classes) float32. No merge: it needs all models when it is used, a reference.
    """
    tiny = float(np.finfo(np.float32).tiny)
    logits = sum(np.log(np.maximum(p.astype(np.float64), tiny)) for p in probabilities)
    scaled = np.exp(logits / len(probabilities))
    mean: NDArray[np.float64] = scaled / scaled.sum(axis=1, keepdims=True)
    return mean.astype(np.float32)
