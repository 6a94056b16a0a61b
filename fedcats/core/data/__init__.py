"""Images: where they come from, decoded once, transformed per batch, dealt out to clients."""

from fedcats.core.data.audit import AuditReport, NearDuplicate, shared_between_shards
from fedcats.core.data.cache import Dataset, Images, open_dataset, prepare
from fedcats.core.data.catalogue import (
    SOURCES,
    hub_source,
    make_source,
    oxford_pets_source,
    petimages_source,
)
from fedcats.core.data.decoding import BadImage, decode
from fedcats.core.data.drawings import synthetic_source
from fedcats.core.data.partition import (
    PARTITIONS,
    hold_out,
    iid_partition,
    make_partition,
    paper_partition,
)
from fedcats.core.data.sheet import contact_sheet
from fedcats.core.data.sources import Item, Source, folder_source
from fedcats.core.data.transforms import MEAN, STD, draw_flips, flip_, normalise

__all__ = [
    "MEAN",
    "PARTITIONS",
    "SOURCES",
    "STD",
    "AuditReport",
    "BadImage",
    "Dataset",
    "Images",
    "Item",
    "NearDuplicate",
    "Source",
    "contact_sheet",
    "decode",
    "draw_flips",
    "flip_",
    "folder_source",
    "hold_out",
    "hub_source",
    "iid_partition",
    "make_partition",
    "make_source",
    "normalise",
    "open_dataset",
    "oxford_pets_source",
    "paper_partition",
    "petimages_source",
    "prepare",
    "shared_between_shards",
    "synthetic_source",
]
