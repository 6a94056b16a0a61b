"""Merges by rules that are no folds, out of stored sub-models and parts: each is read once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedcats.errors import RunError
from fedcats.experiment.predictions import Candidate, Parts, Predictor
from fedcats.merging.rules import UPDATE, Merge, Round, Rule
from fedcats.tensors import State, digest
from fedcats.training.parts import read_part
from fedcats.training.update import read


class Stored(NamedTuple):
    """A merge, and the bytes that all clients send for it."""

    rule: Rule
    merge: Merge
    up: int


def merge_stored(
    predictor: Predictor,
    rules: Sequence[Rule],
    updates: Mapping[int, str],
    examples: Mapping[int, int],
    parts: Mapping[int, Mapping[str, str]],
) -> list[Stored]:
    """Merge by several rules in one pass over the clients.

    Parameters
    ----------
    rules
        What they accumulate is in memory together.
    updates, examples, parts
        By client, in the order of the merge: keys of the update and, by name, of its parts in the
        store; number of images.

    Raises
    ------
    RunError
        When something is gone from the store, or a rule cannot merge.
    """
    inputs, store = predictor.inputs, predictor.store
    start = {name: inputs.initial.state[name] for name in inputs.trained_names}
    now = Round(start, inputs.parameters, pretrained=inputs.initial.pretrained)
    begun = [now.begin(rule) for rule in rules]
    needs = dict.fromkeys(need for rule in rules for need in rule.needs)
    sent: Counter[str] = Counter()
    for client, key in updates.items():
        given = {need: read_part(store, parts[client][need]) for need in needs if need != UPDATE}
        own: State = {}
        if UPDATE in needs:
            update = read(store, key)
            if update is None:
                raise RunError(f"store {store.root}: a sub-model is gone; run the same again")
            own = update.tensors
        for need, tensors in {UPDATE: own, **given}.items():
            sent[need] += sum(value.nbytes for value in tensors.values())
        now.add(own, examples[client], store.path(key), given)
    found = []
    for rule, accumulator in zip(rules, begun, strict=True):
        try:
            found.append(Stored(rule, accumulator.finish(), sum(sent[need] for need in rule.needs)))
        except ValueError as error:
            raise RunError(f"{rule.name}: {error}") from error
    return found


def candidate(keys: Sequence[str], one: Stored) -> Candidate:
    """The model, to be tested; known as one that a run merged by the same rule."""
    merge = one.merge
    what = merge.key or f"{one.rule.name} {digest(merge.state)}"
    parts = Parts(tuple(keys), tuple(merge.steps), "" if merge.steps else what)
    return Candidate(parts, lambda: merge.state)
