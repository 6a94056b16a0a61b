"""Every model tested on the same photos, and compared."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from fedcats.config.schema import Config
from fedcats.errors import RunError
from fedcats.experiment.comparisons import record_comparisons
from fedcats.experiment.exporting import metadata
from fedcats.experiment.folders import file_stem
from fedcats.experiment.predictions import Candidate, Parts, Predictor, Probabilities, finite
from fedcats.experiment.results import training_record
from fedcats.experiment.tasks import TEST
from fedcats.experiment.train import Trained
from fedcats.merging.fold import effective_number
from fedcats.merging.plan import Merged
from fedcats.metrics import NOT_FINITE, write_predictions
from fedcats.report import Progress
from fedcats.results import (
    Model,
    Results,
    Round,
    RoundScores,
    RoundTraining,
    Traffic,
    Validation,
)
from fedcats.results.names import IN_ONE_PLACE, client_of, is_merged, is_submodel
from fedcats.storage import Store
from fedcats.tensors import State, save
from fedcats.training.update import Update, read


def evaluate(predictor: Predictor, trained: Trained, results: Results, progress: Progress) -> None:
    """Test every model on the same photos; write predictions and weights."""
    inputs = predictor.inputs
    final = candidates(predictor, trained)
    earlier = {
        (number, rule): _of_merge(merged)
        for number, row in enumerate(trained.earlier[:-1], 1)
        for rule, merged in row.items()
    }
    test = inputs.dataset.test
    of_clients = {
        update.key: _of_update(predictor, update)
        for (number, _), updates in trained.by_round.items()
        for update in updates.values()
        if number > 1
    }
    later = {key: one for key, one in of_clients.items() if predictor.can_test(one, test)}
    count = len(final) + len(earlier) + len(later)

    def tested(number: int) -> None:
        progress.update(TEST, number, count, None, "testing" if number < count else "done")

    def before(number: int) -> None:
        tested(len(final) + number)

    sets = [test, inputs.validation] if len(inputs.held) else [test]
    tested_on = predictor.predict([*final.values()], sets, tested)
    predicted = dict(zip(final, tested_on, strict=True))
    before_last = predictor.predict([*earlier.values(), *later.values()], [test], before)
    on_test = {k: one for k, (one,) in zip([*earlier, *later], before_last, strict=True)}
    with predictor.pool() as pool:
        record = functools.partial(_record, predictor, trained)
        found = pool.map(record, final, final.values(), predicted.values())
        models = {name: one for name, one in zip(final, found, strict=True) if one}
    tested(count)
    results["models"] = models
    record_comparisons(inputs, predicted, results)
    if unscored := [name for name in final if name not in models]:
        results["not_scored"] = dict.fromkeys(unscored, NOT_FINITE)
    if len(trained.earlier) > 1:
        last = len(trained.earlier)
        on_test |= {(last, rule): predicted[rule][0] for rule in trained.earlier[-1]}
        first = {
            u.key: predicted[name][0] for name, u in trained.updates.items() if name in predicted
        }
        results["rounds"] = _rounds(predictor, trained, on_test | first)


def candidates(predictor: Predictor, trained: Trained) -> dict[str, Candidate]:
    """The models to be tested, by name: in one place, the clients' of round 1, the merged ones."""
    found = {
        name: _of_update(predictor, update)
        for name, update in trained.updates.items()
        if not is_merged(name)
    }
    if predictor.inputs.config.mode != "merge":
        found |= {name: _of_merge(merged) for name, merged in trained.merged.items()}
    return {name: found[name] for name in sorted(found, key=_model_order)}


def _of_update(predictor: Predictor, update: Update) -> Candidate:
    stored = functools.partial(_stored, predictor.store, update.key)
    return Candidate(Parts((update.key,)), stored)


def _of_merge(merged: Merged) -> Candidate:
    # A secure sum has steps, but not the fold's bits.
    steps = () if merged.rule else tuple(merged.steps)
    parts = Parts(tuple(merged.keys), steps, merged.rule)
    return Candidate(parts, lambda: merged.state)


def _model_order(name: str) -> tuple[int, int]:
    if name in IN_ONE_PLACE:
        return (0, IN_ONE_PLACE.index(name))
    return (1, client_of(name)) if is_submodel(name) else (2, 0)


def _stored(store: Store, key: str) -> State:
    update = read(store, key)
    if update is None:
        raise RunError(f"store {store.root}: an update that this run trained is gone")
    return update.tensors


