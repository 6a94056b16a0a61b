"""What a client works out beside its update: parts, each an entry of the store with its own key.

A rule names those that it needs (`fedcats.merging.rules.Rule.needs`), a task those that its client
is to give (`Task.sends`). A part is worked out once, like an update, and found in the store after
that; its shapes and dtypes are known before, so that a site's can be checked.

=====================  =============================================================================
``sums:FEATURE:S``     of each class the sums of the start model's features over S subsets of the
                       client's photos, and the numbers of photos: (S, C, d + 1) float64
``gram:FEATURE``       factor R of the features with a 1 behind each, ``R^T R = sum phi phi^T``
``inputs``             of each trained linear layer R of its inputs in the client's own model
``fisher``             mean squared gradient of a drawn label's log probability, of each parameter
``fp16, int8, ..``     the update itself in fewer bytes, see `fedcats.merging.encodings`
=====================  =============================================================================
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fedcats.data import Images
from fedcats.data.transforms import SIZE
from fedcats.errors import RunError
from fedcats.merging import encodings
from fedcats.merging.fold import check_update
from fedcats.merging.gram import packed, packed_size, stacked
from fedcats.merging.rules import UPDATE
from fedcats.models import build
from fedcats.models.features import features
from fedcats.seeding import derive_seed
from fedcats.storage import Store, content_key
from fedcats.tensors import State
from fedcats.training import update as updates
from fedcats.training.loop import BATCH
from fedcats.training.numerics import settle
from fedcats.training.update import Task

_VERSION = 1  # of the computations here: raise it when one gives other numbers
_OF_PHOTOS = ("sums", "gram")  # the client's training has no part in these


def kind(part: str) -> str:
    """``sums`` of ``sums:pooled:1``."""
    return part.partition(":")[0]


def trains(task: Task) -> bool:
    """Whether what is to be sent has anything to do with the client's training."""
    return any(kind(part) not in _OF_PHOTOS for part in task.sends)


def part_key(task: Task, part: str, images: Images, update: str) -> str:
    """Key in the store of a part; ``update``: that of the client's update."""
    about = {"kind": "part", "part": part, "version": _VERSION}
    if kind(part) not in _OF_PHOTOS:
        about |= {"update": update}
    if kind(part) in encodings.ENCODINGS:
        return content_key({**about, "seed": _seed(task, part), "start": task.start})
    return content_key({**about, **updates.environment(task, images)})


def part_keys(task: Task, images: Images, update: str) -> dict[str, str]:
    """By name, of all parts of the task."""
    return {p: part_key(task, p, images, update) for p in task.sends if p != UPDATE}


def work_out(task: Task, store: Store, update: str) -> dict[str, str]:
    """All parts of the task: found in the store, or worked out now and kept; their keys by name.

    Parameters
    ----------
    update
        Key of the client's update; empty where nothing needs it.
    """
    images = updates.task_images(task)
    keys = part_keys(task, images, update)
    for part, key in keys.items():
        with store.claim(key):
            if store.get(key) is None:
                settle(task.threads)
                found = _work_out(task, part, store, images, update)
                about = {"kind": "part", "part": part, "task": task.name, "round": task.round}
                store.put(key, found, {**about, "examples": len(images)})
    return keys


def read_part(store: Store, key: str) -> State:
    """A part that the store holds; RunError when it is gone."""
    entry = store.get(key)
    if entry is None:
        raise RunError(f"store {store.root}: a part of an update is gone; run the same again")
    return entry.tensors


def shapes(task: Task, part: str, parameters: Set[str], start: State, examples: int) -> State:
    """What a part of ``examples`` photos holds, by shapes and dtypes: meta tensors.

    ``parameters``: names of those of the whole model.
    """
    if kind(part) in encodings.ENCODINGS:
        return encodings.shapes(part, start, parameters, _seed(task, part))
    if kind(part) == "fisher":
        named = {name: value for name, value in start.items() if name in parameters}
        return {name: torch.empty_like(value, device="meta") for name, value in named.items()}
    if kind(part) in _OF_PHOTOS:
        width = _width(task.model, task.num_classes, part.split(":")[1]) + 1
        if kind(part) == "gram":
            return {"factor": _vector(packed_size(examples, width))}
        shape = (int(part.split(":")[2]), task.num_classes, width)
        return {"sums": torch.empty(shape, dtype=torch.float64, device="meta")}
    return {
        layer: _vector(1 + packed_size(places * examples, width))
        for layer, (places, width) in _layers(task.model, task.num_classes, tuple(start)).items()
    }


