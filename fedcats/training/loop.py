"""The one local training loop and the one evaluation, for every client and for the baseline."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedcats.data import Images, draw_flips, flip_, normalise
from fedcats.errors import RunError
from fedcats.results import Validation
from fedcats.seeding import derive_seed
from fedcats.training.cuda import make_cuda_step
from fedcats.training.fast import make_fast_step
from fedcats.training.frozen import Features
from fedcats.training.recipe import DpSgd, Epoch, Recipe, Step
from fedcats.training.sgd import Sgd

BATCH = 64
"""Photos that are tested at once: a probability's last bits depend on it."""

_KEPT_BYTES = 8e9  # of images on a GPU


class PlainStep:
    """The readable twin of the fast step, and its reference in the tests.

    Parameters
    ----------
    start
        Where the client started, by parameter name; needed for ``recipe.proximal_mu`` only.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, start: Mapping[str, Tensor] | None = None
    ) -> None:
        self._model = model
        self._mu = recipe.proximal_mu
        self._start = start or {}
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._sgd = Sgd(self._named, recipe)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero the gradients, forward, backward, update."""
        self._model.zero_grad()
        loss = cross_entropy(self._model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._update()
        return loss.detach()

    def _update(self) -> None:
        if self._mu:  # the gradient of the proximal term
            for name, p in self._named.items():
                assert p.grad is not None
                p.grad.add_(p.detach() - self._start[name], alpha=self._mu)
        self._sgd.step()

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from now on."""
        self._sgd.lr = lr

    def state(self) -> dict[str, Tensor]:
        """Momentum buffers by parameter name; empty without momentum."""
        return self._sgd.buffers

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, buffer in state.items():
            self._sgd.buffers[name].copy_(buffer)


def make_step(model: nn.Module, recipe: Recipe) -> Step:
    """The fast step where it covers model and recipe, on a GPU a recorded one, else the plain."""
    cuda = make_cuda_step(model, recipe)
    return cuda or make_fast_step(model, recipe) or PlainStep(model, recipe)


def train(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    seed: int,
    *,
    done: tuple[Epoch, ...] = (),
    optimizer_state: dict[str, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
    after_epoch: Callable[[tuple[Epoch, ...], Step], None] | None = None,
    features: Features | None = None,
    begins: int = 0,
    steps: int = 0,
    dp: DpSgd | None = None,
    validate: Callable[[], Validation | None] | None = None,
    step_for: Callable[[nn.Module, Recipe], Step] = make_step,
) -> tuple[Epoch, ...]:
    """Train in place: cross entropy and SGD over shuffled batches, `recipe.epochs` times.

    Parameters
    ----------
    model
        With frozen parts marked by `fedcats.models.build.set_trainable`; changed in place.
    images
        The client's shard.
    seed
        Of this client and round. Every epoch has its own generators derived from it (order, flips,
        dropout), so training can go on after any epoch with nothing but weights and momentum.
    done, optimizer_state
        Epochs that were trained before and the step's state after them, to continue from.
    start
        Where the client started, by parameter name: for ``recipe.proximal_mu``, which the fast
        step does not know.
    after_epoch
        Called with the epochs so far and the step, e.g. to report or to save.
    features
        Where a part of the model is frozen: what that part gives for ``images``. The numbers are
        the same without it. The step is then one of the trained module, and knows its names.
    begins
        Epochs that went before, in earlier rounds: the learning rate decays on from there.
    steps
        Steps in all, in epochs of equal length that may end within a pass over the images; 0: each
        epoch is one pass.
    validate
        Called after each epoch for its `Epoch.validation`; no part of its seconds.

    Returns
    -------
    tuple of Epoch
        All epochs, the earlier ones included.

    Raises
    ------
    RunError
        When the loss is no longer finite.
    """
    device = next(model.parameters()).device
    trained, prefix = (model, "") if features is None else (features.part.tail, features.part.name)
    near = {name.removeprefix(f"{prefix}."): value for name, value in (start or {}).items()}
    draw: Callable[[range, int], Iterator[Tensor]]
    draw = functools.partial(_batches_of, recipe=recipe, seed=seed)
    if dp is not None:
        from fedcats.training.dp import DpStep

        step: Step = (private := DpStep(trained, recipe, dp, seed, near))
        draw = private.batches
    elif recipe.proximal_mu:
        step = PlainStep(trained, recipe, near)
    else:
        step = step_for(trained, recipe)
    step.load_state(optimizer_state or {})
    first: Tensor | None = None
    labels = torch.from_numpy(np.ascontiguousarray(images.labels)).to(device)
    pixels = read_pixels(images, device, keep=device.type != "cpu")
    each = recipe.steps(len(images))
    for epoch in range(len(done), recipe.epochs):
        started = time.perf_counter()
        step.set_lr(recipe.lr_at(begins + epoch))
        total = steps or each * recipe.epochs
        part = range(epoch * total // recipe.epochs, (epoch + 1) * total // recipe.epochs)
        flips = torch.Generator().manual_seed(derive_seed(seed, "flip", epoch))
        losses = torch.zeros((), dtype=torch.float64, device=device)
        examples = 0
        # Dropout layers know no generator of their own: they get torch's, forked and seeded.
        with torch.random.fork_rng(devices=[]):
            # On the CPU without a look at every kind of accelerator, which takes a millisecond.
            generators = torch.default_generator if device.type == "cpu" else torch
            generators.manual_seed(derive_seed(seed, "dropout", epoch))
            for batch in draw(part, len(images)):
                flipped = draw_flips(len(batch), flips)
                if features is None:
                    x = normalise(flip_(pixels(batch), flipped))
                else:
                    x = features(batch, flipped)
                loss = step(x, labels[batch])
                first = loss if first is None else first
                losses += loss.double() * len(batch)
                examples += len(batch)
        lost = losses.item()  # once an epoch: a GPU would be waited for each time
        if not math.isfinite(lost):
            unfit = epoch == 0 and first is not None and not math.isfinite(first.item())
            raise RunError(f"the training loss is {lost} {_why(recipe, epoch, unfit)}")
        loss_per_image = lost / max(examples, 1)
        seconds = time.perf_counter() - started
        tested = validate() if validate else None
        done = (*done, Epoch(loss_per_image, examples, len(part), seconds, tested))
        if after_epoch is not None:
            after_epoch(done, step)
    return done


def _why(recipe: Recipe, epoch: int, unfit: bool) -> str:
    if unfit:
        return (
            "before the first step: the weights that it starts from (model.weights, or the merge "
            "of the round before) are not finite or far too large"
        )
    large = ["lr", *(k for k in ("momentum", "weight_decay", "proximal_mu") if getattr(recipe, k))]
    return f"in epoch {epoch + 1}: lower " + " or ".join(f"train.{key}" for key in large)


def read_pixels(images: Images, device: torch.device, *, keep: bool) -> Callable[[Tensor], Tensor]:
    """``pixels(batch)`` of a training: a copy (b, 3, h, w), uint8, on the device.

    With ``keep`` all of them go to the device at once, if they take at most 8 GB there.
    """
    if not keep or len(images) * images.pixels([0]).nbytes > _KEPT_BYTES:
        return lambda batch: images.pixels(batch).to(device)
    everything = images.pixels(np.arange(len(images))).to(device)
    return lambda batch: everything[batch.to(device)]


def _batches_of(part: range, n: int, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """The batches of some steps, counted over passes over n photos, each with its order."""
    each = recipe.steps(n)
    for number in range(part.start // each, -(-part.stop // each)) if part else ():
        order = torch.Generator().manual_seed(derive_seed(seed, "order", number))
        one = batches(n, recipe.batch_size, recipe.drop_last, order)
        first = number * each
        yield from itertools.islice(one, max(0, part.start - first), part.stop - first)


def batches(n: int, size: int, drop_last: bool, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled positions 0 .. n-1 in batches of ``size``, each an int64 tensor."""
    for batch in torch.split(torch.randperm(n, generator=generator), min(size, n)):
        if len(batch) == size or not drop_last:
            yield batch


def predict(
    models: Sequence[nn.Module], images: Images, batch_size: int = BATCH
) -> list[np.ndarray[Any, Any]]:
    """Each model's class probabilities of the photos in order, in one pass over the photos.

    Parameters
    ----------
    models
        On one device, of one precision.

    Returns
    -------
    list of numpy.ndarray
        For each model (n, classes), float32.
    """
    first = next(models[0].parameters())
    device, dtype = first.device, first.dtype
    batches = torch.split(torch.arange(len(images)), batch_size)
    return answers(models, (images.input(batch, device).to(dtype) for batch in batches))


def answers(models: Sequence[nn.Module], inputs: Iterable[Tensor]) -> list[np.ndarray[Any, Any]]:
    """As `predict`, of what the models get, batch by batch."""
    training = [module for model in models for module in model.modules() if module.training]
    parts: list[list[Tensor]] = [[] for _ in models]
    try:
        for model in models:
            model.eval()
        with torch.inference_mode():
            for x in inputs:
                for model, own in zip(models, parts, strict=True):
                    own.append(torch.softmax(model(x).float(), dim=1))
    finally:
        for module in training:
            module.training = True
    return [torch.cat(own).cpu().numpy() for own in parts]
