"""The live display of a run."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedcats.report.estimate import FINISHED, Task, Work, seconds_left
from fedcats.results import Validation

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_STYLES = {"done": "green", "reused": "cyan", "failed": "bold red", "waiting": "dim"}
_MANY = 30  # above this many tasks, plain output no longer has a line for each


class Cell:
    """A live display in a notebook's cell: Rich's own needs widgets, which are not everywhere.

    Parameters
    ----------
    render
        What to show.
    """

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self._render = render
        self._shown: Any = None
        self._next = 0.0

    def start(self, *, refresh: bool) -> None:
        """Show it in the cell that runs now."""
        from IPython.display import HTML, display

        page = HTML(self._html())  # type: ignore[no-untyped-call]
        self._shown = display(page, display_id=True)  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Show it as it is now, at most twice a second."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + 0.5
            self._update()

    def stop(self) -> None:
        """Leave the last state."""
        self._update()

    def _update(self) -> None:
        from IPython.display import HTML

        if self._shown is not None:
            self._shown.update(HTML(self._html()))  # type: ignore[no-untyped-call]

    def _html(self) -> str:
        from fedcats.report.console import SafeConsole

        console = SafeConsole(record=True, file=io.StringIO(), width=100, force_jupyter=False)
        console.print(self._render())
        style = "line-height: 1.3; font-family: monospace; background: none"
        return console.export_html(
            inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>'
        )


class Progress:
    """Show what is being trained: a live table in a terminal, now and then a line elsewhere.

    Use as a context manager. Events may come from any thread.

    Parameters
    ----------
    tasks
        What is going to be trained, by name. A task that was not announced joins at its first
        event and has no part in the estimate of the time left.
    console
        Where to show it; standard error by default, so that it never mixes with a result.
    every
        Seconds between two lines of unfinished work where there is no terminal.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self,
        tasks: Mapping[str, Work] = MappingProxyType({}),
        console: Console | None = None,
        *,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.live import Live

        from fedcats.report.console import SafeConsole

        self.console = SafeConsole(stderr=True) if console is None else console
        self.on_loss: Callable[[str, int, float, str, Validation | None], None] = lambda *_: None
        self.prefix = ""  # of the names in what follows, such as "seed 1, "
        self._lock = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._said: set[str] = set()
        self.expect(tasks)
        self._every = every
        self._clock = clock
        self._start = clock()
        self._last_line = self._start
        capable = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live: Live | Cell | None = None
        if self.console.is_jupyter:
            self._live = Cell(self._render)
        elif capable:
            self._live = Live(
                console=self.console,
                get_renderable=self._render,
                refresh_per_second=4,
                vertical_overflow="crop",
            )

    def __enter__(self) -> Self:
        """Start the display."""
        self._start = self._last_line = self._clock()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        if self._live:
            self._live.stop()
        elif self._tasks:
            self._print(self._total())

    def expect(self, tasks: Mapping[str, Work]) -> None:
        """Announce more tasks, as in the constructor."""
        with self._lock:
            for name, work in tasks.items():
                self._tasks.setdefault(name, Task(work))

    def update(
        self,
        task: str,
        epoch: int,
        epochs: int,
        loss: float | None,
        state: str,
        ago: float = 0.0,
        validation: Validation | None = None,
    ) -> None:
        """Take note of an event.

        Parameters
        ----------
        task
            Name of what is trained, for example "centralized" or "round 2, client 3".
        epoch, epochs
            Epochs completed, and epochs in all.
        loss
            Mean training loss of the last epoch, if there is one yet.
        state
            "waiting", "training" or another word for what it does now; "done", "reused" (taken
            from the store) and "failed" are final.
        ago
            Seconds since it happened.
        validation
            What the model scores on held-out photos after that epoch.
        """
        with self._lock:
            now = self._clock()
            task = self.prefix + task
            one = self._tasks.setdefault(task, Task(Work()))
            news = state in FINISHED and one.state != state
            one.note(epoch, epochs, loss, state, now - ago)
            one.validation = validation
            if loss is not None:
                self.on_loss(task, epoch, loss, state, validation)
            if isinstance(self._live, Cell):
                self._live.refresh()
            if self._live:
                return
            due = now - self._last_line >= self._every
            if due or state == "failed" or (news and len(self._tasks) <= _MANY):
                self._print(f"{self._line(task, one)}  ({self._total()})")

    def message(self, text: str) -> None:
        """Show a line that stays; each only once."""
        with self._lock:
            if text not in self._said:
                self._said.add(text)
                self._print(text)

    def _print(self, text: str) -> None:
        self._last_line = self._clock()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _total(self) -> str:
        states = [task.state for task in self._tasks.values()]
        failed, reused = states.count("failed"), states.count("reused")
        finished = sum(state in FINISHED for state in states)
        text = f"{finished - failed} of {len(states)} done"
        text += f", {reused} from the store" if reused else ""
        text += f", {failed} failed" if failed else ""
        text += f", {_minutes(self._clock() - self._start)} elapsed"
        remaining = seconds_left(self._tasks.values(), self._clock())
        if remaining is not None and remaining >= 1 and finished < len(states):
            text += f", about {_minutes(remaining)} left"
        return text

    def _line(self, name: str, task: Task) -> str:
        text = f"{name}: {task.state}"
        if task.epochs and task.state != "reused":
            word = "" if task.loss is None else "epoch "
            text += f", {word}{task.epoch} of {task.epochs}"
        if task.loss is not None:
            text += f", {_losses(task)}"
        return text

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            now = self._clock()
            room = max(self.console.height - 6, 4)
            shown = self._most_interesting(room)
            grid = Table.grid(padding=(0, 2))
            for name in shown:
                task = self._tasks[name]
                spent = "" if task.started is None else _minutes((task.ended or now) - task.started)
                grid.add_row(
                    Text(name),
                    ProgressBar(total=1.0, completed=task.share, width=20),
                    Text(f"{task.epoch}/{task.epochs}" if task.epochs else "", justify="right"),
                    Text(_losses(task)),
                    Text(spent, justify="right"),
                    Text(task.state, style=_STYLES.get(task.state, "yellow")),
                )
            hidden = len(self._tasks) - len(shown)
            more = [Text(f"and {hidden} more", style="dim")] if hidden else []
            return Group(grid, *more, Text(self._total(), style="bold"))

    def _most_interesting(self, room: int) -> list[str]:
        """Names of at most ``room`` tasks in their own order: failed, at work, finished last."""

        def rank(name: str) -> tuple[int, float]:
            task = self._tasks[name]
            if task.state == "failed":
                return 0, 0.0
            if task.state in FINISHED:
                return 2, -(task.ended or 0.0)
            return (3, 0.0) if task.state == "waiting" else (1, 0.0)

        chosen = set(sorted(self._tasks, key=rank)[:room])
        return [name for name in self._tasks if name in chosen]


def _losses(task: Task) -> str:
    text = "" if task.loss is None else f"loss {task.loss:.4f}"
    return f"{text}, held out {task.validation['loss']:.4f}" if task.validation else text


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
