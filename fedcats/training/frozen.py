"""The frozen part of a model: run once for an image, not once for a step.

With ``model.trainable=classifier`` or ``head`` most of the operations are a forward pass that never
changes. Here it is run once for each image, mirrored and not, and the trained part gets the same
numbers that it would get from the whole model: bit for bit, unless a model's functions round
otherwise at the end of a batch than within (as the sigmoids of RegNet's Y do).
"""

import copy
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedcats.data import Images, flip_, normalise
from fedcats.training.numerics import settle


@dataclass(frozen=True)
class FrozenPart:
    """All of a model but its last module, which holds all trained tensors.

    Attributes
    ----------
    model
        The whole model.
    name
        Of that module in it.
    """

    model: nn.Module
    name: str

    @property
    def tail(self) -> nn.Module:
        """The module that is trained."""
        return self.model.get_submodule(self.name)

    def __call__(self, x: Tensor) -> Tensor:
        """What the tail gets for normalised images, (b, 3, h, w) float32."""
        tail = self.tail
        self.model.set_submodule(self.name, nn.Identity())
        try:
            with torch.no_grad():
                return cast(Tensor, self.model(x))
        finally:
            self.model.set_submodule(self.name, tail)


def find_frozen_part(
    model: nn.Module, trained: Sequence[str], example: Tensor
) -> FrozenPart | None:
    """The frozen part, where the model has one.

    Parameters
    ----------
    trained
        State-dict keys of the trained tensors.
    example
        (1, 3, h, w) float32, an image to try it on.

    Returns
    -------
    FrozenPart or None
        None when the trained tensors, and all modules in training mode, are not those of one
        module that ends the model.
    """
    modules = [name.rpartition(".")[0] for name in trained]
    # A dropout before the trained layer draws at each step, so it is no part of what is frozen.
    modules += [name for name, module in model.named_modules() if module.training]
    path = os.path.commonpath([name.replace(".", "/") for name in modules]).replace("/", ".")
    if not path or {*model.get_submodule(path).state_dict()} != {
        name.removeprefix(f"{path}.") for name in trained
    }:
        return None
    seen: list[Tensor] = []
    training = [module for module in model.modules() if module.training]
    hook = model.get_submodule(path).register_forward_hook(lambda _m, _x, out: seen.append(out))
    try:
        with torch.no_grad():
            ends = model.eval()(example) is seen[-1] and len(seen) == 1
    finally:
        hook.remove()
        for module in training:
            module.training = True
    return FrozenPart(model, path) if ends else None


@dataclass(frozen=True)
class Features:
    """What the frozen part gives for the images of a shard.

    Attributes
    ----------
    part
        Gives those of a batch of another size: a batch's bits depend on its size.
    images
        The shard.
    table
        (2, n, ..): as they are and mirrored, worked out in batches of ``size``; None: nothing is
        kept, `part` gives all.
    size
        Of the batches of ``table``.
    any_size
        Whether it serves for batches of other sizes, too, whose last bits are then others.
    """

    part: FrozenPart
    images: Images
    table: Tensor | None
    size: int
    any_size: bool = False

    def __call__(self, batch: Tensor, flipped: Tensor) -> Tensor:
        """For positions (b,) int64, mirrored where ``flipped`` (b,) bool."""
        if self.table is not None and (self.any_size or len(batch) == self.size):
            return self.table[flipped.long(), batch]
        device = next(self.part.model.parameters()).device
        x = normalise(flip_(self.images.pixels(batch), flipped).to(device))
        if device.type == "cpu":  # as `FastStep` does
            x = x.contiguous(memory_format=torch.channels_last)
        return self.part(x)


def work_out(part: FrozenPart, images: Images, size: int) -> Tensor:
    """The table of `Features`, (2, n, ..) float32, for batches of ``size``, at most n."""
    bare = Features(part, images, None, size)
    everything = torch.arange(len(images))
    rows = []
    for mirrored in (False, True):
        for batch in torch.split(everything, size):
            whole = torch.cat([batch, everything[: size - len(batch)]])
            rows.append(bare(whole, torch.full((size,), mirrored))[: len(batch)])
    return torch.cat(rows).view(2, len(images), *rows[0].shape[1:])


@dataclass(frozen=True)
class SharedTest:
    """Tests models that have the same frozen part.

    Attributes
    ----------
    name, tail
        The trained module, and its name in the model.
    inputs
        What it gets, batch by batch as in `predict`; so its numbers are the whole model's.
    """

    name: str
    tail: nn.Module
    inputs: list[Tensor]

    def predict(self, trained: Mapping[str, Tensor]) -> np.ndarray[Any, Any]:
        """As `predict` of a whole model with these trained tensors (by state-dict key)."""
        tail = copy.deepcopy(self.tail)
        tail.load_state_dict({k.removeprefix(f"{self.name}."): v for k, v in trained.items()})
        with torch.inference_mode():
            parts = [torch.softmax(tail(x), dim=1) for x in self.inputs]
        return torch.cat(parts).cpu().numpy()


def share_test(
    model: nn.Module,
    trained: Sequence[str],
    images: Images,
    batch_size: int = 64,
    threads: int = 1,
) -> SharedTest | None:
    """Run the frozen part of ``model``, which is used up, over all images.

    None where `find_frozen_part` finds none.

    Parameters
    ----------
    threads
        How many batches are worked on at once; each by one of `predict`'s threads.
    """
    device = next(model.parameters()).device
    batches = torch.split(torch.arange(len(images)), batch_size)
    part = find_frozen_part(model.eval(), trained, images.input(batches[0][:1], device))
    if part is None:
        return None
    tail = part.tail
    model.set_submodule(part.name, nn.Identity())  # once: not safe for several threads

    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return cast(Tensor, model(images.input(batch, device)))

    own = torch.get_num_threads()  # of each: a new thread would begin with another number
    with ThreadPoolExecutor(threads, initializer=settle, initargs=(own,)) as pool:
        return SharedTest(part.name, tail, list(pool.map(run, batches)))
