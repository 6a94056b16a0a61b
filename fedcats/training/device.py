"""On which device a run computes: the CPU, or one GPU."""

from collections.abc import Callable

import torch

from fedcats.errors import UserError


def find_device(asked: str, say: Callable[[str], None], where: str = "") -> str:
    """``cpu`` or ``cuda``, of ``runner.device``; what other GPUs there are is said.

    Parameters
    ----------
    asked
        ``auto``, ``cpu`` or ``cuda``.
    where
        Begins the error.

    Raises
    ------
    UserError
        When a GPU is asked for and none can be used.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError(
            f"{where}runner.device=cuda: no GPU can be used here; allowed are auto, cpu"
        )
    if asked == "cpu" or not there:
        return "cpu"
    if (count := torch.cuda.device_count()) > 1:
        say(
            f"of {count} GPUs one is used, cuda:{torch.cuda.current_device()}; "
            "CUDA_VISIBLE_DEVICES chooses which"
        )
    return "cuda"
