"""Who has which image: the training images dealt out to clients.

A partition is a function of the labels and a seed that returns one array of positions for each
shard; the arrays are disjoint. Its parameters, with their limits, are a dataclass: `PARTITIONS`
has each by name. NumPy is imported when images are dealt out: the command line reads the limits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
        Images of each class in each shard; the paper has 99. None deals out all: the shards then
        differ by at most one image of each class, and by at most one in all.
    seed
        Decides which images go where, and nothing else.

    Returns
    -------
    list of numpy.ndarray
        `num_shards` arrays of positions in `labels`, int64, ascending, disjoint; with None
        together all images.

    Raises
    ------
    UserError
        When the images are too few; the message says how many shards, or images, would fit.
    """
    import numpy as np

    labels = np.asarray(labels)
    positions = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    fewest = min((len(of_class) for of_class in positions), default=0)
    if per_class is None and num_shards > fewest:
        raise UserError(
            f"partition.num_shards={num_shards}: the smallest class has only {fewest} "
            f"training images, which is enough for at most {fewest} shards"
        )
    if per_class is not None and per_class < 1:
        raise UserError(f"partition.per_class={per_class}: must be at least 1, or null")
    if per_class is not None and num_shards * per_class > fewest:
        raise UserError(
            f"partition=paper wants {num_shards} shards of {per_class} images per class "
            f"({num_shards * per_class} of each class), but the smallest class has {fewest} "
            f"training images: {_what_fits(fewest, num_shards, per_class)}"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition", "paper"))
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(num_shards)]
    turn = 0  # whose turn it is to get one more
    for of_class in positions:
        each = per_class or len(of_class) // num_shards
        shuffled = rng.permutation(of_class)
        dealt, rest = np.split(shuffled, [num_shards * each])
        for part, share in zip(parts, dealt.reshape(num_shards, each), strict=True):
            part.append(share)
        for position in rest if per_class is None else ():
            parts[turn].append(position[None])
            turn = (turn + 1) % num_shards
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


