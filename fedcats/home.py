"""Where fedcats keeps what it reuses: decoded images, weights, finished updates."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Return ``FEDCATS_HOME``, else the user's cache folder; ``~`` is the user's home folder."""
    path = os.environ.get("FEDCATS_HOME") or platformdirs.user_cache_dir("fedcats")
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111  (see `fedcats.config.paths.expand`)


def runs() -> Path:
    """Where results go of whom no run folder was named, under ``flwr run``: in no cache folder."""
    kept = home() if os.environ.get("FEDCATS_HOME") else platformdirs.user_data_path("fedcats")
    return kept / "runs"
