"""Memory that is not enough, on a GPU or here."""

import contextlib
from collections.abc import Iterator

import torch

from fedcats.errors import RunError


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Say in one line where a GPU's memory, or here all that the system gives, is not enough.

    Raises
    ------
    RunError
        In the place of PyTorch's errors, which are long and speak of its allocator.
    """
    lower = "lower train.batch_size or runner.workers"
    try:
        yield
    except torch.OutOfMemoryError as error:
        rest = "end what else is there, or take runner.device=cpu"
        raise RunError(f"the GPU's memory is not enough: {lower}, {rest}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # DefaultCPUAllocator's words
            raise
        raise RunError(f"the memory is not enough: {lower}") from error