class Partition(Limited):
    """A partition with its parameters.

    Attributes
    ----------
    name
        In the configuration.
    num_shards
        How many shards.
    """

    where = "partition."
    name: str
    num_shards: int

    def __call__(self, labels: ArrayLike, seed: int) -> Shards:
        """Deal out the training images.

        Parameters
        ----------
        labels
            (n,), the class of each training image.
        seed
            Decides which images go where, and nothing else.

        Returns
        -------
        list of numpy.ndarray
            `num_shards` arrays of positions in `labels`, int64, ascending, disjoint.

        Raises
        ------
        UserError
            When the images do not suffice.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Paper(Partition):
    """``partition=paper`` and ``equal``: equally many images of each class in each shard.

    Attributes
    ----------
    per_class
        As in `paper_partition`.
    """

    name = "paper"
    num_shards: int = number(1)
    per_class: int | None = optional(number(1))

    def __call__(self, labels: ArrayLike, seed: int) -> Shards:
        """See `paper_partition`."""
        return paper_partition(labels, self.num_shards, self.per_class, seed)


@dataclass(frozen=True)
class Iid(Partition):
    """``partition=iid``: all images shuffled and dealt out; the sizes differ by at most one."""

    name = "iid"
    num_shards: int = number(1)

    def __call__(self, labels: ArrayLike, seed: int) -> Shards:
        """Together they are all images."""
        import numpy as np

        n = len(np.asarray(labels))
        if self.num_shards > n:
            raise UserError(
                f"partition.num_shards={self.num_shards}: there are only {n} training images, "
                f"at most {n} shards would fit"
            )
        rng = np.random.default_rng(derive_seed(seed, "partition", "iid"))
        return [np.sort(part) for part in np.array_split(rng.permutation(n), self.num_shards)]


@dataclass(frozen=True)
class Skewed(Partition):
    """Shards that are not equal, by the partitioner of flwr-datasets with this name.

    Flower's partitioners take the images of a class, or of all, in the order in which they come;
    so they are shuffled before, and the shards do not follow the order of the files.

    Attributes
    ----------
    min_size
        Smallest number of images in a shard; fewer are an error.
    attempts
        How often it is drawn to get there.
    by_size
        Whether the partitioner's shards grow from the first to the last; they are shuffled then,
        since of a Polyak merge half is the last one.
    """

    num_shards: int = number(1)
    min_size: int = number(1)
    attempts = 1
    by_size = False
    hint = ""

    def options(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        """What the partitioner takes; UserError for what cannot be done with these labels."""
        return {}

    def __call__(self, labels: ArrayLike, seed: int) -> Shards:
        """A shard may lack a class."""
        import numpy as np

        labels = np.asarray(labels)
        n, options = len(labels), self.options(labels)
        if self.num_shards * self.min_size > n:
            raise UserError(
                f"partition.num_shards={self.num_shards}: there are only {n} training images, at "
                f"most {n // self.min_size} shards of partition.min_size={self.min_size} would fit"
            )
        rng = np.random.default_rng(derive_seed(seed, "partition", self.name))
        order = rng.permutation(n)
        for _ in range(self.attempts):
            if options:
                options |= {"partition_by": "label", "seed": int(rng.integers(2**32))}
                options |= {"shuffle": False}
            shards = self._load_all(options, labels[order], order)
            sizes = [len(shard) for shard in shards]
            if min(sizes) >= self.min_size:
                places = rng.permutation(self.num_shards) if self.by_size else range(len(shards))
                return [shards[i] for i in places]
        smallest = int(np.argmin(sizes))
        raise UserError(
            f"partition={self.name}: shard {smallest} would have {sizes[smallest]} of {n} training "
            f"images, fewer than partition.min_size={self.min_size}; {self.hint}lower "
            "partition.num_shards or partition.min_size"
        )

    def _load_all(
        self, options: dict[str, Any], labels: NDArray[np.int64], order: NDArray[np.int64]
    ) -> Shards:
        import datasets  # heavy, and only these partitions need it
        import numpy as np
        from flwr_datasets import partitioner as flower

        kind = getattr(flower, f"{self.name.capitalize()}Partitioner")
        partitioner = kind(num_partitions=self.num_shards, **options)
        partitioner.dataset = datasets.Dataset.from_dict({"label": labels, "position": order})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that no shard has; documented
                parts = [partitioner.load_partition(i) for i in range(self.num_shards)]
        except ValueError:  # the numbers were checked before, so this is what is left
            raise UserError(
                f"partition={self.name}: {len(labels)} training images are too few for "
                f"{self.num_shards} such shards, some would be empty; lower partition.num_shards"
            ) from None
        return [np.sort(np.asarray(part["position"], dtype=np.int64)) for part in parts]


@dataclass(frozen=True)
class Linear(Skewed):
    """``partition=linear``: 1, 2, .. parts of all images, at random, in an order drawn, too."""

    name = "linear"
    by_size = True


@dataclass(frozen=True)
class Square(Skewed):
    """``partition=square``: 1, 4, 9, .. parts."""

    name = "square"
    by_size = True


@dataclass(frozen=True)
class Exponential(Skewed):
    """``partition=exponential``: exp(1), exp(2), .. parts."""

    name = "exponential"
    by_size = True


@dataclass(frozen=True)
class Dirichlet(Skewed):
    """``partition=dirichlet``: each class in proportions from a Dirichlet distribution.

    Attributes
    ----------
    alpha
        Concentration: small for very different shards, large for similar ones.
    """

    name = "dirichlet"
    attempts = 200
    hint = "raise partition.alpha, or "
    alpha: float = number(0, above=True)

    def options(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        """The draw is repeated here."""
        return {"alpha": float(self.alpha), "min_partition_size": 0}


@dataclass(frozen=True)
class Pathological(Skewed):
    """``partition=pathological``: a few classes only in each shard, all of them where possible.

    Images of a class that no shard has are left out.

    Attributes
    ----------
    classes_per_shard
        The first goes round, shard by shard, the others are drawn.
    """

    name = "pathological"
    classes_per_shard: int = number(1)

    def options(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        """So many classes there must be."""
        classes = len({*labels.tolist()})
        if self.classes_per_shard > classes:
            raise UserError(
                f"partition.classes_per_shard={self.classes_per_shard}: must be from 1 to "
                f"{classes}, the number of classes"
            )
        return {
            "num_classes_per_partition": self.classes_per_shard,
            "class_assignment_mode": "first-deterministic",
        }


@dataclass(frozen=True)
class Shard(Skewed):
    """``partition=shard``: images sorted by class, cut into pieces, dealt out (McMahan et al.).

    All shards have one size; images that fill no piece are left out.

    Attributes
    ----------
    pieces_per_shard
        Pieces of equal size for each shard. With 2, most shards hold one or two classes.
    """

    name = "shard"
    pieces_per_shard: int = number(1)

    def options(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        """A piece must not be empty."""
        pieces = self.num_shards * self.pieces_per_shard
        if pieces > len(labels):
            raise UserError(
                f"partition.pieces_per_shard={self.pieces_per_shard}: {self.num_shards} shards "
                f"would need {pieces} pieces, but there are only {len(labels)} training images"
            )
        return {"num_shards_per_partition": self.pieces_per_shard}


PARTITIONS: dict[str, Any] = {  # classes of Partition
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
        for i, shard in enumerate(shards):
            if shard.ndim != 1 or shard.dtype.kind not in "iu" or not len(shard):
                raise UserError(
                    f"{self.what}: shard {i} is {shard.dtype} {shard.shape}; allowed are whole "
                    "numbers in one dimension, at least one"
                )
        together = np.concatenate(shards).astype(np.int64)
        if together.min() < 0 or together.max() >= n or len(np.unique(together)) < len(together):
            raise UserError(
                f"{self.what}: its shards are not disjoint, or not all from 0 to {n - 1}, the "
                "positions of the labels"
            )
        return [np.sort(shard).astype(np.int64) for shard in shards]


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
