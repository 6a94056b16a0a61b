"""The training step on one GPU: the fast step, recorded once as a CUDA graph, then replayed.

At batch 4 the some 60 kernels of a step are so short that launching them one by one takes longer
than running them; a graph launches all at once. What is recorded is
`fedcats.training.fast.FastStep` itself, so linear layers take their update inside their backward
pass here too.

Not measured: no GPU was at hand when this was written. The bookkeeping (static inputs, the state
put back after recording, one graph for each batch size) is tested on the CPU with a recorder that
runs eagerly; `benchmarks/gpu.py` measures and checks the rest where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcats.training.fast import FastStep, own_linear_layers

if TYPE_CHECKING:
    from fedcats.training.recipe import Recipe

# Runs before recording, for what libraries set up on first use; torch's documentation takes 3.
WARM_UP = 3

# Takes a step that reads and writes fixed tensors; gives what repeats it, and the loss tensor that
# each repetition fills.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def make_cuda_step(model: nn.Module, recipe: Recipe) -> GraphStep | None:
    """Build the step for a model on a GPU, or None where it does not apply.

    Parameters
    ----------
    model : nn.Module
        Trained in place. Its forward pass must not wait for the GPU (no ``.item()``) nor depend
        on values, as for any CUDA graph.
    recipe : Recipe
        Of which learning rate, momentum, Nesterov and weight decay count here.

    Returns
    -------
    GraphStep or None
        None if the parameters are not all float32 on one CUDA device, or none is trainable.
    """
    parameters = list(model.parameters())
    placed = {(p.device, p.dtype) for p in parameters}
    if len(placed) != 1 or not any(p.requires_grad for p in parameters):
        return None
    ((device, dtype),) = placed
    if device.type != "cuda" or dtype != torch.float32:
        return None
    return GraphStep(model, recipe, record_graph)


@dataclass
class _Recording:
    x: Tensor
    y: Tensor
    loss: Tensor
    replay: Callable[[], None]


class GraphStep:
    """One SGD step on a batch, ``loss = step(x, y)``, replayed from a recording.

    Each batch size has its own recording, made when it is first seen; `set_lr` to another value
    discards them, since the learning rate is part of a recording. The same seed
    (``torch.manual_seed``) gives the same dropout masks and the same bits in every run.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, record: Recorder) -> None:
        self._model = model
        self._step = FastStep(model, own_linear_layers(model), recipe)
        self._lr = recipe.lr
        self._record = record
        self._recordings: dict[int, _Recording] = {}

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
        """
        recording = self._recordings.get(len(x))
        if recording is None:
            recording = self._recordings[len(x)] = self._new(x, y)
        recording.x.copy_(x, non_blocking=True)
        recording.y.copy_(y, non_blocking=True)
        recording.replay()
        return recording.loss.clone()  # the next replay overwrites the original

    def _new(self, x: Tensor, y: Tensor) -> _Recording:
        """Record the step at a batch's size; weights, momentum and generator stay as they are."""
        device = next(self._model.parameters()).device
        x, y = x.to(device, copy=True), y.to(device, copy=True)
        changed = [*self._model.parameters(), *self._model.buffers(), *self._step.state().values()]
        kept = [tensor.detach().clone() for tensor in changed]
        generator = (
            torch.cuda.default_generators[device.index]
            if device.type == "cuda"
            else torch.default_generator
        )
        random = generator.get_state()
        replay, loss = self._record(lambda: self._step(x, y))
        with torch.no_grad():
            for tensor, value in zip(changed, kept, strict=True):
                tensor.copy_(value)
        generator.set_state(random)
        return _Recording(x, y, loss, replay)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        if lr != self._lr:
            self._lr = lr
            self._step.set_lr(lr)
            self._recordings.clear()

    def state(self) -> dict[str, Tensor]:
        """Momentum buffers by parameter name; empty without momentum."""
        return self._step.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy momentum buffers into the step; see `FastStep.load_state`."""
        self._step.load_state(state)


def record_graph(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record ``step`` as a CUDA graph in full float32 (no TF32), with deterministic algorithms."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    graph = torch.cuda.CUDAGraph()
    with exact:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may work on the GPU meanwhile, with clients of their own.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = step()
    return graph.replay, loss
