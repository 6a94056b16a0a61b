"""Tensors in a file."""

import stat
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def save(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, readable for whom the umask says, where the library has 0600."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    safetensors.torch.save_file(dict(tensors), path, dict(metadata) if metadata else None)
    path.chmod(mode)
