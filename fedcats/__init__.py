"""fedcats: what does an image classifier lose when the photos stay on N devices?

In Python it reads like the paper; ``docs/api.md`` says more:

>>> import fedcats as fc
>>> photos = fc.photos("photos/")
>>> run = fc.federate(photos, fc.shards(photos, clients=10), model="alexnet", epochs=10)
>>> run.compare(run.merge(fc.polyak(beta=0.5))).show()

The names below come from `fedcats.api` when they are asked for: the import itself costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcats.api import Merging as Merging
    from fedcats.api import Photos as Photos
    from fedcats.api import Run as Run
    from fedcats.api import Shards as Shards
    from fedcats.api import drawings as drawings
    from fedcats.api import fedavg as fedavg
    from fedcats.api import federate as federate
    from fedcats.api import open as open
    from fedcats.api import photos as photos
    from fedcats.api import polyak as polyak
    from fedcats.api import rule as rule
    from fedcats.api import run as run
    from fedcats.api import shards as shards
    from fedcats.errors import RunError as RunError
    from fedcats.errors import UserError as UserError

__version__ = "0.1.0"

_ERRORS = ("RunError", "UserError")
_API = (
    *("Merging", "Photos", "Run", "Shards", "drawings", "fedavg", "federate", "open", "photos"),
    *("polyak", "rule", "run", "shards"),
)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _API or name in _ERRORS:
        return getattr(import_module(f"fedcats.{'errors' if name in _ERRORS else 'api'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API, *_ERRORS])
