"""Photos, tables, tars and latents into indexed shards."""

from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.shard_writer import ShardJournal, ShardWriter, open_journal
from datamodules.writing.source_lists import Columns, Source, find_sources, fingerprint
from datamodules.writing.source_samples import PackedSample, Packing, Resize, try_source

__all__ = [
    "Columns",
    "PackedSample",
    "Packing",
    "Resize",
    "ShardJournal",
    "ShardWriter",
    "Source",
    "find_sources",
    "fingerprint",
    "open_journal",
    "ordered_map",
    "try_source",
]
