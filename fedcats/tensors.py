"""Tensors by name: in a file, and their digest."""

import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

State = dict[str, Tensor]

_STALE_SECONDS = 300.0  # a temporary file not written to for so long belongs to a killed process


def save(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, readable for whom the umask says, where the library has 0600.

    It is there when it is whole; a killed process leaves a file for `remove_stale`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        safetensors.torch.save_file(dict(tensors), temporary, dict(metadata) if metadata else None)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left of `save`, where that may be done."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, in sorted order."""
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        sha.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