def check(
    task: Task,
    part: str,
    found: Mapping[str, Tensor],
    parameters: Set[str],
    start: State,
    examples: int,
    max_norm: float | None,
) -> None:
    """Refuse a part of the right shapes that must not be merged; ValueError.

    Values that are not finite, counts that cannot be, and of an encoded update what `check_update`
    refuses.
    """
    for name, value in found.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{part}: {name} has values that are not finite")
    if kind(part) == "fisher" and any(bool((value < 0).any()) for value in found.values()):
        raise ValueError("fisher: has negative values")
    if kind(part) == "sums":
        counts = found["sums"][..., -1]
        if bool((counts < 0).any()) or bool((counts != counts.round()).any()):
            raise ValueError(f"{part}: has numbers of photos that are none")
        if int(counts.sum()) != examples:
            raise ValueError(f"{part}: is of {int(counts.sum())} photos, not of {examples}")
    if kind(part) == "inputs":
        for layer, (places, _) in _layers(task.model, task.num_classes, tuple(start)).items():
            if float(found[layer][0]) != places * examples:
                raise ValueError(f"inputs: {layer} has {float(found[layer][0]):g} rows")
    if kind(part) in encodings.ENCODINGS:
        size = sum(value.numel() for name, value in start.items() if name in parameters)
        encodings.check(part, found, size, _seed(task, part))
        moved = encodings.decode(part, found, start, parameters)
        update = {name: (old.double() + moved[name]).to(old.dtype) for name, old in start.items()}
        check_update(update, start, max_norm)


def feature_table(model: nn.Module, which: str, images: Images) -> Tensor:
    """Features of photos as they are, (n, d) float32, on the CPU; the model is left in eval()."""
    device = next(model.parameters()).device
    model.eval()
    batches = torch.split(torch.arange(len(images)), BATCH)
    return torch.cat([features(model, which, images.input(b, device)).cpu() for b in batches])


def _seed(task: Task, part: str) -> int:
    return derive_seed(task.training_seed, kind(part))


def _vector(size: int) -> Tensor:
    return torch.empty((size,), dtype=torch.float64, device="meta")


def _parameters(task: Task, store: Store, start: State) -> frozenset[str]:
    model = updates.model_of(task, store)
    return frozenset(name for name, _ in model.named_parameters() if name in start)


def _loaded(task: Task, store: Store, trained: Mapping[str, Tensor]) -> nn.Module:
    """The process's model with these trained tensors, in evaluation mode, on the task's device."""
    model = updates.model_of(task, store).to(task.device)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in trained.items():
            state[name].copy_(value)
    return model.eval()


def _work_out(task: Task, part: str, store: Store, images: Images, update: str) -> State:
    start = updates.get_weights(store, task.start)
    if kind(part) in _OF_PHOTOS:
        table = _own_features(task, part.split(":")[1], store, images, [*start])
        if kind(part) == "gram":
            return {"factor": packed(table)}
        return {"sums": _sums(table, images.labels, task.num_classes, int(part.split(":")[2]))}
    own = updates.read(store, update)
    if own is None:
        raise RunError(f"store {store.root}: the update that {part} is of is gone")
    if kind(part) in encodings.ENCODINGS:
        names = _parameters(task, store, start)
        return encodings.encode(part, own.tensors, start, names, _seed(task, part))
    model = _loaded(task, store, own.tensors)
    if part == "fisher":
        layers = _layers(task.model, task.num_classes, tuple(start))
        rows = [name for name, (places, _) in layers.items() if places == 1]
        return _fisher(model, images, rows, [*start], _seed(task, part))
    return _inputs(model, images, [*start])


_features_of_process: dict[tuple[str, ...], Tensor] = {}  # of the last photos: several parts' own


def _own_features(
    task: Task, which: str, store: Store, images: Images, trained: Sequence[str]
) -> Tensor:
    """The start model's features of the client's photos with a 1 behind each, float64."""
    key = (task.base, which, images.digest, task.device, str(task.threads))
    if key not in _features_of_process:
        base = updates.get_weights(store, task.base)
        model = _loaded(task, store, {name: base[name] for name in trained})
        table = feature_table(model, which, images).double()
        _features_of_process.clear()
        _features_of_process[key] = torch.cat([table, table.new_ones(len(table), 1)], dim=1)
    return _features_of_process[key]


def _sums(table: Tensor, labels: NDArray[Any], classes: int, subsets: int) -> Tensor:
    """The j-th photo of a class belongs to its subset j modulo S."""
    sums = table.new_zeros(subsets, classes, table.shape[1])
    for label in range(classes):
        own = table[torch.from_numpy(labels == label)]
        for subset in range(subsets):
            sums[subset, label] = own[subset::subsets].sum(0)
    return sums


