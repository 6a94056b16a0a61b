"""Images: where they come from, decoded once, transformed per batch, dealt out to clients."""

from fedcats.core.data.cache import Dataset, Images, open_dataset, prepare
from fedcats.core.data.decoding import BadImage, decode
from fedcats.core.data.drawings import synthetic_source
from fedcats.core.data.partition import (
    PARTITIONS,
    iid_partition,
    make_partition,
    paper_partition,
)
from fedcats.core.data.sources import Item, Source, folder_source
from fedcats.core.data.transforms import MEAN, STD, flip_, normalise

__all__ = [
    "MEAN",
    "PARTITIONS",
    "STD",
    "BadImage",
    "Dataset",
    "Images",
    "Item",
    "Source",
    "decode",
    "flip_",
    "folder_source",
    "iid_partition",
    "make_partition",
    "normalise",
    "open_dataset",
    "paper_partition",
    "prepare",
    "synthetic_source",
]
