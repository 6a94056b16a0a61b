"""How long a run still takes, from what has been trained so far.

Nothing is said before there is a basis: a second was spent on epochs that are not a task's first,
where there are such (the first one also pays for what is set up, such as the answers of a frozen
part), and the time between two tasks was seen, where it can matter. What was found in the store
or in a checkpoint is no basis.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedcats.results import Validation

FINISHED = ("done", "reused", "failed")
LAST = "then"
_BASIS = 1.0  # seconds; progress is looked at several times a second
_LONG = 10.0  # seconds of a task beside which what lies between two tasks is little


@dataclass
class Work:
    """What is known of a task before it starts.

    Attributes
    ----------
    images, epochs
        Images of one epoch, and how many epochs.
    lane
        Lanes are worked on side by side, but ``then`` after all others. A task without a lane
        has no part in the estimate.
    batch
        In a lane one batch begins when the one before has ended (rounds do).
    """

    images: float = 0.0
    epochs: int = 0
    lane: str = ""
    batch: int = 0


@dataclass
class Task:
    """What is trained, and what has been seen of it.

    Attributes
    ----------
    started, ended
        When it was first seen at work, and when it was over. One that was only seen when it was
        over (a site's) tells nothing.
    begun
        Epochs that it had when it started.
    first, later
        Seconds that its first epoch here took, and all others together.
    news
        When its last epoch ended, or its start.
    """

    work: Work
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    validation: Validation | None = None
    state: str = "waiting"
    started: float | None = None
    ended: float | None = None
    begun: int = 0
    first: float = 0.0
    later: float = 0.0
    news: float = 0.0

    @property
    def share(self) -> float:
        """How much of the task is done, 0 to 1."""
        if self.state in FINISHED:
            return 1.0
        return self.epoch / self.epochs if self.epochs else 0.0

    @property
    def trained(self) -> int:
        """Epochs that were trained here."""
        return 0 if self.started is None else self.epoch - self.begun

    def stands_for(self, images: float) -> bool:
        """Whether an epoch of so many images can be judged by this one's, which is no trifle."""
        return 4 * self.work.images >= images or self.first + self.later >= 0.5 * self.trained

    def note(self, epoch: int, epochs: int, loss: float | None, state: str, now: float) -> None:
        """Take note of an event."""
        if self.started is None and state not in ("waiting", *FINISHED):
            self.started, self.news, self.begun = now, now, epoch
        if self.started is not None and epoch > self.epoch and epoch > self.begun:
            spent = now - self.news
            if self.epoch <= self.begun:  # should several end in one look, they share the time
                self.first = spent / (epoch - self.begun)
                spent -= self.first
            self.later += spent
            self.news = now
        self.epoch, self.epochs, self.loss, self.state = epoch, epochs, loss, state
        self.ended = (now if self.ended is None else self.ended) if state in FINISHED else None

    def seconds(self, cost: Cost, now: float) -> float:
        """What is left of it at this cost."""
        epochs = self.epochs or self.work.epochs
        if self.started is None or self.state == "waiting":
            return cost.first * self.work.images + cost.later * self.work.images * (epochs - 1)
        each = (cost.later if self.trained else cost.first) * self.work.images
        left = each + cost.later * self.work.images * (epochs - self.epoch - 1)
        return max(0.0, left - min(now - self.news, each))


@dataclass(frozen=True)
class Cost:
    """Seconds an image takes in a task's first epoch, and in a later one."""

    first: float
    later: float


def seconds_left(tasks: Iterable[Task], now: float) -> float | None:
    """Seconds until all is done; None while there is no basis.

    A lane's waiting tasks go to as many workers as were busy in it at one time, each with the
    time that has passed between two tasks of a worker so far.
    """
    lanes: dict[str, list[Task]] = {}
    for task in tasks:
        if task.work.lane:
            lanes.setdefault(task.work.lane, []).append(task)
    last = lanes.pop(LAST, [])
    every = [task for lane in lanes.values() for task in lane]
    general = _cost(every)
    total = 0.0
    for lane in lanes.values():
        if all(task.state in FINISHED for task in lane):
            continue
        cost = _cost(lane) or general
        if cost is None:
            return None
        seconds = _lane_seconds(lane, cost, now)
        if seconds is None:
            return None
        total = max(total, seconds)
    if all(task.state in FINISHED for task in last):
        return total
    cost = _cost(last) or (general and Cost(general.later, general.later))
    seconds = None if cost is None else _lane_seconds(last, cost, now)
    return None if seconds is None else total + seconds


def _cost(tasks: Sequence[Task]) -> Cost | None:
    """What was measured on these tasks, if that is enough."""
    largest = max((t.work.images for t in tasks if t.state not in FINISHED), default=0.0)
    seen = [task for task in tasks if task.trained and task.stands_for(largest)]
    more = [task for task in seen if task.trained > 1]
    several = any(max(task.epochs, task.work.epochs) > 1 for task in tasks)
    if not seen or (several and not more):
        return None
    spent = sum(task.later if several else task.first for task in seen)
    if spent < _BASIS and not _many_ended(tasks):
        return None
    first = sum(task.first for task in seen) / sum(task.work.images for task in seen)
    if not more:
        return Cost(first, first)
    images = sum(task.work.images * (task.trained - 1) for task in more)
    return Cost(first, sum(task.later for task in more) / images)


def _many_ended(tasks: Sequence[Task]) -> bool:
    """Whether tasks too short for a look at each have gone on for a while."""
    ended = [task for task in tasks if task.trained and task.ended is not None]
    times = [task.started for task in ended if task.started is not None]
    return len(ended) > workers(tasks) and max(t.ended or 0 for t in ended) - min(times) >= _BASIS


def workers(tasks: Sequence[Task]) -> int:
    """The most of these tasks that were at work at one time, at least 1."""
    begun = [task for task in tasks if task.started is not None]
    edges = [(task.started, 1) for task in begun]
    edges += [(task.ended, -1) for task in begun if task.ended is not None]
    at_work = itertools.accumulate(step for _, step in sorted(edges, key=lambda edge: edge))
    return max(at_work, default=1) or 1


def _lane_seconds(tasks: Sequence[Task], cost: Cost, now: float) -> float | None:
    count = workers(tasks)
    gap = _gap(tasks, count, now)
    if gap is None:
        unbegun = [task.seconds(cost, now) for task in tasks if task.state == "waiting"]
        if len(unbegun) > count and sum(unbegun) / len(unbegun) < _LONG:
            return None
        gap = 0.0
    total = 0.0
    for _, batch in itertools.groupby(sorted(tasks, key=_batch), key=_batch):
        running: list[float] = []
        waiting: list[float] = []
        for task in batch:
            if task.state not in FINISHED:
                idle = task.started is None or task.state == "waiting"
                (waiting if idle else running).append(task.seconds(cost, now))
        busy = [*[0.0] * (count - len(running)), *running]
        heapq.heapify(busy)
        for seconds in waiting:
            heapq.heapreplace(busy, busy[0] + seconds + gap)
        total += max(busy)
    return total


def _batch(task: Task) -> int:
    return task.work.batch


def _gap(tasks: Sequence[Task], count: int, now: float) -> float | None:
    """Seconds that a worker has spent between two tasks, on average; None if not seen yet."""
    begun = [task for task in tasks if task.started is not None]
    ended = [task for task in begun if task.ended is not None]
    if len(ended) < count or len(begun) < 2 * count:
        return None
    at_work = sum((now if t.ended is None else t.ended) - (t.started or 0.0) for t in begun)
    span = now - min(task.started or 0.0 for task in begun)
    return max(0.0, count * span - at_work) / len(ended)
