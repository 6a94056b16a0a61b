"""What a training is: its recipe, and what it leaves behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fedcats.limits import FLOAT32, Limited, number, switch
from fedcats.results import Validation

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 6
"""Of the computation in `train`: raise it when the same input gives other weights."""


@dataclass(frozen=True)
class Recipe(Limited):
    """``train``: how a client trains (the paper: SGD, lr 0.001, batch 4, 10 epochs).

    Attributes
    ----------
    lr, momentum, nesterov, weight_decay
        As in `torch.optim.SGD`.
    step_size, gamma
        Every ``step_size`` epochs the learning rate is multiplied by ``gamma``; 0 switches it off.
    drop_last
        Leave out the last batch of an epoch when it is smaller than ``batch_size``.
    proximal_mu
        FedProx (Li et al. 2020): ``mu / 2 * |w - w_start|^2`` is added to the loss, so that a
        client does not drift far from where it started. 0 is none of it, bit by bit.
    """

    where = "train."
    epochs: int = number(1)
    batch_size: int = number(1)
    lr: float = number(0, FLOAT32, above=True)
    momentum: float = number(0, 1)
    nesterov: bool = switch()
    weight_decay: float = number(0, FLOAT32)
    step_size: int = number(0)
    gamma: float = number(0, 1, above=True)
    drop_last: bool = switch()
    proximal_mu: float = number(0, FLOAT32, default=0.0)

    def lr_at(self, epoch: int) -> float:
        """Learning rate in an epoch (from 0)."""
        return self.lr * self.gamma ** (epoch // self.step_size) if self.step_size else self.lr

    def decays(self, begins: int) -> bool:
        """Whether after so many epochs more an epoch has another learning rate than from 0 on."""
        return any(self.lr_at(begins + e) != self.lr_at(e) for e in range(self.epochs))

    def steps(self, images: int) -> int:
        """Steps of a pass over so many images."""
        whole, rest = divmod(images, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)


@dataclass(frozen=True)
class DpSgd:
    """How a training is made private, see `fedcats.training.dp`.

    Attributes
    ----------
    clip
        Largest length of a photo's gradient; longer ones are shortened.
    noise
        Standard deviation of what is added to their sum, in multiples of ``clip``; 0: none.
    rate
        Probability of each photo to be in a step.
    expected
        Photos that a step has in the mean, by which the sum is divided.
    """

    clip: float
    noise: float
    rate: float
    expected: float


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: mean loss per image, images, steps, seconds of training.

    ``validation`` is what the model then scores on held-out photos, if it was tested on any, and
    its answers were finite.
    """

    loss: float
    examples: int
    steps: int
    seconds: float
    validation: Validation | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, which an earlier version could read where nothing was tested."""
        values = asdict(self)
        return values if self.validation else {k: values[k] for k in values if k != "validation"}


class Step(Protocol):
    """One optimizer step on a batch; the state is what a continuation needs (momentum)."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on ``x`` (b, 3, h, w) float32 and ``y`` (b,) int64; the batch's mean loss."""
        ...

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from now on."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The optimizer's buffers by parameter name."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        ...
