"""Merging sub-models: one fold, and the rules that give its steps.

Every merge here is the same streaming fold over the clients' updates, ``w <- w + s_i (w_i - w)``,
starting at ``w = w_1``. A rule says how large the step ``s_i`` is.
"""

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import torch
from torch import Tensor

from fedcats.merging.rules import Accumulator, Merge, Rule

# Of a tensor, folded at one time: in the cache, where whole temporaries take twenty times as long,
# and too few for torch to share out to threads that clients keep busy.
_ELEMENTS = 2**15


class Fold(Accumulator):
    """Streaming merge in float64: one model's memory, however many clients.

    Parameters
    ----------
    rule
        Its `step` is asked for each update.
    start
        The model before the first update; needed for a rule whose first step is not 1.

    Notes
    -----
    Accumulated in float64 and rounded once at the end, so each merged float32 weight is within
    one unit in the last place of the exact result. Integer tensors (batch-norm's step counters)
    are merged by the same rule and rounded to the nearest integer.
    """

    def __init__(self, rule: Rule, start: Mapping[str, Tensor] | None = None) -> None:
        self._rule = rule
        self._start = start
        self._sum: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._examples = 0
        self.steps: list[float] = []

    def add(self, update: Mapping[str, Tensor], examples: int, file: Path | None = None) -> None:
        """Fold in one more update.

        Parameters
        ----------
        update
            Tensors by state-dict key: the same keys and shapes in every call.
        examples
            Number of images that the client trained on, at least 1.
        file
            Not needed.
        """
        if examples < 1:
            raise ValueError(f"a client with {examples} examples cannot be merged")
        self._examples += examples
        step = self._rule.step(len(self.steps) + 1, examples, self._examples)
        if not self.steps:
            first = update if step == 1.0 else self._start
            if first is None:
                raise ValueError("a rule whose first step is not 1 needs a model to start from")
            self._sum = {k: v.to(torch.float64, copy=True).contiguous() for k, v in first.items()}
            self._dtypes = {name: value.dtype for name, value in update.items()}
        if update.keys() != self._sum.keys():
            raise ValueError("the update's keys differ from those of the first update")
        if self.steps or step != 1.0:
            for name, value in update.items():
                if value.shape != self._sum[name].shape:
                    raise ValueError(f"{name} has another shape than in the first update")
                flat = (t.reshape(-1) for t in (self._sum[name], value))
                for total, part in zip(*(torch.split(t, _ELEMENTS) for t in flat), strict=True):
                    total += part.to(torch.float64).sub_(total).mul_(step)
        self.steps.append(step)

    def result(self) -> dict[str, Tensor]:
        """The merged tensors, in the dtypes of the first update; ValueError when empty."""
        if not self.steps:
            raise ValueError("nothing to merge: no update was added")
        return {name: rounded(value, self._dtypes[name]) for name, value in self._sum.items()}

    def finish(self) -> Merge:
        """The result, with its steps."""
        return Merge(self.result(), self.steps)

    def exact(self) -> dict[str, Tensor]:
        """The merged tensors before they are rounded, float64: not a copy."""
        return self._sum

    @property
    def effective_weights(self) -> list[float]:
        """How much of each update is in the result, in the order in which they were added."""
        return effective_weights(self.steps)


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 tensor in another dtype, an integer one by the nearest integer."""
    return (value if dtype.is_floating_point else value.round()).to(dtype)


def effective_weights(steps: Sequence[float]) -> list[float]:
    """Weights ``c_i`` with ``w = sum(c_i w_i)`` for the fold's steps; they add up to 1.

    Where the fold starts from a model of its own, they add up to less: the rest is that model's.

    For ten clients and ``beta = 0.5``: 0.2, 0.2, 0.4, .., 25, 50 % (the paper's Section on Polyak
    averaging does not say it, but the last client is half of the merged model).
    """
    weights: list[float] = []
    for step in steps:
        weights = [(1.0 - step) * weight for weight in weights]
        weights.append(step)
    return weights


def effective_number(weights: Sequence[float]) -> float:
    """``N_eff = 1 / sum(c_i^2)``: how many equally weighted clients the merge amounts to."""
    return 1.0 / sum(weight * weight for weight in weights)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """L2 norm of the difference of all tensors together."""
    differences = (a[name].double() - b[name].double() for name in b)
    return math.sqrt(sum(float((difference**2).sum()) for difference in differences))


def has_outgrown(update: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> bool:
    """Whether a weight is ten times as large as the largest there, and as 1: worth a closer look.

    Training hardly does that; a model multiplied by a large number, always.
    """
    return any(
        _largest(value) > 10.0 * max(1.0, _largest(like[name]))
        for name, value in update.items()
        if value.dtype.is_floating_point  # no batch-norm counters
    )


def _largest(value: Tensor) -> float:
    return max(abs(float(bound)) for bound in value.aminmax()) if value.numel() else 0.0


def check_names(names: Set[str], wanted: Set[str]) -> None:
    """Refuse other state-dict keys than the wanted ones; ValueError."""
    missing, unknown = sorted(wanted - names), sorted(names - wanted)
    if missing or unknown:
        raise ValueError(f"wrong keys: missing {missing[:3]}, unknown {unknown[:3]}")


def check_update(
    update: Mapping[str, Tensor], like: Mapping[str, Tensor], max_norm: float | None = None
) -> None:
    """Refuse an update that must not be merged.

    Parameters
    ----------
    update
        What a client sent.
    like
        Where it started: it must have the same keys, shapes and dtypes.
    max_norm
        Largest L2 norm, over all tensors together, of its difference from there.

    Raises
    ------
    ValueError
        For missing or unknown keys, another shape or dtype, values that are not finite, and a
        larger norm.
    """
    check_names(update.keys(), like.keys())
    for name, value in update.items():
        if value.shape != like[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, not {tuple(like[name].shape)}"
            )
        if value.dtype != like[name].dtype:
            raise ValueError(f"{name} has dtype {value.dtype}, not {like[name].dtype}")
        # One pass without temporaries: NaN and infinity show in the smallest and largest value.
        if value.numel() and not all(torch.isfinite(bound) for bound in value.aminmax()):
            raise ValueError(f"{name} has values that are not finite")
    if max_norm is not None:
        norm = distance(update, like)
        if norm > max_norm:
            raise ValueError(
                f"its update is {norm:.6g} from where it started, strategy.max_norm is {max_norm:g}"
            )
