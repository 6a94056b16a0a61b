"""Simulated attacks: what a hostile client does to its labels or to its update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedcats.limits import Limited, number, one_of

if TYPE_CHECKING:
    from torch import Tensor

    from fedcats.data import Images

ATTACKS = ("label_flip", "scale", "sign_flip")


@dataclass(frozen=True)
class Attack(Limited):
    """An attack.

    Attributes
    ----------
    name
        ``label_flip``: trains on wrong labels, class c of k becomes k - 1 - c. ``scale``: sends
        ``start + factor * (update - start)``. ``sign_flip``: sends ``start - factor * (update -
        start)``.
    factor
        Above 0; not used by ``label_flip``.
    """

    where = "attack."
    name: str = one_of(*ATTACKS)
    factor: float = number(0, above=True)

    @property
    def on_update(self) -> bool:
        """Whether the training is honest and only what is sent is not."""
        return self.name != "label_flip"

    def images(self, images: Images, num_classes: int) -> Images:
        """What the client trains on."""
        if self.on_update:
            return images
        return replace(images, labels=num_classes - 1 - images.labels)

    def update(
        self, start: Mapping[str, Tensor], update: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the client sends; integer tensors (batch-norm's counters) stay as they are."""
        factor = -self.factor if self.name == "sign_flip" else self.factor
        return {
            name: start[name] + factor * (value - start[name])
            if value.dtype.is_floating_point
            else value
            for name, value in update.items()
        }
