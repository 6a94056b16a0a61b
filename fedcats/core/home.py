"""Where fedcats keeps what it reuses: decoded images, weights, finished updates."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Return ``FEDCATS_HOME``, else the user's cache folder."""
    return Path(os.environ.get("FEDCATS_HOME") or platformdirs.user_cache_dir("fedcats")).absolute()
