"""Simulated attacks: what a hostile client does to its labels or to its update."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedcats.data import Images


@dataclass(frozen=True)
class Attack:
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

    name: str
    factor: float

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
