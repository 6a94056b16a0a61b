"""torchvision's image classifiers with the last layer replaced."""

import difflib
import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedcats.errors import UserError
from fedcats.models.lazy_torchvision import torchvision
from fedcats.models.linear import untrained_linear


def build(name: str, num_classes: int) -> nn.Module:
    """torchvision's classifier ``name`` with a last layer of ``num_classes`` outputs.

    Weights are random, drawn from torch's global generator; see `initial_weights`.
    """
    check_name(name)
    model = cast(nn.Module, torchvision.models.get_model(name, weights=None, **_options(name)))
    head_name, head = head_layer(model)
    new: nn.Module
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, head.kernel_size)  # type: ignore[arg-type]
    model.set_submodule(head_name, new)
    if hasattr(model, "num_classes"):
        model.num_classes = num_classes  # type: ignore[assignment]
    return model


def check_name(name: str) -> None:
    """UserError when torchvision has no classifier of that name."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        some = ["alexnet", "squeezenet1_1", "resnet18", "mobilenet_v3_small"]
        some = difflib.get_close_matches(name.lower(), names, 4) or some
        raise UserError(
            f"model.name={name}: not a torchvision classifier; allowed are, for example, "
            f"{', '.join(some)} (see torchvision.models.list_models())"
        )


def _options(name: str) -> dict[str, bool]:
    """The two with auxiliary classifiers go without, and take their input as ImageNet's do."""
    if name not in ("googlenet", "inception_v3"):
        return {}
    return {"aux_logits": False, "transform_input": True, "init_weights": True}


def left_out(name: str) -> tuple[str, ...]:
    """Beginnings of the state-dict keys that torchvision's files have and `build` leaves out."""
    return ("aux1.", "aux2.", "AuxLogits.") if _options(name) else ()


def head_layer(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the layer that gives the class scores: the last with weights."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def empty(name: str, num_classes: int, state: Mapping[str, Tensor]) -> nn.Module:
    """The model around the tensors of ``state`` (not copied), without the cost of a random init."""
    with _NothingFilled():
        model = build(name, num_classes)
    tensors = OrderedDict(state)
    tensors._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # for MNASNet
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def pool_first(model: nn.Module) -> None:
    """Let ReLUs follow the max-pooling that they precede: the same numbers, of fewer elements."""
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                if isinstance(module[i], nn.ReLU) and isinstance(module[i + 1], nn.MaxPool2d):
                    module[i], module[i + 1] = module[i + 1], module[i]


def in_pieces(model: nn.Module, images: int = 16) -> None:
    """Let the convolutions take so many images at a time: what they give stays in the cache.

    For models that have them as ``features``; the linear layers, whose weights are large, keep
    the whole batch.
    """
    if isinstance(part := getattr(model, "features", None), nn.Sequential):
        model.features = _InPieces(part, images)


def takes_pieces(model: nn.Module) -> bool:
    """Whether `in_pieces` has found something, so that a large batch takes little memory."""
    return isinstance(getattr(model, "features", None), _InPieces)


class _InPieces(nn.Module):
    def __init__(self, part: nn.Module, images: int) -> None:
        super().__init__()
        self.part, self.images = part, images

    def forward(self, x: Tensor) -> Tensor:
        """Any part that takes each image by itself."""
        return torch.cat([self.part(piece) for piece in torch.split(x, self.images)])


class _NothingFilled(TorchFunctionMode):
    """Tensors that are about to be replaced take no memory, and nothing is drawn for them.

    Those of which a model computes its form (RegNet's widths) are real.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def refusal(model: nn.Module, images: int, size: int) -> str:
    """Why ``model`` cannot train on a batch of so many images, size x size; empty if it can.

    Found by one forward pass, which leaves no trace in the model.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = torch.zeros(images, 3, size, size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            scores = torch.func.functional_call(model, buffers, (x,))
    except Exception as error:  # in the model's own words, and there are many kinds
        return brief(error)
    if isinstance(scores, Tensor) and scores.dim() == 2 and len(scores) == images:
        return ""
    return f"it gives a {type(scores).__name__} that is not one row of scores for each image"


def set_trainable(model: nn.Module, trainable: str) -> list[str]:
    """Freeze all but the named part, and put each part in its mode.

    Parameters
    ----------
    trainable
        ``all``; ``classifier``: the model's ``classifier`` (where there is none, the head);
        ``head``: the replaced last layer only.

    Returns
    -------
    list of str
        State-dict keys that training can change: the parameters of that part and the buffers
        (batch-norm statistics) in it, in state-dict order. This is what clients send.

    Notes
    -----
    Frozen parts are in evaluation mode, so that dropout and batch norm in them are fixed too.
    """
    head = head_layer(model)[0]
    if trainable == "all":
        prefix = ""
    elif trainable == "classifier" and hasattr(model, "classifier"):
        prefix = "classifier."
    else:
        prefix = f"{head}."
    model.eval()
    for name, module in model.named_modules():
        if f"{name}.".startswith(prefix) or not prefix:
            module.training = True
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefix))
    for module in model.modules():
        if type(module) is nn.Linear:  # frozen ones by a quicker way, in all that trains
            module.__dict__.pop("forward", None)
            if not module.weight.requires_grad:
                module.__dict__["forward"] = functools.partial(untrained_linear, module)
    return [name for name in model.state_dict() if name.startswith(prefix)]


def brief(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]