def _inputs(model: nn.Module, images: Images, trained: Sequence[str]) -> State:
    """By linear layer the number of rows, and behind it the packed factor of its inputs."""
    rows: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def keep(name: str, layer: nn.Linear, x: Tensor) -> None:
        x = x.flatten(0, -2).double().cpu()
        if layer.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        rows[name] = stacked([*rows.get(name, ()), x])
        counts[name] = counts.get(name, 0) + len(x)

    device = next(model.parameters()).device
    with torch.no_grad(), _watched(model, trained, keep):
        for batch in torch.split(torch.arange(len(images)), BATCH):
            model(images.input(batch, device))
    count = {name: torch.tensor([number], dtype=torch.float64) for name, number in counts.items()}
    return {name: torch.cat([count[name], packed(torch.cat(one))]) for name, one in rows.items()}


@contextlib.contextmanager
def _watched(
    model: nn.Module, trained: Sequence[str], keep: Callable[[str, nn.Linear, Tensor], None]
) -> Iterator[None]:
    """Meanwhile ``keep(name, layer, input)`` is called for each call of a trained linear layer."""
    hooks = [
        layer.register_forward_pre_hook(
            lambda own, seen, name=name: keep(name, cast(nn.Linear, own), seen[0])
        )
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight" in trained
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@functools.lru_cache(maxsize=8)
def _layers(model: str, classes: int, trained: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """By trained linear layer that is called: inputs of a photo, and width of one with its 1."""
    found: dict[str, tuple[int, int]] = {}

    def keep(name: str, layer: nn.Linear, x: Tensor) -> None:
        places = found.get(name, (0, 0))[0] + x.shape[:-1].numel()
        found[name] = (places, x.shape[-1] + (layer.bias is not None))

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        bare = build.build(model, classes).eval()
        with _watched(bare, trained, keep):
            bare(torch.zeros(1, 3, SIZE, SIZE))
    return found


@functools.lru_cache(maxsize=8)
def _width(model: str, classes: int, which: str) -> int:
    """Number of features."""
    with torch.random.fork_rng(devices=[]):
        bare = build.build(model, classes).eval()
    return features(bare, which, torch.zeros(1, 3, SIZE, SIZE)).shape[1]


def _fisher(
    model: nn.Module, images: Images, rows: Sequence[str], trained: Sequence[str], seed: int
) -> State:
    """By parameter, float32.

    Of a linear layer with one row of input x for each photo (``rows``) the gradient is
    ``delta x^T``, so its squares are ``delta^2 (x^2)^T``; a convolution's is worked out for each
    photo from its input and delta. With parameters of other layers the photos go one by one.
    """
    device = next(model.parameters()).device
    wanted = {name: p for name, p in model.named_parameters() if name in trained}
    layers = {name: model.get_submodule(name) for name in rows}
    layers |= {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and f"{name}.weight" in trained
    }
    apart = {f"{name}.{own}" for name in layers for own in ("weight", "bias")}
    others = {name: p for name, p in wanted.items() if name not in apart}
    for name, p in model.named_parameters():
        p.requires_grad_(name in others)
    total = {name: torch.zeros_like(p) for name, p in wanted.items()}
    draw = torch.Generator().manual_seed(seed)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(layer: nn.Module, x: tuple[Tensor, ...], out: Tensor, name: str) -> Tensor:
        out = out if out.requires_grad else out.detach().requires_grad_()
        seen[name] = (x[0].detach().clone(), out)
        return out.clone()  # which the next layer may change in place

    hooks = [
        layer.register_forward_hook(functools.partial(keep, name=name))
        for name, layer in layers.items()
    ]
    try:
        for batch in torch.split(torch.arange(len(images)), 1 if others else BATCH):
            scores = torch.log_softmax(model(images.input(batch, device)), dim=1)
            shares = scores.detach().exp().cpu()
            labels = torch.cat([torch.multinomial(one, 1, generator=draw) for one in shares])
            picked = scores.gather(1, labels.to(device)[:, None]).sum()
            wrt = [*others.values(), *(out for _, out in seen.values())]
            grads = torch.autograd.grad(picked, wrt, allow_unused=True)
            for name, grad in zip(others, grads, strict=False):
                if grad is not None:
                    total[name] += grad**2
            for (name, (x, _)), delta in zip(seen.items(), grads[len(others) :], strict=True):
                weight, bias = _squares(layers[name], x, delta)
                total[f"{name}.weight"] += weight
                if f"{name}.bias" in total:
                    total[f"{name}.bias"] += bias
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (value / len(images)).contiguous().cpu() for name, value in total.items()}


def _squares(layer: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over photos of the squared gradients of weight and bias, from input and output's."""
    if isinstance(layer, nn.Conv2d):
        how = (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight = torch.zeros_like(layer.weight)
        for own, one in zip(torch.split(x, 1), torch.split(delta, 1), strict=True):
            weight += conv2d_weight(own, layer.weight.shape, one, *how) ** 2  # type: ignore[no-untyped-call]
        return weight, (delta.sum((2, 3)) ** 2).sum(0)
    return (delta**2).T @ x**2, (delta**2).sum(0)
