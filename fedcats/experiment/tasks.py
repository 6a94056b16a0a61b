"""What each training of a run does, and the weights that it starts from."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import numpy as np

from fedcats import tensors
from fedcats.experiment.checks import check_room
from fedcats.experiment.inputs import Inputs, Positions
from fedcats.experiment.private import baseline_budget, client_budget
from fedcats.experiment.seeds import prefix
from fedcats.merging.encodings import ENCODINGS
from fedcats.merging.rules import UPDATE
from fedcats.report import Work
from fedcats.report.estimate import LAST
from fedcats.storage import Store
from fedcats.tensors import State
from fedcats.training.attack import Attack
from fedcats.training.parts import kind, part_keys, shapes
from fedcats.training.update import Task, put_weights, weights_key

TEST = "test on the same images"


class Tasks:
    """Makes a run's tasks; puts the weights that they start from into the store.

    Attributes
    ----------
    inputs, store
        Of the run.
    state
        The trainable tensors that round 1 starts from, by state-dict key.
    start
        Their digest.
    """

    def __init__(self, inputs: Inputs, store: Store) -> None:
        self.inputs, self.store = inputs, store
        initial = inputs.initial
        self.state: State = {name: initial.state[name] for name in inputs.trained_names}
        whole = len(self.state) == len(initial.state)
        self.start = initial.sha256 if whole else tensors.digest(self.state)
        check_room(inputs, store, self._bytes_beside)  # before anything of another run is dropped
        weights = {initial.sha256: initial.state, self.start: self.state}
        store.hold([weights_key(sha256) for sha256 in weights])
        for sha256, state in weights.items():
            put_weights(store, state, sha256)

    def baseline(self) -> Task:
        """All epochs of all rounds on the baseline's images, without a pull to where it began."""
        epochs = self.inputs.config.train.epochs * self.inputs.config.rounds
        task = self._task("centralized", "centralized", 1, self.start, self.inputs.baseline)
        recipe = replace(task.recipe, epochs=epochs, proximal_mu=0.0)
        return self._private(replace(task, recipe=recipe))

    def same_steps(self) -> Task | None:
        """The baseline with as many steps as a client has in all rounds, in the mean over clients.

        Its epochs are as long as a client's, so that the learning rate decays after as many steps.
        None where it is not asked for, or would be the baseline.
        """
        inputs, baseline = self.inputs, self.baseline()
        recipe = baseline.recipe
        of_client = fmean(recipe.steps(size) for size in inputs.sizes)
        steps = round(recipe.epochs * of_client)
        if not inputs.config.has_same_steps or steps >= baseline.total_steps:
            return None
        return self._private(replace(baseline, name="centralized (same steps)", steps=steps))

    def _private(self, baseline: Task) -> Task:
        """With the noise that its steps need, where it promises anything."""
        asked = self.inputs.config.privacy.dp
        budget = baseline_budget(self.inputs, asked, baseline.total_steps) if asked else None
        return replace(baseline, dp=budget.dp if budget else None)

    @property
    def references(self) -> dict[str, Task]:
        """What is trained in one place, by the name of the model."""
        if self.inputs.config.mode == "federated":
            return {}
        fewer = self.same_steps()
        return {"centralized": self.baseline(), **({"same_steps": fewer} if fewer else {})}

    def client(self, client: int, server_round: int, start: str, rule: str = "") -> Task:
        """What a client does in a round, from the weights with the digest ``start``.

        From the second round on each ``rule`` goes its own way.
        """
        name = self._name(client, server_round, rule)
        task = self._task(name, client, server_round, start, self.inputs.shards[client])
        needs, asked = self.inputs.config.needs(rule), self.inputs.config.privacy.dp
        if self.inputs.sites is None:  # then sub-models are tested, whatever the rules read
            needs = tuple(dict.fromkeys((UPDATE, *needs)))
        earlier = (server_round - 1) * task.recipe.epochs
        return replace(
            task,
            sends=needs,
            begins=earlier if task.recipe.decays(earlier) else 0,
            dp=client_budget(self.inputs, asked, client).dp if asked else None,
        )

    def key(self, task: Task) -> str:
        """Key in the store of the update that the task gives."""
        return task.key(task.images(self.inputs.dataset.train))

    def parts(self, client: int) -> dict[str, str]:
        """Keys of what the client gives beside its update of the first round, by name."""
        task = self.client(client, 1, self.start)
        images = task.images(self.inputs.dataset.train)
        return part_keys(task, images, task.key(images))

    def _parts(self) -> Iterator[tuple[Task, str, int]]:
        """What clients give beside their updates in round 1: task, part, number of photos."""
        for client, size in enumerate(self.inputs.sizes):
            task = self.client(client, 1, self.start)
            yield from ((task, part, size) for part in task.sends if part != UPDATE)

    def _part_sizes(self, task: Task, part: str, size: int) -> list[int]:
        like = shapes(task, part, self.inputs.parameters, self.state, size)
        return [value.nbytes for value in like.values()]

    @property
    def _bytes_beside(self) -> int:
        """About how many bytes the parts of all clients take in the store."""
        found: dict[tuple[str, int], int] = {}
        total = 0
        for task, part, size in self._parts() if self.inputs.sites is None else ():
            same = (part, 0 if kind(part) in ENCODINGS else size)
            if same not in found:
                found[same] = sum(self._part_sizes(task, part, size))
            total += found[same]
        return total

    @property
    def largest(self) -> int:
        """Bytes of the largest array that a client may send in round 1; later ones have no more."""
        found = [value.nbytes for value in self.inputs.initial.state.values()]
        for task, part, size in self._parts():
            found += self._part_sizes(task, part, size)
        return max(found)

    @property
    def expected(self) -> dict[str, Work]:
        """What is going to be trained and tested; by the other seeds as much as by this one."""
        seeds = self.inputs.config.replicates
        if len(seeds) == 1:
            return self._expected
        return {
            prefix(seed) + name: replace(work, batch=work.batch + number * len(self._expected))
            for number, seed in enumerate(seeds)
            for name, work in self._expected.items()
        }

    @property
    def _expected(self) -> dict[str, Work]:
        inputs, config = self.inputs, self.inputs.config
        epochs, plan, sizes = config.train.epochs, inputs.plan, inputs.sizes
        expected: dict[str, Work] = {}
        count = len(config.strategy.rules) if config.merges else 0
        if config.mode != "federated":
            images = len(inputs.baseline)
            expected["centralized"] = Work(images, epochs * config.rounds, "centralized")
            count += 1
            if fewer := self.same_steps():
                images = round(fewer.steps * config.train.batch_size / fewer.recipe.epochs)
                expected[fewer.name] = Work(images, fewer.recipe.epochs, fewer.name)
                count += 1
        if config.mode != "centralized":
            batch = 0
            for number in range(1, config.rounds + 1):
                chosen = plan.clients(number)
                merges = len(config.strategy.rules)
                count += len(chosen) if number == 1 else merges * (1 + len(chosen))
                for rule in config.strategy.rules if number > 1 else ("",):
                    batch += 1
                    for client in chosen:
                        work = Work(sizes[client], epochs, "clients", batch)
                        expected[self._name(client, number, rule)] = work
        # A test is only a forward pass, over many images at a time, and on all workers.
        tested = (len(inputs.dataset.test) + len(inputs.held)) / 3 / inputs.workers
        expected[TEST] = Work(tested, count, LAST)
        return expected

    def _name(self, client: int, server_round: int, rule: str) -> str:
        if self.inputs.config.rounds == 1:
            return f"client {client}"
        return f"round {server_round}, client {client}" + (f" ({rule})" if rule else "")

    def _task(
        self, name: str, client: int | str, server_round: int, start: str, indices: Positions
    ) -> Task:
        inputs, config = self.inputs, self.inputs.config
        held: Positions = np.zeros(0, dtype=np.int64)
        if config.validate:
            held = inputs.held if client == "centralized" else inputs.parts[int(client)]
        return Task(
            name=name,
            client=client,
            round=server_round,
            seed=config.draws.training,
            model=config.model.name,
            num_classes=len(inputs.dataset.classes),
            trainable=config.model.trainable,
            base=inputs.initial.sha256,
            start=start,
            data=str(inputs.dataset.path),
            indices=tuple(indices.tolist()),
            held=tuple(held.tolist()),
            recipe=config.train,
            threads=config.runner.threads,
            # A site decides by its own machine.
            device=inputs.device if inputs.sites is None else config.runner.device,
            checkpoint_seconds=config.store.checkpoint_seconds,
            attack=Attack(config.attack.name, config.attack.factor)
            if client in inputs.hostile
            else None,
        )
