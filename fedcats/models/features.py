"""Features of a photo out of a frozen model, and linear heads on them.

``pooled``: the map that the model's last part (``classifier``, ``fc``, ``heads``, ..) gets, its
mean over the places (AlexNet: 256); ``flat``: the same map as one vector (9,216); ``linear``: what
the first linear layer of that part gives (4,096), worth something where that part is pretrained.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedcats.models.build import head_layer
from fedcats.models.names import FEATURES
from fedcats.tensors import State


class _Found(Exception):
    """Ends a forward pass."""


def features(model: nn.Module, which: str, x: Tensor) -> Tensor:
    """The feature of each photo.

    Parameters
    ----------
    model
        In evaluation mode.
    which
        One of `FEATURES`.
    x
        (b, 3, h, w) float32, normalised.

    Returns
    -------
    Tensor
        (b, d) float32.
    """
    last = head_layer(model)[0].partition(".")[0]
    found: list[Tensor] = []
    maps: list[Tensor] = []

    def keep(_: nn.Module, seen: tuple[Tensor, ...]) -> None:
        found.append(seen[0])
        if which != "linear":
            raise _Found

    def keep_output(_: nn.Module, __: object, out: Tensor) -> None:
        found.append(out)
        raise _Found

    def keep_map(_: nn.Module, __: object, out: object) -> None:
        if isinstance(out, Tensor) and out.dim() == 4:
            maps[:] = [out]

    linear = [one for one in model.get_submodule(last).modules() if isinstance(one, nn.Linear)]
    hooks = [model.get_submodule(last).register_forward_pre_hook(keep)]
    if which == "linear" and linear:
        hooks.append(linear[0].register_forward_hook(keep_output))
    if which == "pooled":
        hooks += [one.register_forward_hook(keep_map) for one in model.children()]
    try:
        with torch.no_grad():
            model(x)
    except _Found:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    value = found[-1]
    if which != "pooled":
        return value.flatten(1)
    if value.dim() == 2 and maps and math.prod(maps[0].shape[1:]) == value.shape[1]:
        value = value.view(maps[0].shape)  # it was flattened on the way
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def head_of(state: State) -> str | None:
    """On which feature the head in ``state`` stands; None of a whole model's tensors."""
    return next((name for name in FEATURES if f"{name}.weight" in state), None)


def head_scores(table: Tensor, head: Mapping[str, Tensor], which: str) -> Tensor:
    """Class probabilities (n, C) float32 of photos with these features (n, d)."""
    scores = table.double() @ head[f"{which}.weight"].T + head[f"{which}.bias"]
    return torch.softmax(scores, dim=1).float()
