"""Weights from a file as people have them: read, never run, and fitted to a model or refused.

A state dict may lie in an entry of a checkpoint (``{"epoch": 3, "state_dict": {..}}``) and its
names may have a prefix (``module.`` of DataParallel, ``model.`` of Lightning); what was taken, and
what the file does not have, is said.
"""

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fedcats.errors import UserError
from fedcats.tensors import State

_MAX_DICTIONARIES = 10_000
_MAX_DEPTH = 32  # of dictionaries in dictionaries, and of a name's parts
_WITHOUT_EFFECT = "num_batches_tracked"  # files of old versions do not have it
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class FileWeights:
    """What a file has for a model.

    Attributes
    ----------
    state
        By the model's state-dict keys; a last layer of another number of classes is left out.
    missing
        Keys that have to come from elsewhere, those of such a last layer not among them.
    notes
        What a reader must know of it, in parts of a sentence.
    """

    state: State
    missing: list[str]
    notes: list[str] = field(default_factory=list)


def read_weights(
    path: Path,
    model: str,
    expected: Mapping[str, Tensor],
    head: str,
    left_out: tuple[str, ...] = (),
) -> FileWeights:
    """The file's tensors for a model.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or one that ``torch.save`` wrote; told apart by its first bytes.
    model
        Its name, for the messages.
    expected
        Its state dict.
    head
        Name of its last layer, which may have another shape in the file.
    left_out
        Beginnings of keys of which the model here has nothing.

    Raises
    ------
    UserError
        When the file cannot be read, holds something else than tensors, or weights that are not
        the model's.
    """
    loaded = _load(path)
    best: list[tuple[str, State, str]] = []
    most = 0
    for name, tensors in _state_dicts(loaded):
        count, prefixes = _prefixes(tensors, expected)
        if count >= most > 0 or count > most:
            best = [*(best if count == most else []), *((name, tensors, p) for p in prefixes)]
            most = count
    first = next(iter(expected))
    if not best:
        names = [key for _, tensors in _state_dicts(loaded) for key in tensors]
        if not names:
            raise UserError(f"{path}: holds no tensor by name within {_MAX_DEPTH} levels")
        raise UserError(
            f"{path}: not weights of {model}: none of its {len(names)} tensors is one of that "
            f"model, e.g. {names[0]}, where {first} is expected"
        )
    if len(best) > 1:
        places = ", ".join(f"{name}{prefix}" or "the top" for name, _, prefix in best[:4])
        raise UserError(
            f"{path}: holds the weights of {model} more than once (under {places}): save the one "
            "that is meant as a state dict of its own"
        )
    (name, tensors, prefix), *_ = best
    state = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    state = {key: value for key, value in state.items() if not key.startswith(left_out)}
    notes = [f"its {name[:-1]} is taken"] if name else []
    if prefix:
        notes.append(f"the names there begin with {prefix}")
        if others := len(tensors) - len(state):
            notes.append(f"{others} tensors with other names are not used")
    resized = {k for k in state.keys() & expected.keys() if state[k].shape != expected[k].shape}
    if new := {key for key in resized if key.startswith(f"{head}.")}:
        there, here = (len(one[min(new)]) for one in (state, expected))
        notes.append(f"the last layer, {head}, has {there} outputs there and starts at random")
        notes[-1] += f" with {here}"
    state = {key: value for key, value in state.items() if key not in new}
    if unknown := sorted(state.keys() - expected.keys()):
        raise UserError(
            f"{path}: not weights of {model}: {len(unknown)} of its {len(state)} tensors are "
            f"unknown there, e.g. {unknown[0]}"
        )
    if wrong := sorted(resized - new):
        shapes = [tuple(one[wrong[0]].shape) for one in (state, expected)]
        raise UserError(
            f"{path}: not weights of {model}: {wrong[0]} has the shape {shapes[0]}, expected is "
            f"{shapes[1]}"
        )
    missing = [
        key
        for key in expected
        if key not in state and key not in new and not key.endswith(_WITHOUT_EFFECT)
    ]
    if missing:
        learned = [key for key in missing if not key.endswith(_STATISTICS)]
        how = "start at random" if learned else "start as in an untrained model"
        notes.append(
            f"{len(missing)} of {len(expected)} tensors are not in the file and {how}, "
            f"e.g. {missing[0]}"
        )
    return FileWeights(state, missing, notes)


