"""Photos, tables, tars and latents into indexed shards."""

from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.pictures import (
    MAKER,
    GivenPicture,
    Picture,
    caption_of,
    check_outputs,
    filled,
    find_pictures,
    read_given,
    write_png,
)
from datamodules.writing.shard_writer import ShardJournal, ShardWriter, open_journal
from datamodules.writing.source_lists import Columns, Source, find_sources, fingerprint
from datamodules.writing.source_samples import PackedSample, Packing, Resize, try_source

__all__ = [
    "MAKER",
    "Columns",
    "GivenPicture",
    "PackedSample",
    "Packing",
    "Picture",
    "Resize",
    "ShardJournal",
    "ShardWriter",
    "Source",
    "caption_of",
    "check_outputs",
    "filled",
    "find_pictures",
    "find_sources",
    "fingerprint",
    "open_journal",
    "ordered_map",
    "read_given",
    "try_source",
    "write_png",
]
