"""Who has which image: the training images dealt out to clients.

A partition is a function of the labels and a seed that returns one array of positions for each
shard; the arrays are disjoint. `make_partition` finds it by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcats.core.errors import UserError
from fedcats.core.seeding import derive_seed

Shards = list[NDArray[np.int64]]


def paper_partition(labels: ArrayLike, num_shards: int, per_class: int | None, seed: int) -> Shards:
    """Deal out disjoint shards with equally many images of each class (the paper's experiment).

    Parameters
    ----------
    labels
        (n,), the class of each training image, 0 .. K-1.
    num_shards
        How many shards; the paper has 10.
    per_class
        Images of each class in each shard; the paper has 99. None takes as many as fit.
    seed
        Decides which images go where, and nothing else.

    Returns
    -------
    list of numpy.ndarray
        `num_shards` arrays of positions in `labels`, int64, ascending, disjoint.

    Raises
    ------
    UserError
        When the images are too few; the message says how many shards, or images, would fit.
    """
    labels = np.asarray(labels)
    _check_num_shards(num_shards)
    positions = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    fewest = min((len(of_class) for of_class in positions), default=0)
    if per_class is None:
        per_class = fewest // num_shards
        if per_class == 0:
            raise UserError(
                f"partition.num_shards={num_shards}: the smallest class has only {fewest} "
                f"training images, which is enough for at most {fewest} shards"
            )
    if per_class < 1:
        raise UserError(f"partition.per_class={per_class}: must be at least 1, or null")
    if num_shards * per_class > fewest:
        raise UserError(
            f"partition=paper wants {num_shards} shards of {per_class} images per class "
            f"({num_shards * per_class} of each class), but the smallest class has {fewest} "
            f"training images: {_what_fits(fewest, num_shards, per_class)}"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition", "paper"))
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(num_shards)]
    for of_class in positions:
        dealt = rng.permutation(of_class)[: num_shards * per_class].reshape(num_shards, per_class)
        for part, share in zip(parts, dealt, strict=True):
            part.append(share)
    return [np.sort(np.concatenate(part)) for part in parts]


def _what_fits(fewest: int, num_shards: int, per_class: int) -> str:
    """Say what could be asked for instead."""
    options = []
    if shards := fewest // per_class:
        options.append(f"partition.num_shards={shards}")
    if images := fewest // num_shards:
        options.append(f"partition.per_class={images}")
    if not options:
        return f"not even one image of each class per shard; at most {fewest} shards would fit"
    return " or ".join(options) + " would fit"


def iid_partition(labels: ArrayLike, num_shards: int, seed: int) -> Shards:
    """Shuffle all images and deal them out; the sizes differ by at most one.

    Parameters
    ----------
    labels
        (n,), the class of each training image; only its length matters.
    num_shards
        1 .. n.
    seed
        Decides the shuffle.

    Returns
    -------
    list of numpy.ndarray
        `num_shards` arrays of positions, int64, ascending, disjoint, together all images.

    Raises
    ------
    UserError
        When there are more shards than images.
    """
    n = len(np.asarray(labels))
    _check_num_shards(num_shards)
    if num_shards > n:
        raise UserError(
            f"partition.num_shards={num_shards}: there are only {n} training images, "
            f"at most {n} shards would fit"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition", "iid"))
    return [np.sort(part) for part in np.array_split(rng.permutation(n), num_shards)]


def _check_num_shards(num_shards: int) -> None:
    if num_shards < 1:
        raise UserError(f"partition.num_shards={num_shards}: must be at least 1")


PARTITIONS: dict[str, Callable[..., Shards]] = {
    "paper": paper_partition,
    "iid": iid_partition,
}
"""Every partition, by the name that `partition=` takes."""


def make_partition(
    name: str, labels: Sequence[int] | ArrayLike, num_shards: int, seed: int, **params: Any
) -> Shards:
    """Deal out the training images by the partition called `name`.

    Parameters
    ----------
    name
        One of `PARTITIONS`.
    labels
        (n,), the class of each training image.
    num_shards, seed
        As the partition takes them.
    **params
        What the partition takes beyond these, such as `per_class`.

    Returns
    -------
    list of numpy.ndarray
        One array of positions for each shard.

    Raises
    ------
    UserError
        For an unknown name, and when the images do not suffice.
    """
    if name not in PARTITIONS:
        raise UserError(f"partition.name={name}: must be one of {', '.join(PARTITIONS)}")
    return PARTITIONS[name](labels, num_shards=num_shards, seed=seed, **params)
