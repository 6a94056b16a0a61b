"""A model of a finished run in a form that other programs take, with a card of what it is."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedcats.data.transforms import MEAN, SIZE, STD, normalise
from fedcats.errors import RunError, UserError, first_line
from fedcats.models import build
from fedcats.tensors import save

if TYPE_CHECKING:
    from fedcats.results import Results


def described(model: str, classes: Sequence[str]) -> dict[str, Any]:
    """What a model is, and what it takes."""
    return {"model": model, "classes": [*classes], "size": SIZE, "mean": [*MEAN], "std": [*STD]}


def metadata(model: str, classes: Sequence[str]) -> dict[str, str]:
    """The same, as a file of weights says it: in one entry, since several have no fixed order."""
    return {"fedcats": json.dumps(described(model, classes))}


MOST_IN_ONE_FILE = 1_900_000_000
"""Bytes of weights that ``model.onnx`` itself takes; larger ones stand beside it."""


class Ready(nn.Module):
    """A model from the pixels of an image to the probabilities of its classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, 224, 224) uint8 to (b, classes) float32."""
        x = normalise(pixels).contiguous(memory_format=torch.channels_last)
        return torch.softmax(self.model(x), dim=1)


def export(folder: Path, results: Results, out: Path, form: str, name: str | None = None) -> str:
    """Write a model and its card.

    Parameters
    ----------
    folder, results
        Of the run.
    out
        A folder, made when missing; it must be empty.
    form
        ``hub``: ``model.safetensors`` with torchvision's names, ``config.json``, ``README.md``;
        ``torchscript``: ``model.pt``, from pixels to probabilities, and ``README.md``;
        ``onnx``: ``model.onnx``, the same, with the preprocessing in its metadata.
    name
        Of the model in ``results["models"]``; by default the first merged one.

    Returns
    -------
    str
        The model's name.

    Raises
    ------
    UserError
        When there is no such model, its weights are not at hand, the folder is not empty, or a
        package is missing.
    RunError
        When PyTorch cannot write this architecture as ONNX.
    """
    from fedcats.experiment.predicting import weights_of
    from fedcats.report import view
    from fedcats.report.card import card

    if form == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise UserError(
            "--format onnx: the package onnxscript is not installed; allowed are hub, torchscript, "
            "or pip install onnxscript"
        )
    models = results["models"]
    name = name or next(iter([*view.merged(results), *models]), "")
    if name not in models:
        raise UserError(f"--model {name}: allowed are {', '.join(models)}")
    state = weights_of(folder, results, name)
    if state is None:
        raise UserError(f"--model {name}: its weights are neither in {folder} nor in the store")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is not an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    kind, classes = results["config"]["model"]["name"], results["data"]["classes"]
    what = described(kind, classes)
    if form == "hub":
        save(state, out / "model.safetensors", metadata(kind, classes))
        (out / "config.json").write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")
    else:
        model = Ready(build.empty(kind, len(classes), state).eval())
        blank = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch: that there are newer ways
            if form == "onnx":
                _write_onnx(model, blank, out / "model.onnx", metadata(kind, classes))
            else:
                traced = torch.jit.trace(model, blank)  # type: ignore[no-untyped-call]
                torch.jit.save(traced, out / "model.pt")
    text = card(results, name, form, what)
    (out / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    return name


def _write_onnx(model: Ready, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    try:
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False,
            input_names=["pixels"], output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("photos")},),
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunError(f"--format onnx: PyTorch cannot: {first_line(error)}") from error
    assert program is not None
    program.model.metadata_props.update(metadata)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    program.save(path, external_data=size > MOST_IN_ONE_FILE)
