"""Every model tested on the same photos, and compared."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from fedcats.config.schema import Config
from fedcats.errors import RunError
from fedcats.experiment.exporting import metadata
from fedcats.experiment.folders import file_stem
from fedcats.experiment.inputs import Inputs
from fedcats.experiment.predictions import Candidate, Parts, Predictor, Probabilities, finite
from fedcats.experiment.results import training_record
from fedcats.experiment.tasks import TEST
from fedcats.experiment.train import Trained
from fedcats.merging.fold import effective_number
from fedcats.merging.plan import Merged
from fedcats.metrics import NOT_FINITE, compare, write_predictions
from fedcats.report import Progress
from fedcats.results import Comparison, Model, Results, Round, RoundScores, Scores, Traffic
from fedcats.seeding import derive_seed
from fedcats.storage import Store
from fedcats.tensors import State, save
from fedcats.training.update import read


def evaluate(predictor: Predictor, trained: Trained, results: Results, progress: Progress) -> None:
    """Test every model on the same photos; write predictions and weights."""
    inputs = predictor.inputs
    final = _candidates(predictor, trained)
    earlier = [_of_merge(merged) for row in trained.earlier[:-1] for merged in row.values()]
    test, count = inputs.dataset.test, len(final) + len(earlier)

    def tested(number: int) -> None:
        progress.update(TEST, number, count, None, "testing" if number < count else "done")

    def before(number: int) -> None:
        tested(len(final) + number)

    sets = [test, inputs.validation] if len(inputs.held) else [test]
    tested_on = predictor.predict([*final.values()], sets, tested)
    predicted = dict(zip(final, tested_on, strict=True))
    on_test = predictor.predict(earlier, [test], before)
    with predictor.pool() as pool:
        record = functools.partial(_record, predictor, trained)
        found = pool.map(record, final, final.values(), predicted.values())
        models = {name: one for name, one in zip(final, found, strict=True) if one}
    tested(count)
    results["models"] = models
    results["comparison"] = _comparison(
        inputs, {name: one for name, (one, *_) in predicted.items()}
    )
    if unscored := [name for name in final if name not in models]:
        results["not_scored"] = dict.fromkeys(unscored, NOT_FINITE)
    if len(trained.earlier) > 1:
        on_test += [predicted[rule][:1] for rule in trained.earlier[-1]]
        results["rounds"] = _rounds(trained, (predictor.scores(test, one) for (one,) in on_test))


def _candidates(predictor: Predictor, trained: Trained) -> dict[str, Candidate]:
    """The models to be tested, by name: the baseline, the clients' of round 1, the merged ones."""
    found = {
        name: Candidate(
            Parts((update.key,)), functools.partial(_stored, predictor.store, update.key)
        )
        for name, update in trained.updates.items()
        if name == "centralized" or name.startswith("submodel/")
    }
    if predictor.inputs.config.mode != "merge":
        found |= {name: _of_merge(merged) for name, merged in trained.merged.items()}
    return {name: found[name] for name in sorted(found, key=_model_order)}


def _of_merge(merged: Merged) -> Candidate:
    parts = Parts(tuple(merged.keys), tuple(merged.steps), merged.rule)
    return Candidate(parts, lambda: merged.state)


def _model_order(name: str) -> tuple[int, int]:
    if name == "centralized":
        return (0, 0)
    return (1, int(name.split("/")[1])) if name.startswith("submodel/") else (2, 0)


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
        if name.startswith("submodel/"):
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
    return config.save_models == "all" or not model.startswith("submodel/")


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
    if name in trained.chosen:
        model["beta_chosen_from"] = trained.chosen[name]


def _traffic(merged: Merged) -> Traffic:
    return {"down": merged.down, "up": merged.up}


def _rounds(trained: Trained, scored: Iterator[Scores]) -> list[Round]:
    """The scores of each rule's merge after each round."""
    rows: list[Round] = []
    for number, merges in enumerate(trained.earlier, 1):
        row: Round = {"round": number}
        for rule, merged in merges.items():
            row[rule] = cast(RoundScores, {**next(scored), "bytes": _traffic(merged)})
        rows.append(row)
    return rows


def _comparison(inputs: Inputs, predicted: Mapping[str, Probabilities]) -> dict[str, Comparison]:
    """Each merged model against the baseline, photo by photo."""
    if "centralized" not in predicted:
        return {}
    seed = derive_seed(inputs.config.draws.own, "bootstrap")
    labels, reference = inputs.dataset.test.labels, predicted["centralized"]
    return {
        name: compare(labels, one, reference, seed=seed)
        for name, one in predicted.items()
        if name != "centralized" and not name.startswith("submodel/")
    }