def _record(
    predictor: Predictor,
    trained: Trained,
    name: str,
    candidate: Candidate,
    predicted: Sequence[Probabilities],
) -> Model | None:
    """What results.json says of a model; its predictions and weights are written to files.

    None for a client's model without finite answers: a robust merge goes on in spite of it.
    """
    inputs, (on_test, *on_held) = predictor.inputs, predicted
    test, classes, file = inputs.dataset.test, inputs.dataset.classes, file_stem(name)
    if not finite(predicted):
        if is_submodel(name):
            return None
        raise RunError(f"{name}: {NOT_FINITE}: training has diverged")
    written = f"predictions/{file}.csv"
    scored = predictor.scores(test, on_test)
    model = cast(Model, {**scored, "file": None, "predictions": written})
    write_predictions(inputs.folder / written, test.files, test.labels, on_test, classes)
    for one in on_held:
        model["validation"] = predictor.validation_scores(one)
        right = one.argmax(axis=1) == inputs.validation.labels
        model["by_client"] = [
            float(right[np.searchsorted(inputs.held, part)].mean()) if len(part) else None
            for part in inputs.parts
        ]
    if _is_saved(inputs.config, name):
        model["file"] = f"models/{file}.safetensors"
        path = inputs.folder / f"models/{file}.safetensors"
        path.parent.mkdir(exist_ok=True)
        whole = inputs.initial.state | candidate.state()
        save(whole, path, metadata(inputs.config.model.name, classes))
    if update := trained.updates.get(name):
        model["training"] = training_record(update)
        model["key"] = update.key if inputs.config.store.enabled else None
    else:
        _record_merge(model, trained, name)
    return model


def _is_saved(config: Config, model: str) -> bool:
    """Whether the weights go into the run folder; what was trained is in the store, too."""
    if config.mode == "merge" or config.save_models == "none":
        return False
    return config.save_models == "all" or model == "centralized" or is_merged(model)


def _record_merge(model: Model, trained: Trained, name: str) -> None:
    """What results.json says of how a model was merged."""
    merged = trained.merged[name]
    model["clients"] = merged.clients
    model["bytes"] = _traffic(merged)
    if merged.steps:
        weights = merged.effective_weights
        model["effective_weights"] = weights
        if merged.steps[0] != 1.0:  # of the model that the round started from
            model["global_weight"] = 1.0 - sum(weights)
            weights = [model["global_weight"], *weights]
        model["n_eff"] = effective_number(weights)
    rule = trained.rules[name]
    model["title"] = rule.label
    model.update(cast(Model, rule.record))
    if merged.chosen:
        model["chosen"] = merged.chosen
    if name in trained.chosen:
        key = "beta_chosen_from" if "beta" in model else "chosen_from"
        model[key] = trained.chosen[name]  # type: ignore[literal-required]


def _together(tested: Sequence[Validation]) -> Validation:
    n = sum(one["n"] for one in tested)
    accuracy = sum(one["accuracy"] * one["n"] for one in tested) / n
    return {"accuracy": accuracy, "loss": sum(one["loss"] * one["n"] for one in tested) / n, "n": n}


def _traffic(merged: Merged) -> Traffic:
    return {"down": merged.down, "up": merged.up}


def _rounds(
    predictor: Predictor, trained: Trained, on_test: Mapping[Any, Probabilities]
) -> list[Round]:
    """The scores of each rule's merge after each round, and what its clients did.

    ``on_test`` has the predictions of merges by round and rule, of clients' models by key.
    """
    test, own = predictor.inputs.dataset.test, trained.by_round

    def accuracy(update: Update) -> float | None:
        found = on_test.get(update.key)
        if found is None or not finite([found]):
            return None
        return float(np.mean(found.argmax(axis=1) == test.labels))

    def of(number: int, rule: str, merged: Merged) -> RoundScores:
        updates = [own[number, rule if number > 1 else ""][client] for client in merged.clients]
        epochs = [epoch for update in updates for epoch in update.epochs]
        training: RoundTraining = {
            "examples": sum(update.examples for update in updates),
            "epochs": predictor.inputs.config.train.epochs,
            "steps": sum(epoch.steps for epoch in epochs),
            "loss": float(np.mean([update.epochs[-1].loss for update in updates])),
            "seconds": sum(epoch.seconds for epoch in epochs),
        }
        if tested := [one for update in updates if (one := update.epochs[-1].validation)]:
            training["validation"] = _together(tested)
        return {
            **predictor.scores(test, on_test[number, rule]),
            "bytes": _traffic(merged),
            "clients": merged.clients,
            "own": [accuracy(update) for update in updates],
            "training": training,
        }

    rows: list[Round] = []
    for number, merges in enumerate(trained.earlier, 1):
        row: Round = {"round": number}
        row |= {rule: of(number, rule, merged) for rule, merged in merges.items()}
        rows.append(row)
    return rows
