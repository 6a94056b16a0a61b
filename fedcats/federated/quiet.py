"""Flower's and Ray's own log lines kept away."""

import contextlib
import logging
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Flower's and Ray's log lines once instead of twice, or not at all."""
    level = logging.INFO if verbose else logging.CRITICAL
    loggers = [logging.getLogger(name) for name in ("flwr", "ray")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (old_level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(old_level)
            logger.propagate = propagate


def default_workers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
