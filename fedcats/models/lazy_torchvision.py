"""torchvision without PyTorch's compiler, half of what a process would import before it trains.

torchvision imports all of ``torch._dynamo`` for one function, which only detectors call. Here that
function imports it when it is called.
"""

import importlib
import sys
import types

_NAME = "torch._dynamo.utils"


class _Later(types.ModuleType):
    """Stands in for the module until something else of it is needed than that one function."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return bool(importlib.import_module(_NAME).is_compile_supported(device_type))

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # Python's own questions, such as for the file
            raise AttributeError(name)
        _leave(self)
        return getattr(importlib.import_module(_NAME), name)


def _leave(later: _Later) -> None:
    if sys.modules.get(_NAME) is later:
        del sys.modules[_NAME]


_later = _Later(_NAME)
sys.modules.setdefault(_NAME, _later)
try:
    import torchvision
finally:
    _leave(_later)

__all__ = ["torchvision"]
