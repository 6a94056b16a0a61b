"""The same training step, with less memory traffic.

A training step at batch 4 is bound by memory for linear layers: 55 of AlexNet's 57 million
parameters sit in them, do 8 % of the operations, and a plain step reads or writes each some eight
times (forward, gradient of the input, a fresh gradient of the weight, the optimizer). The step
here computes the same numbers with the least traffic, one read in the forward pass and one read
and write in the backward pass:

- a linear layer updates its weight inside its own backward pass, ``W <- W - lr * dY^T X``, and
  never stores the gradient;
- with one thread, forward and backward walk the weight in blocks of rows that fit in the cache, so
  the gradient of the input (which needs the *old* weight) and the update share one read;
- with several, they take a few blocks of rows for each thread in one batched product: of a single
  one with so few rows of the input MKL gives nearly all to one thread.

Besides, images travel in channels-last layout, which saves the convolutions their reordering and
makes pooling ten times faster, and `keep_freed_memory` spares each step some thousand page faults.
Everything else (convolutions, biases, normalisation) goes through `fedcats.training.sgd`. The plain
loop in ``training.py`` is the readable twin and the reference of the tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcats.models import linear
from fedcats.models.linear import sliced, sliced_product
from fedcats.training.sgd import Sgd

if TYPE_CHECKING:
    from fedcats.training.recipe import Recipe

# Bytes of a weight that one block holds, so that its second use is served from a core's L2 cache;
# 300 kB is 8 rows of AlexNet's first linear layer.
BLOCK_BYTES = 300 * 1024


def keep_freed_memory(megabytes: int = 16) -> None:
    """Tell glibc to keep freed blocks of up to 16 MB for the next step; elsewhere do nothing.

    By default they go back to the kernel, and each step asks for them again, page by page.
    """
    trim_threshold, mmap_threshold = -1, -3  # as in malloc.h
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, megabytes * 2**20)
        libc.mallopt(trim_threshold, 256 * 2**20)


def make_fast_step(model: nn.Module, recipe: Recipe) -> FastStep | None:
    """Build the fast step for a model on the CPU, or None where it does not apply.

    Parameters
    ----------
    model : nn.Module
        Trained in place; its parameters stay the module's own and hold the new weights after
        each step. Parameters with ``requires_grad=False`` stay frozen.
    recipe : Recipe
        Of which learning rate, momentum, Nesterov and weight decay count here.

    Returns
    -------
    FastStep or None
        None if the model has no trainable plain ``nn.Linear``, or has parameters that are not
        float32 on the CPU: then the plain loop is the one to run.
    """
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
        return None
    layers = own_linear_layers(model)
    return FastStep(model, layers, recipe) if layers else None


def own_linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers with a trainable, plain weight that no other module has, by weight name."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        # A subclass may use its weight elsewhere, a reparametrized layer has no weight of its own.
        if type(module) is nn.Linear
        and isinstance(weight := module._parameters.get("weight"), nn.Parameter)
        and weight.requires_grad
        and weight.is_contiguous()
        and uses[id(weight)] == 1
    }


class FastStep:
    """One SGD step on a batch: ``loss = step(x, y)``; made by `make_fast_step`.

    The weights equal those of the plain loop up to rounding (the sum over the output units in the
    gradient of a layer's input is taken block by block, and convolutions run in channels-last
    layout), and the same seed gives the same dropout masks: the number and order of the random
    draws do not change. An ``F.dropout`` *call* on images is the exception, since it draws in the
    order of memory; the ``nn.Dropout`` module is covered.

    For a fixed number of threads the bits are the same in every run.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Linear], recipe: Recipe) -> None:
        self._model = model
        self._layers = {name: _LinearUpdate(name, layer, recipe) for name, layer in layers.items()}
        self._dropouts = [m for m in model.modules() if type(m) is nn.Dropout]
        rest = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in layers
        }
        self._sgd = Sgd(rest, recipe, fused=True)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch.

        Parameters
        ----------
        x : Tensor, float32, (batch, ...)
        y : Tensor, int64, (batch,)
            Class indices.

        Returns
        -------
        Tensor, float32, ()
            Mean cross entropy of the batch, before the update.

        Raises
        ------
        RuntimeError
            If the model uses a linear layer twice in one forward pass, or its weight both inside
            and outside of the layer: such a model needs the plain loop.
        """
        self._model.zero_grad()
        if x.dim() == 4 and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        with self._patched():
            loss = F.cross_entropy(self._model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
        for layer in self._layers.values():
            layer.finish()
        self._sgd.step()
        return loss.detach()

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Replace `forward` of the covered modules, for the length of one step."""
        patches: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        for layer in self._layers.values():
            patches[layer.module] = layer.begin()
        for dropout in self._dropouts:
            patches[dropout] = _logical_order(dropout.forward)
        for module, forward in patches.items():
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module in patches:
                del module.__dict__["forward"]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        for layer in self._layers.values():
            layer.lr = lr
        self._sgd.lr = lr

    def state(self) -> dict[str, Tensor]:
        """Momentum buffers by parameter name, as the step holds them; empty without momentum."""
        velocities = {name: layer.velocity for name, layer in self._layers.items()}
        own = {name: velocity for name, velocity in velocities.items() if velocity is not None}
        return own | self._sgd.buffers

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy momentum buffers into the step; an empty ``state`` is a fresh start.

        Raises
        ------
        ValueError
            If the names are not exactly those of `state`, or a shape differs.
        """
        own = self.state()
        if not state:
            state = {name: torch.zeros_like(buffer) for name, buffer in own.items()}
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise ValueError(f"momentum buffers do not belong to this model and recipe: {odd}")
        for name, buffer in own.items():
            if buffer.shape != state[name].shape:
                raise ValueError(
                    f"momentum buffer {name} has shape {tuple(state[name].shape)}, "
                    f"expected {tuple(buffer.shape)}"
                )
            buffer.copy_(state[name])


def _logical_order(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # Dropout fills its mask in the order of memory; the plain loop's is the logical one.
    return lambda x: forward(x.contiguous())


class _LinearUpdate:
    """A linear layer that takes its SGD step inside its backward pass."""

    def __init__(self, name: str, module: nn.Linear, recipe: Recipe) -> None:
        self.name = name
        self.module = module
        self.lr = recipe.lr
        self.momentum = recipe.momentum
        self.nesterov = recipe.nesterov
        self.weight_decay = recipe.weight_decay
        self.velocity = torch.zeros_like(module.weight) if recipe.momentum else None
        self._used = False
        self._views: dict[int, list[tuple[Tensor, Tensor | None]]] = {}

    def begin(self) -> Callable[[Tensor], Tensor]:
        """Return the layer's forward for one training step."""
        self._used = False
        return self._forward

    def finish(self) -> None:
        """Take the step where the model used the weight without its layer, as a Swin does."""
        gradient = self.module.weight.grad
        if gradient is None:
            return
        if self._used:
            raise RuntimeError(
                f"{self.name} is used outside of its layer; train with the plain loop"
            )
        self._step(self.module.weight.detach(), self.velocity, gradient)

    def _forward(self, x: Tensor) -> Tensor:
        if self._used:
            raise RuntimeError(f"{self.name} is used twice in one step; train with the plain loop")
        self._used = True
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = _LinearFunction.apply(flat, self.module.weight, self.module.bias, self)
        return y.view(*x.shape[:-1], y.shape[-1])

    def rows(self, batch: int) -> int:
        """Rows of the weight in one block.

        Several threads take the weight whole: walking it together would gain nothing, and a
        thousand meetings of the threads cost seconds on a busy machine.
        """
        threads = torch.get_num_threads()
        if threads > 1 or batch > linear.BLOCK_BATCH or self.module.weight.device.type != "cpu":
            return self.module.out_features
        return max(8, BLOCK_BYTES // (4 * self.module.in_features) // 8 * 8)

    def output(self, x: Tensor) -> Tensor:
        """``x W^T``, of the whole weight."""
        return sliced_product(x, self._slices())

    def input_gradient(self, dy: Tensor) -> Tensor:
        """``dy W``, of the whole weight."""
        slices = self._slices()
        parts = dy.reshape(len(dy), len(slices), -1).transpose(0, 1)
        return torch.bmm(parts, slices).sum(0)

    def _slices(self) -> Tensor:
        """The whole weight as (k, out/k, in): each thread takes some of them."""
        weight = self.module.weight.detach()
        threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
        count = 1 if threads == 1 else 1 << (2 * threads - 1).bit_length()
        return sliced(weight, count)

    def blocks(self, batch: int) -> list[tuple[Tensor, Tensor | None]]:
        """Views of the weight and its momentum buffer, block by block; made once, as 500 cost."""
        rows = self.rows(batch)
        weight = self.module.weight.detach()
        views = self._views.get(rows)
        if views is None or views[0][0].data_ptr() != weight.data_ptr():
            weights = torch.split(weight, rows)
            velocities = (
                [None] * len(weights) if self.velocity is None else torch.split(self.velocity, rows)
            )
            views = self._views[rows] = list(zip(weights, velocities, strict=True))
        return views

    def update(self, w: Tensor, v: Tensor | None, dy_t: Tensor, x: Tensor) -> None:
        """``torch.optim.SGD`` on a block of rows whose gradient is ``dy_t @ x``."""
        if not self.weight_decay and not self.nesterov:  # the gradient is used once: never stored
            if v is None:
                w.addmm_(dy_t, x, alpha=-self.lr)
            else:
                w.add_(v.addmm_(dy_t, x, beta=self.momentum), alpha=-self.lr)
            return
        self._step(w, v, dy_t @ x)

    def _step(self, w: Tensor, v: Tensor | None, g: Tensor) -> None:
        """``torch.optim.SGD`` with a gradient ``g``, which is used up."""
        if self.weight_decay:
            g.add_(w, alpha=self.weight_decay)
        if v is not None:
            v.mul_(self.momentum).add_(g)
            g = g.add_(v, alpha=self.momentum) if self.nesterov else v
        w.add_(g, alpha=-self.lr)


class _LinearFunction(torch.autograd.Function):
    """``y = x W^T + b``; the backward pass returns no gradient of W but takes W's step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _LinearUpdate
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        rows = layer.rows(len(x))
        if rows == weight.shape[0]:
            y = layer.output(x)
        else:
            y = x.new_empty(x.shape[0], weight.shape[0])
            for (w, _), part in zip(layer.blocks(len(x)), torch.split(y, rows, 1), strict=True):
                torch.mm(x, w.t(), out=part)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        layer: _LinearUpdate = ctx.layer
        rows = layer.rows(len(x))
        walk = rows < dy.shape[1]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x) if walk else layer.input_gradient(dy)
        columns = torch.split(dy.t().contiguous(), rows)
        for (w, v), part, column in zip(
            layer.blocks(len(x)), torch.split(dy, rows, 1), columns, strict=True
        ):
            if dx is not None and walk:
                dx.addmm_(part, w)  # before the update: the gradient is that of the old weight
            layer.update(w, v, column, x)
        return dx, None, dy.sum(0) if ctx.needs_input_grad[2] else None, None
