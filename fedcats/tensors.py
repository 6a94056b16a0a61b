"""Tensors by name: in a file, and their digest."""

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

State = dict[str, Tensor]


def save(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, readable for whom the umask says, where the library has 0600."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    safetensors.torch.save_file(dict(tensors), path, dict(metadata) if metadata else None)
    path.chmod(mode)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, in sorted order."""
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        sha.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
