"""After each epoch the model is tested on photos that it is not trained on.

Nothing of the training changes by it: no random number is drawn, every layer is as it was, and so
are the weights, byte for byte.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedcats.data import Images
from fedcats.metrics.scores import mean_loss
from fedcats.results import Validation
from fedcats.training.frozen import FrozenPart
from fedcats.training.loop import BATCH, answers, predict

_KEPT_BYTES = 2**30  # of what a frozen part gives; of more, nothing is kept


def validator(
    model: nn.Module, images: Images, part: FrozenPart | None = None
) -> Callable[[], Validation | None] | None:
    """What tests the model as it is when called; None without images.

    Parameters
    ----------
    model
        On the device on which it is trained.
    images
        That it is tested on, as at the end of a run.
    part
        Where the model has one, its frozen part, which is run once and not after each epoch.

    Returns
    -------
    Callable
        Gives accuracy, mean cross entropy (nats) and number of photos; None for a model without
        finite answers, about which it is for the training to complain.
    """
    if not len(images):
        return None
    device = next(model.parameters()).device
    batches = torch.split(torch.arange(len(images)), BATCH)
    size = 0 if part is None else part(images.input([0], device)).nbytes
    kept = None
    if part is not None and size * len(images) <= _KEPT_BYTES:
        kept = [part(images.input(batch, device)) for batch in batches]

    def test() -> Validation | None:
        if part is None or kept is None:
            (found,) = predict([model], images)
        else:
            (found,) = answers([part.tail], kept)
        if not np.isfinite(found).all():
            return None
        return {
            "accuracy": float(np.mean(found.argmax(axis=1) == images.labels)),
            "loss": mean_loss(images.labels, found),
            "n": len(images),
        }

    return test
