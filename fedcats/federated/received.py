"""What others send, read with care: whatever is wrong with it is a ValueError, and nothing else.

The only place where the server looks into a reply. It trusts neither types, ranges nor lengths,
and takes no more memory for what it reads than it has asked for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedcats.merging.fold import check_names
from fedcats.results import Validation
from fedcats.tensors import State
from fedcats.training.recipe import Epoch

_LONGEST = 500  # characters of somebody else's words
_LARGEST = float(np.finfo(np.float32).max)  # a loss is a mean of float32 numbers

R = TypeVar("R")


@dataclass(frozen=True)
class Reply:
    """What a client says of its update, beside the weights; see `fedcats.training.update.Update`.

    Attributes
    ----------
    key
        Of the update in the client's own store.
    """

    key: str
    examples: int
    epochs: tuple[Epoch, ...]
    reused: bool
    resumed: int
    damaged: bool


def printable(text: str) -> str:
    """Somebody else's words: one line of printable characters, not too long."""
    cut = text[: 4 * _LONGEST]
    line = " ".join("".join(c if c.isprintable() else " " for c in cut).split())
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " .."


def read_reply(content: RecordDict, examples: int, epochs: int, held: int = 0) -> Reply:
    """The ``info`` of a client that has ``examples`` images and was to train ``epochs`` epochs.

    ``held``: of how many photos each of them was to be tested on.
    """
    info = record(content, "info", ConfigRecord)
    claimed = get(info, "examples", int)
    if claimed != examples:
        raise ValueError(f"it says that it has {claimed} examples, but it has {examples}")
    trained = _json(get(info, "epochs", str), list)
    if len(trained) != epochs:
        raise ValueError(f"it says that it trained {len(trained)} epochs instead of {epochs}")
    return Reply(
        get(info, "key", str),
        examples,
        tuple(_epoch(epoch, examples, held) for epoch in trained),
        get(info, "reused", bool),
        between(get(info, "resumed", int), 0, epochs, "resumed"),
        get(info, "damaged", bool),
    )


def read_tensors(content: RecordDict, like: State, name: str = "arrays") -> State:
    """The reply's ``arrays``, which have the keys, shapes and dtypes of ``like``, if only meta."""
    arrays = record(content, name, ArrayRecord)
    check_names(arrays.keys(), like.keys())
    return {key: _tensor(key, arrays[key], value) for key, value in like.items()}


def read_counts(text: str, classes: Sequence[str], most: int) -> dict[str, int]:
    """How many photos of each class a site says it has: at least one in all, at most ``most``."""
    said = _json(text, dict)
    counts = {name: between(get(said, name, int), 0, most, name) for name in classes}
    between(sum(counts.values()), 1, most, "number of photos")
    return counts


def record(content: RecordDict, name: str, kind: type[R]) -> R:
    """The record of this name and kind."""
    found = content.get(name)
    if not isinstance(found, kind):
        raise ValueError(f"its reply lacks {name!r}" if found is None else f"its {name} is another")
    return found


def get(values: Mapping[str, Any], name: str, kind: type[R]) -> R:
    """The value of this name, of exactly this type: neither a bool nor NaN is an int."""
    if name not in values:
        raise ValueError(f"its reply lacks {name!r}")
    if type(value := values[name]) is not kind:
        raise ValueError(f"its {name} is {_shown(value)}, which is no {kind.__name__}")
    return value


def get_bytes(values: Mapping[str, Any], name: str, lengths: Sequence[int]) -> list[bytes]:
    """The list of this name, of as many byte strings with these lengths."""
    found: list[Any] = get(values, name, list)
    if [len(one) if type(one) is bytes else -1 for one in found] != [*lengths]:
        raise ValueError(f"its {name} has other lengths than it should")
    return found


def between(value: int, low: int, high: int, what: str) -> int:
    """The value, which must be from ``low`` to ``high``."""
    if not low <= value <= high:
        raise ValueError(f"its {what} is {_shown(value)}: allowed is {low} .. {high}")
    return value


def _epoch(values: object, examples: int, held: int) -> Epoch:
    names = ["loss", "examples", "steps", "seconds"]
    if not isinstance(values, dict) or {*values} - {"validation"} != {*names}:
        raise ValueError(f"its epochs have {_shown(values)}, not {', '.join(names)}")
    loss, seconds = (_real(values[name], name) for name in ("loss", "seconds"))
    steps = between(get(values, "steps", int), 0, examples, "steps")
    # With Poisson sampling a step may have any of them.
    count = between(get(values, "examples", int), 0, examples * max(1, steps), "epoch's examples")
    return Epoch(loss, count, steps, seconds, _validation(values.get("validation"), held))


def _validation(values: object, held: int) -> Validation | None:
    if values is None:  # not asked for, or its model's answers were not finite
        return None
    if not held or not isinstance(values, dict) or {*values} != {"accuracy", "loss", "n"}:
        raise ValueError(f"its epochs have the validation {_shown(values)}")
    accuracy, loss = (_real(values[name], name) for name in ("accuracy", "loss"))
    if accuracy > 1:
        raise ValueError(f"its accuracy is {_shown(accuracy)}: allowed is 0 .. 1")
    n = between(get(values, "n", int), held, held, "number of held-out photos")
    return {"accuracy": accuracy, "loss": loss, "n": n}


def _real(value: object, what: str) -> float:
    """A number that is neither negative, NaN nor beyond float32."""
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST:  # type: ignore[operator]
        raise ValueError(f"its {what} is {_shown(value)}: allowed is a number of at least 0")
    return float(value)  # type: ignore[arg-type]


def _json(text: str, kind: type[R]) -> R:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its reply cannot be read: {error}") from None
    if type(found) is not kind:
        raise ValueError(f"its reply has {_shown(found)} for a JSON {kind.__name__}")
    return found


def _tensor(name: str, array: Array, like: Tensor) -> Tensor:
    """Of NumPy's format; its header, which may say terabytes, is looked at first."""
    wanted = torch.empty(0, dtype=like.dtype).numpy().dtype
    try:
        stream = BytesIO(array.data)
        read_header = _HEADERS[np.lib.format.read_magic(stream)]
        shape, _, dtype = read_header(stream)
        if (shape, dtype) == (like.shape, wanted):
            return torch.from_numpy(array.numpy()).contiguous()
    except Exception as error:  # of any kind: NumPy's parser is not made for hostile headers
        raise ValueError(f"{name} cannot be read: {_shown(error)}") from None
    if shape != like.shape:
        raise ValueError(f"{name} has shape {shape}, not {tuple(like.shape)}")
    raise ValueError(f"{name} has dtype {dtype}, not {wanted}")


_HEADERS: dict[tuple[int, int], Callable[..., tuple[Any, bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _shown(value: object) -> str:
    return printable(repr(value))
