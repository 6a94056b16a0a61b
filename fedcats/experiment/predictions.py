"""Testing models, none twice, and choosing among merges on held-out training images.

A model is known by what it was merged from (`Parts`), so its predictions are found in the store
without its weights: a grid of merges that was tested once costs nothing the second time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedcats.data import MEAN, STD, Images
from fedcats.metrics import scores
from fedcats.models import build
from fedcats.storage import content_key, says
from fedcats.tensors import State
from fedcats.training import recipe
from fedcats.training.frozen import SharedTest, share_test
from fedcats.training.loop import predict
from fedcats.training.numerics import rounding, settle

if TYPE_CHECKING:
    from fedcats.experiment.inputs import Run

Probabilities = NDArray[np.float32]

_PASS_MEMORY = 1e9  # of those that a thread tests in one pass over the photos

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What a model is the fold of: keys of updates in the store, in order, and the steps.

    A merge that is no fold has no steps, and ``rule`` says what it is.
    """

    keys: tuple[str, ...]
    steps: tuple[float, ...] = (1.0,)
    rule: str = ""


Candidate = tuple[Parts, Callable[[], State]]
"""A model to be tested; the second gives its trained tensors by state-dict key, if needed."""


def in_passes(this: Run, candidates: Sequence[T]) -> list[list[T]]:
    """What is tested together in one pass over the photos: as many models as fit, all workers busy.

    A thread holds up to 1 GB of models, at most eight of them.
    """
    size = sum(value.nbytes for value in this.initial.state.values())
    together = max(1, min(8, int(_PASS_MEMORY // size)))
    rounds = math.ceil(len(candidates) / (together * this.workers))
    count = min(len(candidates), rounds * this.workers)
    bounds = [round(i * len(candidates) / count) for i in range(count + 1)] if count else []
    return [list(candidates[start:stop]) for start, stop in itertools.pairwise(bounds)]


def probabilities(
    this: Run, candidates: Sequence[Candidate], images: Images
) -> list[Probabilities]:
    """Each model's class probabilities (n, classes), float32: from the store, else computed.

    Those that are not in the store are tested in one pass over the images, and kept there.
    """
    found = [kept_probabilities(this, parts, images) for parts, _ in candidates]
    missing = [i for i, kept in enumerate(found) if kept is None]
    if missing:
        settle(this.config.runner.threads)
        frozen = _frozen(this, images)
        states = (candidates[i][1]() for i in missing)
        if frozen is None:
            new = predict([_model(this, this.initial.state | state) for state in states], images)
        else:
            new = [frozen.predict(state) for state in states]
        for i, one in zip(missing, new, strict=True):
            parts = candidates[i][0]
            key = _predictions_key(this, parts, images)
            this.store.put(key, {"probabilities": torch.from_numpy(one)}, _about(parts, images))
            found[i] = one
    return cast(list[Probabilities], found)


def _model(this: Run, whole: State) -> nn.Module:
    model = build.empty(this.config.model.name, len(this.dataset.classes), whole)
    return model.to(this.device).to(memory_format=torch.channels_last)


def _frozen(this: Run, images: Images) -> SharedTest | None:
    """The frozen part's answers, which all models of a run share; worked out once."""
    if this.config.model.trainable == "all":
        return None
    with this.lock:
        if images.digest not in this.frozen:
            model = _model(this, this.initial.state)
            names, threads = this.trained_names, this.workers
            this.frozen[images.digest] = share_test(model, names, images, threads=threads)
        return this.frozen[images.digest]


def kept_probabilities(this: Run, parts: Parts, images: Images) -> Probabilities | None:
    """A model's predictions from the store, if they are there."""
    entry = this.store.get(_predictions_key(this, parts, images), says(_about(parts, images)))
    return None if entry is None else entry.tensors["probabilities"].numpy()


def _about(parts: Parts, images: Images) -> dict[str, Any]:
    return {"kind": "predictions", "examples": len(images), "updates": len(parts.keys)}


def _predictions_key(this: Run, parts: Parts, images: Images) -> str:
    config = this.config
    return content_key(
        {
            "kind": "predictions",
            "version": recipe.VERSION,
            "torch": torch.__version__,
            "model": [config.model.name, len(this.dataset.classes)],
            "base": this.base,
            "updates": parts.keys,
            "steps": parts.steps or parts.rule,
            "images": images.digest,
            "normalise": [MEAN, STD],
            "threads": config.runner.threads,
            **rounding(this.device),
        }
    )


def validation_scores(this: Run, predicted: Probabilities) -> dict[str, Any]:
    """Scores on the held-out training images, in short."""
    found = image_scores(this, this.validation, predicted)
    return {key: found[key] for key in ("accuracy", "loss", "n")}


def image_scores(this: Run, images: Images, predicted: Probabilities) -> dict[str, Any]:
    """Scores of predictions on these images."""
    return scores(images.labels, predicted, this.dataset.classes)
