"""Images: where they come from, decoded once, transformed per batch, dealt out to clients."""

from fedcats.data.audit import AuditReport, NearDuplicate, shared_between_shards
from fedcats.data.catalogue import SOURCES, make_source
from fedcats.data.dataset import DamagedData, Dataset, Images, open_dataset
from fedcats.data.decoding import BadImage, decode
from fedcats.data.downloaded import oxford_pets_source, petimages_source
from fedcats.data.drawings.source import synthetic_source
from fedcats.data.hub import hub_source
from fedcats.data.partition import (
    PARTITIONS,
    hold_out,
    iid_partition,
    make_partition,
    paper_partition,
)
from fedcats.data.prepare import prepare
from fedcats.data.sheet import contact_sheet
from fedcats.data.sources import Item, Source, folder_source
from fedcats.data.transforms import MEAN, STD, draw_flips, flip_, normalise

__all__ = [
    "MEAN",
    "PARTITIONS",
    "SOURCES",
    "STD",
    "AuditReport",
    "BadImage",
    "DamagedData",
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
