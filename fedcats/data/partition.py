"""Who has which image: the training images dealt out to clients.

A partition is a function of the labels and a seed that returns one array of positions for each
shard; the arrays are disjoint. Its parameters, with their limits, are a dataclass: `PARTITIONS`
has each by name. NumPy is imported when images are dealt out: the command line reads the limits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedcats.errors import UserError
from fedcats.limits import Limited, number, optional
from fedcats.plugins import blamed, check_call
from fedcats.seeding import derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

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
    import numpy as np

    labels = np.asarray(labels)
    positions = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    fewest = min((len(of_class) for of_class in positions), default=0)
    if per_class is None:
        per_class = fewest // num_shards
        if per_class == 0:
            raise UserError(
                f"partition.num_shards={num_shards}: the smallest class has only {fewest} "
                f"training images, which is enough for at most {fewest} shards"
            )
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
    import numpy as np

    n = len(np.asarray(labels))
    if num_shards > n:
        raise UserError(
            f"partition.num_shards={num_shards}: there are only {n} training images, "
            f"at most {n} shards would fit"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition", "iid"))
    return [np.sort(part) for part in np.array_split(rng.permutation(n), num_shards)]


# --- shards that are not equal, by flwr-datasets --------------------------------------------------


def dirichlet_partition(
    labels: ArrayLike, num_shards: int, alpha: float, min_size: int, seed: int
) -> Shards:
    """Divide each class among the shards in proportions from a Dirichlet distribution.

    Parameters
    ----------
    labels
        (n,), the class of each training image.
    num_shards
        How many shards.
    alpha
        Concentration, above 0: small for very different shards, large for similar ones.
    min_size
        Smallest number of images in a shard; the draw is repeated up to ten times to get there.
    seed
        Decides the proportions, and which images go where.

    Returns
    -------
    list of numpy.ndarray
        `num_shards` arrays of positions, int64, ascending, disjoint, together all images. A shard
        may lack a class.

    Raises
    ------
    UserError
        When a shard would be smaller than `min_size`.
    """
    options = {"partition_by": "label", "alpha": float(alpha), "min_partition_size": 0}
    return _by_flower("dirichlet", labels, num_shards, min_size, seed, options, attempts=10)


def pathological_partition(
    labels: ArrayLike, num_shards: int, classes_per_shard: int, min_size: int, seed: int
) -> Shards:
    """Give each shard images of a few classes only (every class is used where that is possible).

    Parameters
    ----------
    classes_per_shard
        Classes in each shard, from 1 to the number of classes. The first goes round, shard by
        shard, the others are drawn.
    labels, num_shards, min_size, seed
        As in `dirichlet_partition`.

    Returns
    -------
    list of numpy.ndarray
        As `dirichlet_partition`; images of a class that no shard has are left out.

    Raises
    ------
    UserError
        When there are not so many classes, or a shard would be smaller than `min_size`.
    """
    import numpy as np

    classes = len(np.unique(np.asarray(labels)))
    if not 1 <= classes_per_shard <= classes:
        raise UserError(
            f"partition.classes_per_shard={classes_per_shard}: must be from 1 to {classes}, the "
            "number of classes"
        )
    options = {
        "partition_by": "label",
        "num_classes_per_partition": classes_per_shard,
        "class_assignment_mode": "first-deterministic",
    }
    return _by_flower("pathological", labels, num_shards, min_size, seed, options)


def shard_partition(
    labels: ArrayLike, num_shards: int, pieces_per_shard: int, min_size: int, seed: int
) -> Shards:
    """Sort the images by class, cut them into pieces, and deal out the pieces (McMahan et al.).

    Parameters
    ----------
    pieces_per_shard
        Pieces of equal size for each shard, from 1. With 2, most shards hold one or two classes.
    labels, num_shards, min_size, seed
        As in `dirichlet_partition`.

    Returns
    -------
    list of numpy.ndarray
        As `dirichlet_partition`, all of one size; images that fill no piece are left out.

    Raises
    ------
    UserError
        When a shard would be smaller than `min_size`, or a piece empty.
    """
    import numpy as np

    n = len(np.asarray(labels))
    if num_shards * pieces_per_shard > n:
        raise UserError(
            f"partition.pieces_per_shard={pieces_per_shard}: {num_shards} shards would need "
            f"{num_shards * pieces_per_shard} pieces, but there are only {n} training images"
        )
    options = {"partition_by": "label", "num_shards_per_partition": pieces_per_shard}
    return _by_flower("shard", labels, num_shards, min_size, seed, options)


def linear_partition(labels: ArrayLike, num_shards: int, min_size: int, seed: int) -> Shards:
    """Deal out shards of different size: shard i gets i + 1 parts of all images, at random.

    Parameters, result and errors as in `dirichlet_partition`.
    """
    return _by_flower("linear", labels, num_shards, min_size, seed, {})


def square_partition(labels: ArrayLike, num_shards: int, min_size: int, seed: int) -> Shards:
    """Deal out as `linear_partition`, but (i + 1) squared parts to shard i."""
    return _by_flower("square", labels, num_shards, min_size, seed, {})


def exponential_partition(labels: ArrayLike, num_shards: int, min_size: int, seed: int) -> Shards:
    """Deal out as `linear_partition`, but exp(i + 1) parts to shard i: the last has most images."""
    return _by_flower("exponential", labels, num_shards, min_size, seed, {})


def _by_flower(
    name: str,
    labels: ArrayLike,
    num_shards: int,
    min_size: int,
    seed: int,
    options: dict[str, Any],
    attempts: int = 1,
) -> Shards:
    """Deal out by a partitioner of flwr-datasets, over shuffled labels.

    Flower's partitioners take the images of a class, or of all, in the order in which they come;
    so they are shuffled before, and the shards do not follow the order of the files.
    """
    import numpy as np

    labels = np.asarray(labels)
    n = len(labels)
    if num_shards * min_size > n:
        raise UserError(
            f"partition.num_shards={num_shards}: there are only {n} training images, at most "
            f"{n // min_size} shards of partition.min_size={min_size} would fit"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition", name))
    order = rng.permutation(n)
    for _ in range(attempts):
        if "partition_by" in options:
            options |= {"seed": int(rng.integers(2**32)), "shuffle": False}
        shards = _load_all(name, options | {"num_partitions": num_shards}, labels[order], order)
        sizes = [len(shard) for shard in shards]
        if min(sizes) >= min_size:
            return shards
    smallest = int(np.argmin(sizes))
    alpha = "raise partition.alpha, or " if "alpha" in options else ""
    raise UserError(
        f"partition={name}: shard {smallest} would have {sizes[smallest]} of {n} training images, "
        f"fewer than partition.min_size={min_size}; {alpha}lower partition.num_shards or "
        "partition.min_size"
    )


def _load_all(
    name: str, options: dict[str, Any], labels: NDArray[np.int64], order: NDArray[np.int64]
) -> Shards:
    import datasets  # heavy, and only these partitions need it
    import numpy as np
    from flwr_datasets import partitioner as flower

    partitioner = getattr(flower, f"{name.capitalize()}Partitioner")(**options)
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels, "position": order})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that no shard has; documented above
            parts = [partitioner.load_partition(i) for i in range(options["num_partitions"])]
    except ValueError:  # the numbers were checked before, so this is what is left
        raise UserError(
            f"partition={name}: {len(labels)} training images are too few for "
            f"{options['num_partitions']} such shards, some would be empty; lower "
            "partition.num_shards"
        ) from None
    return [np.sort(np.asarray(part["position"], dtype=np.int64)) for part in parts]


def hold_out(
    labels: ArrayLike, shards: Sequence[NDArray[np.int64]], fraction: float, seed: int
) -> tuple[Shards, Shards]:
    """Keep a part of each client's images away from its training, to test on its own kind.

    Parameters
    ----------
    labels
        (n,), the class of each training image.
    shards
        Positions in `labels`, one array for each client.
    fraction
        Share of each class of each shard to hold out, 0 to below 1, rounded. A class of two or
        more images always keeps one for training.
    seed
        Decides which.

    Returns
    -------
    (training, held_out)
        Two lists of arrays, int64, ascending; a held-out part may be empty.

    Raises
    ------
    UserError
        When `fraction` is out of range.
    """
    import numpy as np

    if not 0 <= fraction < 1:
        raise UserError(f"partition.hold_out={fraction}: must be from 0 to below 1")
    labels = np.asarray(labels)
    training, held_out = [], []
    for client, shard in enumerate(shards):
        rng = np.random.default_rng(derive_seed(seed, "hold out", client))
        chosen: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        for label in np.unique(labels[shard]):
            of_class = rng.permutation(shard[labels[shard] == label])
            chosen.append(of_class[: min(round(fraction * len(of_class)), len(of_class) - 1)])
        held = np.sort(np.concatenate(chosen))
        held_out.append(held)
        training.append(np.setdiff1d(shard, held))
    return training, held_out


# --- by name --------------------------------------------------------------------------------------


class Partition(Limited):
    """A partition with its parameters: ``partition(labels, seed)`` deals out the images.

    Attributes
    ----------
    name
        In the configuration.
    function
        ``function(labels, seed=.., **parameters)``.
    """

    where = "partition."
    name: str
    num_shards: int
    function: ClassVar[Callable[..., Any]]

    def __call__(self, labels: ArrayLike, seed: int) -> Shards:
        """Positions in ``labels`` (n,) for each shard; UserError when the images do not suffice."""
        return type(self).function(labels, seed=seed, **asdict(self))  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Paper(Partition):
    """``partition=paper`` and ``equal``."""

    name = "paper"
    function = paper_partition
    num_shards: int = number(1)
    per_class: int | None = optional(number(1))


@dataclass(frozen=True)
class Iid(Partition):
    """``partition=iid``."""

    name = "iid"
    function = iid_partition
    num_shards: int = number(1)


@dataclass(frozen=True)
class Linear(Partition):
    """``partition=linear``."""

    name = "linear"
    function: ClassVar[Callable[..., Any]] = linear_partition
    num_shards: int = number(1)
    min_size: int = number(1)


@dataclass(frozen=True)
class Square(Linear):
    """``partition=square``."""

    name = "square"
    function = square_partition


@dataclass(frozen=True)
class Exponential(Linear):
    """``partition=exponential``."""

    name = "exponential"
    function = exponential_partition


@dataclass(frozen=True)
class Dirichlet(Linear):
    """``partition=dirichlet``."""

    name = "dirichlet"
    function = dirichlet_partition
    alpha: float = number(0, above=True)


@dataclass(frozen=True)
class Pathological(Linear):
    """``partition=pathological``."""

    name = "pathological"
    function = pathological_partition
    classes_per_shard: int = number(1)


@dataclass(frozen=True)
class Shard(Linear):
    """``partition=shard``."""

    name = "shard"
    function = shard_partition
    pieces_per_shard: int = number(1)


PARTITIONS: dict[str, type[Partition]] = {
    partition.name: partition
    for partition in (Paper, Iid, Dirichlet, Pathological, Shard, Linear, Square, Exponential)
}
"""Every partition of the package, by the name that `partition=` takes."""


@dataclass(frozen=True)
class OwnPartition(Partition):
    """A user's own: ``thing(labels, num_shards, seed, **parameters)``, whose shards are checked."""

    name: str
    num_shards: int = number(1)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    thing: Callable[..., Any] = field(repr=False, kw_only=True)

    @property
    def what(self) -> str:
        """What it is called in errors."""
        return f"partition.name={self.name}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.thing):
            kind = type(self.thing).__name__
            raise UserError(f"{self.what}: is a {kind}; allowed is a function")
        check_call(self.what, self.thing, [], self.num_shards, 0, **self.parameters)

    def __call__(self, labels: ArrayLike, seed: int) -> Shards:
        """As `Partition`; UserError, too, for what the function gives or raises."""
        import numpy as np

        n = len(np.asarray(labels))
        with blamed(self.what):
            given = self.thing(np.array(labels), self.num_shards, seed, **self.parameters)
            shards = [np.asarray(shard) for shard in given]
        if len(shards) != self.num_shards:
            raise UserError(
                f"{self.what}: gives {len(shards)} shards; partition.num_shards={self.num_shards}"
            )
        for number_, shard in enumerate(shards):
            if shard.ndim != 1 or shard.dtype.kind not in "iu" or not len(shard):
                raise UserError(
                    f"{self.what}: shard {number_} is {shard.dtype} {shard.shape}; allowed is one "
                    "position or more, whole numbers in one dimension"
                )
        together = np.concatenate(shards).astype(np.int64)
        if together.min() < 0 or together.max() >= n or len(np.unique(together)) < len(together):
            raise UserError(
                f"{self.what}: the shards must be disjoint positions from 0 to {n - 1}, where the "
                "labels are"
            )
        return [shard.astype(np.int64) for shard in shards]


def make_partition(
    name: str | Callable[..., Any],
    labels: Sequence[int] | ArrayLike,
    num_shards: int,
    seed: int,
    **parameters: Any,
) -> Shards:
    """Deal out the training images.

    Parameters
    ----------
    name
        One of `PARTITIONS`, or a function ``(labels, num_shards, seed, **parameters)``.
    labels
        (n,), the class of each training image.
    num_shards, seed, **parameters
        As the partition takes them.

    Returns
    -------
    list of numpy.ndarray
        One array of positions for each shard.

    Raises
    ------
    UserError
        For an unknown name, and when the images do not suffice.
    """
    if callable(name):
        called = getattr(name, "__name__", type(name).__name__)
        return OwnPartition(called, num_shards, parameters, thing=name)(labels, seed)
    if name not in PARTITIONS:
        raise UserError(f"partition.name={name}: must be one of {', '.join(PARTITIONS)}")
    return PARTITIONS[name](num_shards=num_shards, **parameters)(labels, seed)  # type: ignore[call-arg]
