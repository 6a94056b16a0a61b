"""SIGTERM, which batch systems send, ends a command as Ctrl-C does, and within a bound."""

import os
import signal
import threading
import time
from types import FrameType

SECONDS = 30.0  # after which the process ends, whatever waits for what
CODE = 128 + signal.SIGTERM

_handled: list[bool] = []
_came: list[bool] = []


def handle_term() -> None:
    """From now on, where nobody else handles it; in the main thread."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _handled.append(True)
        signal.signal(signal.SIGTERM, _interrupt)


def handle_term_again() -> None:
    """After a library has put its own handler in the place of ours: Ray does."""
    if _handled and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def came() -> bool:
    """Whether this process was told to end by SIGTERM."""
    return bool(_came)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.append(True)
    threading.Thread(target=_end, daemon=True).start()
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # ignored in what a script starts in the background
        handler = signal.default_int_handler
    handler(signal.SIGINT, frame)


def _end() -> None:
    time.sleep(SECONDS)
    os._exit(CODE)