def check_values(what: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> State:
    """The tensors in the model's own dtypes, if they can be that.

    Raises
    ------
    UserError
        Naming ``what`` and the tensor that is not plain (sparse, quantized, without values), is
        of another kind than the model's (complex, integer) or not finite.
    """
    result: State = {}
    for key, value in state.items():
        like = expected[key]
        kind = ""
        if value.is_meta:
            kind = "has no values (it is on the meta device)"
        elif value.is_quantized or value.layout is not torch.strided:
            kind = f"is {'quantized' if value.is_quantized else 'sparse'}"
        elif like.is_floating_point() != value.is_floating_point() or value.is_complex():
            kind = f"is {str(value.dtype).removeprefix('torch.')}, a floating-point type is needed"
            kind = kind if like.is_floating_point() else f"{kind.split(',')[0]}, not an integer"
        if kind:
            raise UserError(f"{what}: {key} {kind}")
        result[key] = value.detach().to(like.dtype).contiguous()
        bad = int((~torch.isfinite(result[key])).sum())
        if bad:
            raise UserError(
                f"{what}: {key} is not finite: {bad} of its {value.numel()} values are NaN or "
                f"infinite{'' if value.dtype == like.dtype else f' as {like.dtype}'}"
            )
    return result


def _load(path: Path) -> object:
    """What the file holds: tensors and plain containers; never runs anything of it."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file of weights")
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device has no end
        raise UserError(f"{path}: is not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if not start:
            raise UserError(f"{path}: is empty")
        if path.suffix.lower() == ".safetensors" or start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's about its own old types
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # the readers raise many kinds
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """In one line; PyTorch's own words advise to run what the file holds."""
    text = str(getattr(error, "strerror", None) or error)
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", text)
        what = f", {found[1]}," if found else ""
        return (
            f"it holds something else than tensors{what} which fedcats never loads; save the "
            "model's state_dict() alone"
        )
    if "TorchScript" in text:
        return "it is a TorchScript program, which fedcats never runs; save its state_dict() alone"
    if isinstance(error, KeyError | EOFError | UnicodeDecodeError):  # of the unpickler
        return "it is no file of torch.save, or cut off"
    line = next(iter(text.splitlines()), type(error).__name__)
    return re.split(r"\. (?=[A-Z])", line)[0].rstrip(".")


def _state_dicts(loaded: object) -> Iterator[tuple[str, State]]:
    """Everything in the file that has tensors by name, with its place ("model.", "" the top).

    None deeper than any checkpoint has them, nor more: a dictionary may hold itself.
    """
    waiting, left = [("", loaded, 0)], _MAX_DICTIONARIES
    while waiting and left:
        where, found, depth = waiting.pop()
        if not isinstance(found, Mapping) or depth > _MAX_DEPTH:
            continue
        left -= 1
        tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
        if tensors:
            yield where, tensors
        inside = [(f"{where}{key}.", value, depth + 1) for key, value in found.items()]
        waiting += reversed(inside)


def _prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[int, list[str]]:
    """How many of the names are the model's, and behind which prefix (several, if as many)."""
    counts: Counter[str] = Counter()
    for key in tensors:
        if key.count(".") > _MAX_DEPTH:
            continue
        ends = [0, *(found.end() for found in re.finditer(r"\.", key))]
        counts.update(key[:end] for end in ends if key[end:] in expected)
    most = max(counts.values(), default=0)
    return most, [prefix for prefix, count in counts.items() if count == most and most]
