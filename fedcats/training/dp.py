"""Training with differential privacy: DP-SGD (Abadi et al. 2016, arXiv:1607.00133) by Opacus.

A step takes each photo by a coin of its own (Poisson sampling), clips each photo's gradient, adds
Gaussian noise to their sum and divides by the number of photos expected. Opacus' hooks work out
the gradients, its optimizer clips and adds noise; the step itself is the plain one. What it
promises is counted in `fedcats.metrics.epsilon`.

Opacus is imported by the first such training only.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from fedcats.models.build import brief
from fedcats.seeding import derive_seed
from fedcats.training.loop import BATCH, PlainStep
from fedcats.training.recipe import DpSgd, Recipe

_BYTES = 2**30  # of the photos' own gradients that are in memory at one time


class DpStep(PlainStep):
    """A step of DP-SGD, on pieces of a batch that fit into memory; see `batches`.

    Parameters
    ----------
    dp
        How much is clipped, and how much noise is added.
    seed
        Of the training: sampling and noise are drawn from it, so that who knows it can take the
        noise away.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        dp: DpSgd,
        seed: int,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        from opacus.optimizers import DPOptimizer

        super().__init__(model, recipe, start)
        parameters = [*self._named.values()]
        self._dp, self._seed = dp, seed
        self._photos = max(1, min(BATCH, _BYTES // sum(p.nbytes for p in parameters)))
        self._noise = torch.Generator(parameters[0].device)
        self._noise.manual_seed(derive_seed(seed, "noise"))
        for module in model.modules():
            if getattr(module, "inplace", False):  # it would overwrite what the hooks keep
                module.inplace = False  # type: ignore[assignment]
        self._optimizer = DPOptimizer(
            torch.optim.SGD(parameters),  # its step is never taken
            noise_multiplier=dp.noise,
            max_grad_norm=dp.clip,
            expected_batch_size=dp.expected,
            generator=self._noise,
        )

    def batches(self, steps: range, photos: int) -> Iterator[Tensor]:
        """Positions of the photos of these steps, int64, in pieces that `__call__` takes.

        Each step has a generator of its own. Nobody may be drawn, and more than fit at once.
        """
        for number in steps:
            draw = torch.Generator().manual_seed(derive_seed(self._seed, "sample", number))
            taken = torch.rand(photos, dtype=torch.float64, generator=draw) < self._dp.rate
            pieces = torch.split(taken.nonzero().flatten(), self._photos)
            for last in range(len(pieces)):
                self._optimizer.signal_skip_step(last + 1 < len(pieces))
                yield pieces[last]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Clipped gradients are added up; after the last piece of a batch noise and update."""
        loss = torch.zeros((), device=y.device)
        if len(y):
            with self._hooks():
                total = cross_entropy(self._model(x), y, reduction="sum")
                total.backward()  # type: ignore[no-untyped-call]
            loss = total.detach() / len(y)
        else:
            for p in self._named.values():
                p.grad_sample = p.new_zeros((0, *p.shape))  # type: ignore[attr-defined]
        if self._optimizer.pre_step():
            self._update()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        from opacus.grad_sample import GradSampleHooks

        hooks = GradSampleHooks(self._model, loss_reduction="sum")
        try:
            with warnings.catch_warnings():  # of a first layer, and of what is slow
                warnings.simplefilter("ignore", UserWarning)
                yield
        finally:
            hooks.remove_hooks()
            for module in self._model.modules():
                module.__dict__.pop("activations", None)  # of a pass that failed

    def state(self) -> dict[str, Tensor]:
        """Momentum, and where the noise is."""
        return {**super().state(), "noise": self._noise.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave; of nothing nothing."""
        super().load_state({name: value for name, value in state.items() if name != "noise"})
        if "noise" in state:
            self._noise.set_state(state["noise"].cpu())


def refusal(model: nn.Module, size: int) -> str:
    """Why ``model`` cannot be trained so on images of size x size; empty if it can.

    Found by a look for layers that mix the photos of a batch, and by one step without noise on two
    grey images, which leaves no trace in the model.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            return f"{name} ({type(module).__name__}) mixes the photos of a batch"
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    recipe = Recipe(1, 2, 1.0, 0.0, False, 0.0, 0, 1.0, False)
    try:
        with torch.random.fork_rng(devices=[]):
            step = DpStep(model, recipe, DpSgd(1.0, 0.0, 1.0, 2.0), 0)
            for batch in step.batches(range(1), 2):
                step(torch.zeros(len(batch), 3, size, size), torch.zeros(len(batch)).long())
    except Exception as error:  # in Opacus' words, and there are many kinds
        return brief(error)
    finally:
        model.load_state_dict(kept)
    return ""
