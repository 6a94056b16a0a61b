"""Where the clients run: Flower's simulation on Ray, or this process. The only user of both."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, cast

import psutil
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedcats.environment import say
from fedcats.errors import RunError
from fedcats.federated import own_ray
from fedcats.federated.client_app import app as client_app
from fedcats.federated.flower_patches import kill_busy_actors, use_own_parts
from fedcats.federated.flower_words import CLIENT_PROCESS, RESTARTING
from fedcats.federated.quiet import quiet

Main = Callable[[Grid], None]
"""What the server does with a grid: fedcats' ServerApp without Flower's context."""

_LOST = "Ray has ended in the middle of the run; finished updates are kept"


def run_on_ray(
    main: Main,
    num_clients: int,
    workers: int,
    *,
    address: str | None = None,
    verbose: bool = False,
) -> None:
    """Run ``num_clients`` virtual clients on ``workers`` Ray actors, or on those of a cluster.

    Parameters
    ----------
    address
        ``host:port`` of a Ray cluster that runs already (see `check_cluster`); each of its CPUs
        is a worker then.

    Raises
    ------
    RunError
        When Ray or Flower fail; what ``main`` raises comes out as it is.
    """
    import ray
    from flwr.simulation import run_simulation

    raised: list[BaseException] = []
    finished: list[bool] = []
    over, ended, lost = threading.Event(), threading.Event(), threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def run(grid: Grid, context: Context) -> None:
        try:
            main(cast(Grid, RayGrid(grid, over, lost)))
            finished.append(True)
        except BaseException as error:  # Flower would print it, and wait for a result
            raised.append(error)
        finally:
            over.set()

    # Only messages without arrays pass through Ray's object store.
    own = {"num_cpus": workers, "object_store_memory": 128 * 2**20}
    backend: dict[str, Any] = {
        "init_args": {
            **(own if address is None else {"address": address}),
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.CRITICAL,
        },
        "client_resources": {"num_cpus": 1},
    }
    use_own_parts()
    reaper = _start_reaper(over, ended, lost)
    # Ray prints to standard output that a worker died, whatever its log level.
    with (
        _interrupt_sets(over) as interrupted,
        quiet(verbose),
        contextlib.redirect_stdout(sys.stdout if verbose else io.StringIO()),
    ):
        try:
            run_simulation(server_app, client_app, num_clients, backend_config=backend)
        except Exception as error:
            if not raised:
                cause = error.__cause__ or error  # Flower's own words say nothing
                if isinstance(cause, RunError):
                    raise cause from None
                what = str(cause).strip() or type(cause).__name__
                raise RunError(f"the simulation failed: {what}") from error
        finally:
            over.set()
            if ray.is_initialized():
                ray.shutdown()
            own_ray.remove_files()
            ended.set()
            reaper.join()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if raised:
        raise raised[0]
    if not finished:
        raise RunError("the simulation ended before the server had finished")


@contextlib.contextmanager
def watched(grid: Grid, *, verbose: bool) -> Iterator[Grid]:
    """The grid of a simulation that Flower itself runs (``flwr run``), as `run_on_ray` has it.

    Its actors restart (see `fedcats.federated.flower_patches`); those that are busy at the end
    are killed.
    """
    over, lost = threading.Event(), threading.Event()
    _start_reaper(over, threading.Event(), lost)  # the process ends with the run
    with quiet(verbose):
        try:
            yield cast(Grid, RayGrid(grid, over, lost))
        finally:
            over.set()


@contextlib.contextmanager
def _interrupt_sets(over: threading.Event) -> Iterator[threading.Event]:
    """The first interrupt ends the server's part, and so the simulation; yields whether it came.

    As an exception in the midst of Ray or Flower it may be lost, or leave threads that wait for
    ever. A second one is raised.
    """
    interrupted = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            signal.default_int_handler(number, frame)
        interrupted.set()
        over.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _start_reaper(
    over: threading.Event, ended: threading.Event, lost: threading.Event
) -> threading.Thread:
    """Flower would wait for every client that still works, and for ever for one that hangs."""
    reaper = threading.Thread(target=_end_busy_actors, args=(over, ended, lost), daemon=True)
    reaper.start()
    return reaper


def _end_busy_actors(over: threading.Event, ended: threading.Event, lost: threading.Event) -> None:
    """Once the server's part is ``over``, kill what its clients still do, until all has ended.

    When Ray itself is ``lost``, Flower's threads wait in it for ever: only the process can end.
    """
    over.wait()
    if lost.is_set() and not ended.wait(5.0):
        say(f"fedcats: {_LOST}", error=True)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        os._exit(RunError.exit_code)
    while not ended.wait(0.5):
        kill_busy_actors()


def kill_stopped_actors() -> None:
    """Kill what a signal has stopped: it cannot end itself, and blocks its place for others.

    Ray starts such an actor again.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (
                process.cmdline()[:1] == [CLIENT_PROCESS]
                and process.status() == psutil.STATUS_STOPPED
            ):
                process.kill()


class RayGrid:
    """Asks a client again when its actor was just being restarted, because another one died in it.

    Flower's pool gives clients to such an actor too; Ray refuses them before they have begun.
    """

    def __init__(self, grid: Grid, over: threading.Event, lost: threading.Event) -> None:
        self._grid = grid
        self._over = over
        self._lost = lost
        self._raylet: psutil.Process | None = None
        self._sent: dict[str, Message] = {}
        self._again: dict[str, str] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push, and remember what was sent: it is small, nothing of it are arrays."""
        ids = []
        for message in messages:
            (message_id,) = self._grid.push_messages([message])
            self._sent[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull the replies of clients that have begun; RunError when no more can come."""
        if self._over.is_set():  # an interrupt, or Ray did not start: this thread must end too
            raise RunError("the simulation has ended")
        replies = []
        for message_id in message_ids:
            for reply in self._grid.pull_messages([self._again.get(message_id, message_id)]):
                if reply.has_error() and RESTARTING in (reply.error.reason or ""):
                    old = self._sent[message_id]
                    new = Message(
                        old.content,
                        dst_node_id=old.metadata.dst_node_id,
                        message_type=old.metadata.message_type,
                    )
                    (self._again[message_id],) = self._grid.push_messages([new])
                else:
                    replies.append(reply)
        self._check_ray()  # after the pull: errors of workers that died of it are no clients' own
        return replies

    def _check_ray(self) -> None:
        """Flower waits for ever for a Ray that was killed (on a cluster there is none here)."""
        if self._raylet is None:
            children = psutil.Process().children()
            self._raylet = next((c for c in children if c.name() == "raylet"), None)
        elif not self._raylet.is_running() or self._raylet.status() == psutil.STATUS_ZOMBIE:
            self._lost.set()
            raise RunError(_LOST)
