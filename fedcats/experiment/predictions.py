"""Testing models, none twice.

A model is known by what it was merged from (`Parts`), so its predictions are found in the store
without its weights: a grid of merges that was tested once costs nothing the second time.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedcats.data import MEAN, STD, Images
from fedcats.metrics import scores
from fedcats.models import build
from fedcats.models.features import head_of, head_scores
from fedcats.results import Scores, Validation
from fedcats.storage import Store, content_key, says
from fedcats.tensors import State
from fedcats.training import recipe
from fedcats.training.frozen import SharedTest, share_test
from fedcats.training.loop import BATCH, predict
from fedcats.training.memory import memory
from fedcats.training.numerics import rounding, settle
from fedcats.training.parts import feature_table

if TYPE_CHECKING:
    from fedcats.experiment.inputs import Inputs

Probabilities = NDArray[np.float32]

_MEMORY = 8e9  # bytes of models that `prepare` makes at a time
_PASS_MEMORY = 1e9  # of those that a thread tests in one pass over the photos
_TRIED = 4  # photos
_LARGE = 256  # photos at once for the linear layers, where the bits need not be those of `BATCH`


@dataclass(frozen=True)
class Parts:
    """What a model is the fold of: keys of updates in the store, in order, and the steps.

    A merge that is no fold has no steps, and ``rule`` says what it is.
    """

    keys: tuple[str, ...]
    steps: tuple[float, ...] = (1.0,)
    rule: str = ""


@dataclass(frozen=True)
class Candidate:
    """A model to be tested; ``state`` gives its trained tensors by state-dict key, if needed."""

    parts: Parts
    state: Callable[[], State]


class Predictor:
    """The predictions of a run's models: from the store, else computed once and kept there.

    Attributes
    ----------
    inputs, store
        Of the run.
    precision
        ``float32``, or ``bfloat16``: weights and what is worked out of them, probabilities are
        float32 all the same. With a frozen part it is always float32, which takes little time.
    """

    def __init__(self, inputs: Inputs, store: Store, precision: str = "float32") -> None:
        self.inputs = inputs
        self.store = store
        self.precision = precision if inputs.config.model.trainable == "all" else "float32"
        self._frozen: dict[str, SharedTest | None] = {}  # by the images' digest
        self._tables: dict[tuple[str, str], torch.Tensor] = {}  # by feature and images' digest
        self._lock = threading.Lock()  # one thread at a time works out a frozen part's answers

    @property
    def dtype(self) -> torch.dtype:
        """Of the precision."""
        return cast(torch.dtype, getattr(torch, self.precision))

    def pool(self) -> ThreadPoolExecutor:
        """As many threads as there are workers."""
        return ThreadPoolExecutor(self.inputs.workers)

    def predict(
        self,
        candidates: Sequence[Candidate],
        sets: Sequence[Images],
        done: Callable[[int], None] = lambda _: None,
        prepare: Callable[[Sequence[Parts]], None] | None = None,
    ) -> list[list[Probabilities]]:
        """Test models, of those with equal parts one.

        Parameters
        ----------
        sets
            The images that each model is tested on.
        done
            Called with the number of candidates tested so far.
        prepare
            Called before the states of some models are asked for, of 8 GB of them at most.

        Returns
        -------
        list of list of ndarray
            For each candidate and each of ``sets`` the class probabilities (n, classes), float32.
        """
        distinct = {one.parts: one for one in candidates}
        kept = {parts: [self._kept(parts, images) for images in sets] for parts in distinct}
        found = {
            parts: cast(list[Probabilities], ones)
            for parts, ones in kept.items()
            if all(one is not None for one in ones)
        }
        missing = [one for parts, one in distinct.items() if parts not in found]

        def test(together: Sequence[Candidate]) -> list[tuple[Probabilities, ...]]:
            keep = functools.cache if len(sets) > 1 else lambda state: state
            loaded = [Candidate(one.parts, keep(one.state)) for one in together]
            return list(zip(*(self._probabilities(loaded, images) for images in sets), strict=True))

        done(sum(one.parts in found for one in candidates))
        initial = self.inputs.initial.state
        size = sum(initial[name].nbytes for name in self.inputs.trained_names)
        step = max(1, int(_MEMORY // size) if prepare else len(missing))
        with self.pool() as pool:
            for start in range(0, len(missing), step):
                group = missing[start : start + step]
                if prepare:
                    prepare([one.parts for one in group])
                passes = self._passes(group)
                for together, tested in zip(passes, pool.map(test, passes), strict=True):
                    found |= {one.parts: list(t) for one, t in zip(together, tested, strict=True)}
                    done(sum(one.parts in found for one in candidates))
        return [found[one.parts] for one in candidates]

    def can_test(self, one: Candidate, images: Images) -> bool:
        """Whether its predictions, or the updates that it is made of, are in the store."""
        there = all(key in self.store for key in one.parts.keys)
        return there or self._kept(one.parts, images) is not None

    def answers(self, state: State) -> bool:
        """Whether a model with these trained tensors can be used at all: tried on a few photos.

        Whatever its weights are, a model without finite answers is useless.
        """
        test = self.inputs.dataset.test
        some = test.subset(range(min(_TRIED, len(test))))
        settle(self.inputs.config.runner.threads)
        if which := head_of(state):
            table = feature_table(self._start_model(), which, some)
            return finite([head_scores(table, state, which).numpy()])
        return finite(predict([self._model(self.inputs.initial.state | state)], some))

    def scores(self, images: Images, predicted: Probabilities) -> Scores:
        """Scores of predictions on these images."""
        inputs = self.inputs
        return scores(images.labels, predicted, inputs.dataset.classes, inputs.positive)

    def validation_scores(self, predicted: Probabilities) -> Validation:
        """Scores on the held-out training images, in short."""
        found = self.scores(self.inputs.validation, predicted)
        return {"accuracy": found["accuracy"], "loss": found["loss"], "n": found["n"]}

    def _passes(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """What is tested together in one pass over the photos: what fits, all workers busy.

        A thread holds up to 1 GB of models, at most eight of them.
        """
        workers = self.inputs.workers
        size = sum(value.nbytes for value in self.inputs.initial.state.values())
        size //= 4 // self.dtype.itemsize
        together = max(1, min(8, int(_PASS_MEMORY // size)))
        count = min(len(candidates), math.ceil(len(candidates) / (together * workers)) * workers)
        bounds = [round(i * len(candidates) / count) for i in range(count + 1)] if count else []
        return [list(candidates[start:stop]) for start, stop in itertools.pairwise(bounds)]

    @memory()
    def _probabilities(
        self, candidates: Sequence[Candidate], images: Images
    ) -> list[Probabilities]:
        """Each model's predictions; those not in the store in one pass, and kept there."""
        found = [self._kept(one.parts, images) for one in candidates]
        missing = [i for i, kept in enumerate(found) if kept is None]
        if missing:
            settle(self.inputs.config.runner.threads)
            for i, one in self._tested({i: candidates[i].state() for i in missing}, images):
                parts = candidates[i].parts
                kept = {"probabilities": torch.from_numpy(one)}
                self.store.put(self._key(parts, images), kept, _about(parts, images))
                found[i] = one
        return cast(list[Probabilities], found)

    def _tested(
        self, states: dict[int, State], images: Images
    ) -> Iterator[tuple[int, Probabilities]]:
        """The predictions of some models, whole ones in one pass over the photos."""
        heads = {i: which for i, state in states.items() if (which := head_of(state))}
        for i, which in heads.items():
            yield i, head_scores(self._features(which, images), states[i], which).numpy()
        rest = {i: state for i, state in states.items() if i not in heads}
        if not rest:
            return
        frozen = self._frozen_part(images)
        if frozen is None:
            whole = self.inputs.initial.state
            models = [self._model(whole | state) for state in rest.values()]
            at_once = _LARGE if build.takes_pieces(models[0]) else BATCH
            yield from zip(rest, predict(models, images, at_once), strict=True)
        else:
            yield from ((i, frozen.predict(state)) for i, state in rest.items())

    def _features(self, which: str, images: Images) -> torch.Tensor:
        """The start model's features of the images, which all heads share; worked out once."""
        with self._lock:
            if (which, images.digest) not in self._tables:
                self._tables[which, images.digest] = feature_table(
                    self._start_model(), which, images
                )
            return self._tables[which, images.digest]

    def _model(self, whole: State) -> nn.Module:
        model = self._whole(whole)
        if self.precision != "float32":
            build.pool_first(model)
            build.in_pieces(model)
        return model.to(self.dtype)

    def _start_model(self) -> nn.Module:
        """For features, in float32 whatever the precision: they are worked out once."""
        return self._whole(self.inputs.initial.state)

    def _whole(self, state: State) -> nn.Module:
        name, classes = self.inputs.config.model.name, len(self.inputs.dataset.classes)
        model = build.empty(name, classes, state)
        return model.to(self.inputs.device).to(memory_format=torch.channels_last)

    @property
    def _rounded(self) -> list[Any]:
        """What decides about the bits of another precision's results."""
        able = getattr(torch.cpu, "get_capabilities", dict[str, Any])()
        return [
            self.precision,
            _LARGE,
            *(bool(able.get(name)) for name in ("amx_bf16", "avx512_bf16")),
        ]

    def _frozen_part(self, images: Images) -> SharedTest | None:
        """The frozen part's answers, which all models of a run share; worked out once."""
        if self.inputs.config.model.trainable == "all":
            return None
        with self._lock:
            if images.digest not in self._frozen:
                model = self._model(self.inputs.initial.state)
                names, threads = self.inputs.trained_names, self.inputs.workers
                self._frozen[images.digest] = share_test(model, names, images, threads=threads)
            return self._frozen[images.digest]

    def _kept(self, parts: Parts, images: Images) -> Probabilities | None:
        entry = self.store.get(self._key(parts, images), says(_about(parts, images)))
        return None if entry is None else entry.tensors["probabilities"].numpy()

    def _key(self, parts: Parts, images: Images) -> str:
        config = self.inputs.config
        return content_key(
            {
                "kind": "predictions",
                "version": recipe.VERSION,
                "torch": torch.__version__,
                "model": [config.model.name, len(self.inputs.dataset.classes)],
                "base": self.inputs.initial.sha256,
                "updates": parts.keys,
                "steps": parts.steps or parts.rule,
                "images": images.digest,
                "normalise": [MEAN, STD],
                "threads": config.runner.threads,
                **rounding(self.inputs.device),
                **({} if self.precision == "float32" else {"precision": self._rounded}),
            }
        )


def finite(predicted: Sequence[Probabilities]) -> bool:
    """Whether a model's answers, on each set of images, can be used at all."""
    return all(bool(np.isfinite(one).all()) for one in predicted)


def _about(parts: Parts, images: Images) -> dict[str, Any]:
    return {"kind": "predictions", "examples": len(images), "updates": len(parts.keys)}
