"""The estimate of the time left, against simulated runs whose end is known."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats.report.estimate import LAST, Task, Work, seconds_left


class Event(NamedTuple):
    at: float
    task: str
    epoch: int
    state: str


class Schedule(NamedTuple):
    """How a made-up run goes: seconds everywhere."""

    sizes: list[int]  # images of each client
    epochs: int
    workers: int
    rounds: int = 1
    baseline: bool = True
    per_image: float = 0.05
    warm_up: float = 1.0  # a first epoch takes so many times as long
    gap: float = 0.5  # between two clients of a worker
    start: float = 5.0  # before the first client
    noise: float = 0.1
    stored: int = 0  # clients found in the store
    test: float = 10.0
    data: float = 8.0
    look: float = 0.2  # seconds between two looks at what has come
    seed: int = 0

    def works(self) -> dict[str, Work]:
        works = {
            f"{number} {client}": Work(size, self.epochs, "clients", number)
            for number in range(self.rounds)
            for client, size in enumerate(self.sizes)
        }
        if self.baseline:
            works["centralized"] = Work(sum(self.sizes), self.epochs * self.rounds, "centralized")
        images = self.test / self.per_image / 10
        return {**works, "test": Work(images, 10, LAST)}

    def events(self) -> list[Event]:
        """In order; the last one is the end of the run."""
        draw = random.Random(self.seed)
        works = self.works()

        def task(name: str, at: float) -> tuple[float, list[Event]]:
            own = [Event(at, name, 0, "training")]
            for epoch in range(1, works[name].epochs + 1):
                slow = self.warm_up if epoch == 1 < self.epochs else 1.0
                noise = draw.uniform(1 - self.noise, 1 + self.noise)
                at += works[name].images * self.per_image * slow * noise
                own.append(Event(at, name, epoch, "training"))
            return at, [*own, Event(at, name, works[name].epochs, "done")]

        events = [Event(0.0, "images", 0, "decoding"), Event(self.data, "images", 900, "done")]
        ends = [self.data]
        if self.baseline:
            end, own = task("centralized", self.data)
            ends.append(end)
            events += own
        at = self.data + self.start
        for number in range(self.rounds):
            free = [at] * self.workers
            for client in range(len(self.sizes)):
                name = f"{number} {client}"
                if number == 0 and client < self.stored:
                    events.append(Event(at, name, self.epochs, "reused"))
                    continue
                end, own = task(name, heapq.heappop(free))
                events += own
                heapq.heappush(free, end + self.gap)
            at = max(free)
        ends.append(at)
        at = max(ends)
        events += [Event(at + self.test * i / 10, "test", i, "testing") for i in range(11)]
        return sorted(events, key=lambda event: event.at)  # of one time: as they were made


def shown(schedule: Schedule, say: Callable[[float, float | None, float], None]) -> int:
    """Call ``say(now, estimate, truth)`` as a run goes on; how often there was an estimate."""
    tasks = {name: Task(work) for name, work in schedule.works().items()}
    events = schedule.events()
    end, count = events[-1].at, 0
    now, step = 0.0, max(schedule.look, events[-1].at / 300)
    while now < end:
        now += step
        while events and events[0].at <= now:
            event = events.pop(0)
            one = tasks.setdefault(event.task, Task(Work()))
            epochs = 900 if event.task == "images" else one.work.epochs
            one.note(event.epoch, epochs, None, event.state, event.at)
        estimate = seconds_left(tasks.values(), now)
        count += estimate is not None
        say(now, estimate, max(end - now, 0.0))
    return count


def check(schedule: Schedule) -> int:
    total = schedule.events()[-1].at

    def within(now: float, estimate: float | None, truth: float) -> None:
        slack = 2.0 + 0.05 * total
        if estimate is not None:
            assert truth / 2 - slack <= estimate <= 2 * truth + slack, (now, estimate, truth)

    return shown(schedule, within)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        Schedule,
        sizes=st.lists(st.integers(1, 400), min_size=1, max_size=30),
        epochs=st.integers(1, 10),
        workers=st.integers(1, 8),
        rounds=st.integers(1, 3),
        baseline=st.booleans(),
        per_image=st.sampled_from([0.001, 0.05, 0.2]),
        warm_up=st.sampled_from([0.7, 1.0, 3.0, 20.0]),
        gap=st.sampled_from([0.0, 0.5, 2.0]),
        start=st.sampled_from([0.0, 5.0, 15.0]),
        stored=st.sampled_from([0, 1, 20]),
        data=st.sampled_from([0.5, 8.0, 60.0]),
        noise=st.sampled_from([0.0, 0.1]),
        test=st.sampled_from([1.0, 20.0]),
        look=st.just(0.2),
        seed=st.integers(0, 5),
    )
)
def test_an_estimate_once_there_is_one_is_within_a_factor_of_two(schedule: Schedule) -> None:
    check(schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule([40] * 10, 5, 1, per_image=0.045),  # the demo on two cores
        Schedule([198] * 10, 10, 1, per_image=0.06, data=20.0, test=60.0),  # the paper's
        Schedule([198] * 10, 10, 15, per_image=0.06),  # the baseline alone is the last
        Schedule([20] * 1000, 2, 2, rounds=3, baseline=False, per_image=0.01, warm_up=5.0, gap=0.1),
        Schedule([300] * 20, 5, 4, stored=12),  # goes on where it stopped
        Schedule([5, 2000, 30, 700], 10, 2, per_image=0.02),
    ],
)
def test_there_is_an_estimate_for_most_of_a_run(schedule: Schedule) -> None:
    assert check(schedule) > 0.7 * 300


def test_what_was_not_trained_here_is_no_basis() -> None:
    client = Work(200, 10, "clients")
    images, reused, resumed = Task(Work()), Task(client), Task(client)
    images.note(500, 1000, None, "decoding", 1.0)
    assert seconds_left([images, reused, resumed], 60.0) is None
    images.note(1000, 1000, None, "done", 60.0)
    reused.note(10, 10, 0.1, "reused", 61.0)
    resumed.note(7, 10, 0.1, "training", 61.0)  # from a checkpoint
    assert seconds_left([images, reused, resumed], 62.0) is None
    resumed.note(8, 10, 0.1, "training", 71.0)
    resumed.note(9, 10, 0.1, "training", 81.0)
    assert seconds_left([images, reused, resumed], 85.0) == pytest.approx(6.0)
    assert seconds_left([images, reused, resumed], 99.0) == 0.0
    resumed.note(10, 10, 0.1, "done", 99.0)
    assert seconds_left([images, reused, resumed], 99.0) == 0.0


def test_a_task_that_is_seen_only_at_its_end_gives_no_estimate() -> None:
    sites = [Task(Work(200, 10, "clients")) for _ in range(3)]
    for task in sites[:2]:
        task.note(10, 10, 0.1, "done", 100.0)
    assert seconds_left(sites, 101.0) is None


def test_tasks_that_wait_go_to_the_workers_there_are() -> None:
    work = Work(100, 4, "clients")
    tasks = [Task(work) for _ in range(6)]
    for task in tasks[:2]:
        task.note(0, 4, None, "training", 0.0)
        task.note(1, 4, 0.1, "training", 5.0)
        task.note(2, 4, 0.1, "training", 10.0)
    # two of four epochs are left of two, then two each for two workers: 10 + 20 + 20
    assert seconds_left(tasks, 10.0) == pytest.approx(50.0)
    alone = Task(Work(1000, 4, "centralized"))
    alone.note(0, 4, None, "training", 0.0)  # an epoch of it takes 50 s, as it seems
    assert seconds_left([*tasks, alone], 10.0) == pytest.approx(190.0)
    # rounds: of three tasks on two workers one is alone
    rounds = [Task(Work(100, 4, "clients", number)) for number in (1, 1, 1, 2, 2, 2)]
    for task in rounds[:2]:
        task.note(0, 4, None, "training", 0.0)
        task.note(1, 4, 0.1, "training", 5.0)
        task.note(2, 4, 0.1, "training", 10.0)
    assert seconds_left(rounds, 10.0) == pytest.approx(10 + 20 + 2 * 20)


def test_many_tasks_are_reckoned_quickly() -> None:
    tasks = [Task(Work(20, 2, "clients", i // 1000)) for i in range(6000)]
    for i, task in enumerate(tasks[:3000]):
        task.note(0, 2, None, "training", i / 4)
        task.note(2, 2, 0.1, "done", i / 4 + 0.5)
    started = time.perf_counter()
    assert seconds_left(tasks, 750.0) is not None
    assert time.perf_counter() - started < 1.0
