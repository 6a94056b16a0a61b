"""``privacy=dp``: how much noise each training of a run gets, and what it promises for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from torch import nn

from fedcats.config.schema import Config, DpConfig
from fedcats.errors import UserError
from fedcats.metrics.epsilon import client_noise, noise_for, spent, usual_delta
from fedcats.results.privacy import DifferentialPrivacy, PrivateTraining
from fedcats.training.recipe import DpSgd
from fedcats.training.update import Task

if TYPE_CHECKING:
    from fedcats.experiment.inputs import Inputs

_SANE = 8.0  # epsilon with which a whole client's noise is named, where none is asked for


@dataclass(frozen=True)
class Budget:
    """What one client, or the baseline, may give away in all of its trainings.

    Attributes
    ----------
    photos, steps
        Of which each step takes some, and how many steps there are in all rounds.
    delta
        Of the whole run.
    """

    config: Config
    asked: DpConfig
    photos: int
    steps: int
    delta: float

    @property
    def rate(self) -> float:
        """Probability of each photo to be in a step."""
        return min(1.0, self.config.train.batch_size / self.photos)

    @property
    def noise(self) -> float:
        """In multiples of the clip; 0 where no epsilon is promised."""
        if self.asked.epsilon is None:
            assert self.asked.noise is not None
            return self.asked.noise
        if self.asked.target is None:
            return 0.0
        try:
            return noise_for(self.asked.target, self.rate, self.steps, self.delta)
        except ValueError as error:
            raise UserError(
                f"privacy.epsilon={self.asked.epsilon:g}: {error} in {self.steps} steps at "
                f"delta {self.delta:g}; allowed is a larger one, or fewer steps"
            ) from error

    @property
    def dp(self) -> DpSgd:
        """How it trains."""
        expected = float(min(self.config.train.batch_size, self.photos))
        return DpSgd(self.asked.clip, self.noise, self.rate, expected)

    @property
    def record(self) -> PrivateTraining:
        """What ``results.json`` says of it."""
        noise, rate = self.noise, self.rate
        epsilon = spent(noise, rate, self.steps, self.delta) if noise and self.steps else None
        return {
            "photos": self.photos,
            "rate": rate,
            "steps": self.steps,
            "noise": noise,
            "epsilon": epsilon,
        }


def delta_of(this: Inputs, asked: DpConfig) -> float:
    """The configured delta, or the usual one of the photos of all trainings together."""
    return usual_delta(_photos(this)) if asked.delta is None else asked.delta


def _photos(this: Inputs) -> int:
    return max(sum(this.sizes), len(this.baseline))


def client_budget(this: Inputs, asked: DpConfig, client: int) -> Budget:
    """Of a client: its steps in the rounds in which it takes part."""
    config, photos = this.config, this.sizes[client]
    rounds = sum(client in this.plan.clients(n) for n in range(1, config.rounds + 1))
    steps = rounds * config.train.epochs * config.train.steps(photos)
    return Budget(config, asked, photos, steps, delta_of(this, asked))


def baseline_budget(this: Inputs, asked: DpConfig, steps: int) -> Budget | None:
    """Of what is trained in one place; None where that promises nothing."""
    if not asked.centralized:
        return None
    return Budget(this.config, asked, len(this.baseline), steps, delta_of(this, asked))


def check_private(this: Inputs, model: nn.Module) -> None:
    """UserError for what cannot be trained, or promised, so."""
    asked = this.config.privacy.dp
    if asked is None:
        return
    if asked.unit == "client":
        raise UserError(_refused_unit(this, asked))
    photos = _photos(this)
    if asked.delta is not None and asked.delta >= 1 / photos:
        raise UserError(
            f"privacy.delta={asked.delta:g}: with {photos} photos it would allow to publish one of "
            f"them; allowed is less than {1 / photos:.2g}"
        )
    from fedcats.training.dp import refusal

    if why := refusal(model, this.dataset.size):
        raise UserError(
            f"privacy=dp: {this.config.model.name} has no gradient of each photo by itself: {why}; "
            "allowed are models without batch norm (alexnet, vgg16, squeezenet1_1, ..), or "
            "model.trainable=head"
        )
    if this.config.mode != "centralized":
        for client in range(len(this.sizes)):
            _ = client_budget(this, asked, client).noise


def _refused_unit(this: Inputs, asked: DpConfig) -> str:
    """With the length of the noise that it would take."""
    clients = len(this.plan.clients(1))
    epsilon = asked.target or _SANE
    delta = asked.delta or usual_delta(clients)
    weights = sum(this.initial.state[name].numel() for name in this.trained_names)
    long = client_noise(epsilon, delta, clients, weights)
    return (
        f"privacy.unit=client: with epsilon {epsilon:g} at delta {delta:g} the noise in the mean "
        f"of {clients} clients' {weights:,} weights is {_times(long)} as long as an update may "
        "be; allowed is privacy.unit=photo. To hide a whole client takes thousands of clients, or "
        "few numbers from each: statistics of each class, a head on a small feature"
    )


def _times(long: float) -> str:
    return f"{long:,.0f} times" if long >= 10 else f"{long:.2g} times"


def promised(this: Inputs, asked: DpConfig, references: Mapping[str, Task]) -> DifferentialPrivacy:
    """What the run's trainings promise, for ``results.json``.

    Parameters
    ----------
    references
        What is trained in one place, by the name of the model.
    """
    found: DifferentialPrivacy = {
        "unit": "one photo of one client",
        "neighbours": "a client with or without the photo (add or remove one)",
        "delta": delta_of(this, asked),
        "clip": asked.clip,
        "accountant": f"dp-accounting {version('dp-accounting')}, privacy loss distributions",
        "clients": [],
        "centralized": {},
        "epsilon": None,
    }
    if this.config.mode != "centralized":
        of = [client_budget(this, asked, client).record for client in range(len(this.sizes))]
        found["clients"] = of
        each = [one["epsilon"] for one in of if one["steps"]]
        found["epsilon"] = max((one for one in each if one is not None), default=None)
    for name, task in references.items():
        if budget := baseline_budget(this, asked, task.total_steps):
            found["centralized"][name] = budget.record
    return found
