"""``torch.optim.SGD`` in its functional form.

The optimizer class imports PyTorch's compiler when it is first used, which processes do without
(see `fedcats.models.lazy_torchvision`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from fedcats.training.recipe import Recipe


class Sgd:
    """One SGD step on parameters that have a gradient; bits are those of ``torch.optim.SGD``.

    Attributes
    ----------
    lr
        Learning rate of the steps to come.
    buffers
        Momentum buffers by parameter name; zeros before the first step, empty without momentum.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], recipe: Recipe, *, fused: bool | None = None
    ) -> None:
        self.lr = recipe.lr
        self.buffers = {
            name: torch.zeros_like(parameter)
            for name, parameter in parameters.items()
            if recipe.momentum
        }
        self._parameters = dict(parameters)
        self._recipe = recipe
        self._fused = fused

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters in place."""
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        buffers: list[Tensor | None] = []
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                parameters.append(parameter)
                gradients.append(parameter.grad)
                buffers.append(self.buffers.get(name))
        sgd(
            parameters,
            gradients,
            buffers,
            fused=self._fused,
            lr=self.lr,
            momentum=self._recipe.momentum,
            nesterov=self._recipe.nesterov,
            weight_decay=self._recipe.weight_decay,
            dampening=0,
            maximize=False,
        )
