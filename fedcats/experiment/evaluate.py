"""Every model tested on the same photos, and compared."""

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fedcats.config.schema import Config
from fedcats.errors import RunError
from fedcats.experiment.folders import file_stem
from fedcats.experiment.inputs import TEST, Run
from fedcats.experiment.predictions import (
    Candidate,
    Parts,
    Probabilities,
    in_passes,
    probabilities,
    validation_scores,
)
from fedcats.experiment.results import training_record
from fedcats.experiment.train import Trained
from fedcats.merging.fold import effective_number
from fedcats.merging.plan import Merged
from fedcats.metrics import compare, read_predictions, scores, write_predictions
from fedcats.report import Progress
from fedcats.seeding import derive_seed
from fedcats.storage import Store
from fedcats.tensors import State, save
from fedcats.training.update import read


def evaluate(
    this: Run, trained: Trained, results: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Test every model on the same photos; write predictions and weights."""
    merges = {} if this.config.mode == "merge" else trained.merged
    jobs: dict[str, Candidate] = {}
    for name, update in trained.updates.items():
        if name == "centralized" or name.startswith("submodel/"):
            jobs[name] = (
                Parts((update.key,)),
                lambda key=update.key: _stored(this.store, key),  # type: ignore[misc]
            )
    for name, merged in merges.items():
        jobs[name] = (_parts(merged), lambda state=merged.state: state)  # type: ignore[misc]
    ordered = sorted(jobs, key=_model_order)

    def test(names: Sequence[str]) -> list[dict[str, Any]]:
        models = [(jobs[name][0], functools.cache(jobs[name][1])) for name in names]
        on_test = probabilities(this, models, this.dataset.test)
        on_held: Sequence[Probabilities | None] = [None] * len(names)
        if len(this.held):
            on_held = probabilities(this, models, this.validation)
        return [
            describe(name, state, predicted, held)
            for name, (_, state), predicted, held in zip(
                names, models, on_test, on_held, strict=True
            )
        ]

    def describe(
        name: str,
        state: Callable[[], State],
        predicted: Probabilities,
        on_held: Probabilities | None,
    ) -> dict[str, Any]:
        test_images = this.dataset.test
        file = file_stem(name)
        predictions = f"predictions/{file}.csv"
        write_predictions(
            this.folder / predictions,
            test_images.files,
            test_images.labels,
            predicted,
            this.dataset.classes,
        )
        model = scores(test_images.labels, predicted, this.dataset.classes)
        model |= {"file": None, "predictions": predictions}
        if on_held is not None:
            model["validation"] = validation_scores(this, on_held)
            right = on_held.argmax(axis=1) == this.validation.labels
            model["by_client"] = [
                float(right[np.searchsorted(this.held, part)].mean()) if len(part) else None
                for part in this.parts
            ]
        if _is_saved(this.config, name):
            model["file"] = f"models/{file}.safetensors"
            path = this.folder / model["file"]
            path.parent.mkdir(exist_ok=True)
            whole = this.initial.state | state()
            save(whole, path, {"classes": json.dumps(this.dataset.classes)})
        return model

    count = len(ordered) + sum(map(len, trained.earlier[:-1]))

    def tested(number: int) -> None:
        progress.update(TEST, number, count, None, "testing" if number < count else "done")

    tested(0)
    with ThreadPoolExecutor(this.workers) as pool:
        done: dict[str, dict[str, Any]] = {}
        passes = in_passes(this, ordered)
        for names, scored in zip(passes, pool.map(test, passes), strict=True):
            done |= zip(names, scored, strict=True)
            tested(len(done))
        if len(trained.earlier) > 1:
            results["rounds"] = _score_rounds(this, trained, pool, done, tested)
    tested(count)
    for name, model in done.items():
        if name in trained.updates:
            model["training"] = training_record(trained.updates[name])
            model["key"] = trained.updates[name].key if this.config.store.enabled else None
        if name in merges:
            merged = merges[name]
            model["clients"] = merged.clients
            model |= _traffic(merged)
            if merged.steps:
                weights = merged.effective_weights
                model["effective_weights"] = weights
                if merged.steps[0] != 1.0:  # of the model that the round started from
                    model["global_weight"] = 1.0 - sum(weights)
                    weights = [model["global_weight"], *weights]
                model["n_eff"] = effective_number(weights)
            rule = trained.rules[name]
            model |= {"title": rule.label, **rule.record}
            if name in trained.chosen:
                model["beta_chosen_from"] = trained.chosen[name]
    return done


def _is_saved(config: Config, model: str) -> bool:
    """Whether the weights go into the run folder; what was trained is in the store, too."""
    if config.mode == "merge" or config.save_models == "none":
        return False
    return config.save_models == "all" or not model.startswith("submodel/")


def _model_order(name: str) -> tuple[int, int]:
    if name == "centralized":
        return (0, 0)
    return (1, int(name.split("/")[1])) if name.startswith("submodel/") else (2, 0)


def _stored(store: Store, key: str) -> State:
    update = read(store, key)
    if update is None:
        raise RunError(f"store {store.root}: an update that this run trained is gone")
    return update.tensors


def _parts(merged: Merged) -> Parts:
    return Parts(tuple(merged.keys), tuple(merged.steps), merged.rule)


def _traffic(merged: Merged) -> dict[str, Any]:
    return {"bytes": {"down": merged.down, "up": merged.up}}


def _score_rounds(
    this: Run,
    trained: Trained,
    pool: ThreadPoolExecutor,
    last: dict[str, Any],
    tested: Callable[[int], None],
) -> list[dict[str, Any]]:
    """The scores of each rule's merge after each round; ``last``: those of the last, by model.

    ``tested`` is called with the number of models tested so far, ``last`` included.
    """

    def score(merged: Merged) -> dict[str, Any]:
        test = this.dataset.test
        (predicted,) = probabilities(this, [(_parts(merged), lambda: merged.state)], test)
        return scores(test.labels, predicted, this.dataset.classes) | _traffic(merged)

    rows: list[dict[str, Any]] = []
    for number, merges in enumerate(trained.earlier, 1):
        if number < len(trained.earlier):
            scored = dict(zip(merges, pool.map(score, merges.values()), strict=True))
        else:
            files = ("file", "key", "predictions", "title")
            scored = {
                rule: {k: v for k, v in last[rule].items() if k not in files} | _traffic(merged)
                for rule, merged in merges.items()
            }
        rows.append({"round": number, **scored})
        tested(len(last) + sum(len(row) - 1 for row in rows[: len(trained.earlier) - 1]))
    return rows


def compare_with_baseline(this: Run, done: dict[str, Any]) -> dict[str, Any]:
    """Each merged model against the baseline, photo by photo."""
    if "centralized" not in done:
        return {}
    reference = read_predictions(this.folder / done["centralized"]["predictions"])
    return {
        name: compare(
            reference.labels,
            read_predictions(this.folder / model["predictions"]).probabilities,
            reference.probabilities,
            seed=derive_seed(this.config.seed, "bootstrap"),
        )
        for name, model in done.items()
        if "clients" in model
    }
