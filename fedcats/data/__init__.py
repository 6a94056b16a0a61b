"""Images: where they come from, decoded once, transformed per batch, dealt out to clients.

The names below come from their modules when they are asked for: the limits of sources and
partitions are read without NumPy and PyTorch.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcats.data.audit import AuditReport as AuditReport
    from fedcats.data.audit import NearDuplicate as NearDuplicate
    from fedcats.data.audit import shared_between_shards as shared_between_shards
    from fedcats.data.catalogue import SOURCES as SOURCES
    from fedcats.data.dataset import DamagedData as DamagedData
    from fedcats.data.dataset import Dataset as Dataset
    from fedcats.data.dataset import Images as Images
    from fedcats.data.dataset import open_dataset as open_dataset
    from fedcats.data.decoding import BadImage as BadImage
    from fedcats.data.decoding import decode as decode
    from fedcats.data.downloaded import oxford_pets_source as oxford_pets_source
    from fedcats.data.downloaded import petimages_source as petimages_source
    from fedcats.data.drawings.source import synthetic_source as synthetic_source
    from fedcats.data.hub import hub_source as hub_source
    from fedcats.data.partition import PARTITIONS as PARTITIONS
    from fedcats.data.partition import hold_out as hold_out
    from fedcats.data.partition import paper_partition as paper_partition
    from fedcats.data.preparing import prepare as prepare
    from fedcats.data.sheet import contact_sheet as contact_sheet
    from fedcats.data.sources import Item as Item
    from fedcats.data.sources import Source as Source
    from fedcats.data.sources import folder_source as folder_source
    from fedcats.data.transforms import MEAN as MEAN
    from fedcats.data.transforms import STD as STD
    from fedcats.data.transforms import draw_flips as draw_flips
    from fedcats.data.transforms import flip_ as flip_
    from fedcats.data.transforms import normalise as normalise

_WHERE = {
    "audit": ("AuditReport", "NearDuplicate", "shared_between_shards"),
    "catalogue": ("SOURCES",),
    "dataset": ("DamagedData", "Dataset", "Images", "open_dataset"),
    "decoding": ("BadImage", "decode"),
    "downloaded": ("oxford_pets_source", "petimages_source"),
    "drawings.source": ("synthetic_source",),
    "hub": ("hub_source",),
    "partition": ("PARTITIONS", "hold_out", "paper_partition"),
    "preparing": ("prepare",),
    "sheet": ("contact_sheet",),
    "sources": ("Item", "Source", "folder_source"),
    "transforms": ("MEAN", "STD", "draw_flips", "flip_", "normalise"),
}


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return resolve_name(f"{__name__}.{module}:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
