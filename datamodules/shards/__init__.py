"""Tars and what is in them, local and remote: any sample by its number."""

from datamodules.shards.downloads import RemoteStream
from datamodules.shards.manifest import (
    JOURNAL,
    MANIFEST,
    SHA256,
    ManifestRow,
    Shard,
    index_path,
    load_index,
    parse_row,
    read_manifest,
    write_index,
    write_rows,
)
from datamodules.shards.shard_cache import ShardCache
from datamodules.shards.shard_set import Contents, RawSample, ShardSet, look_into
from datamodules.shards.shard_specs import aside_line, find_shards, packing_advice
from datamodules.shards.tar_index import (
    IMAGE_FIELDS,
    LABEL_FIELDS,
    LATENTS_FIELD,
    MASK_FIELDS,
    ScannedTar,
    ShardIndex,
    account_of,
    check_ignorable,
    kinds_of,
    scan_tar,
)
from datamodules.shards.transports import file_name, is_remote, scheme

__all__ = [
    "IMAGE_FIELDS",
    "JOURNAL",
    "LABEL_FIELDS",
    "LATENTS_FIELD",
    "MANIFEST",
    "MASK_FIELDS",
    "SHA256",
    "Contents",
    "ManifestRow",
    "RawSample",
    "RemoteStream",
    "ScannedTar",
    "Shard",
    "ShardCache",
    "ShardIndex",
    "ShardSet",
    "account_of",
    "aside_line",
    "check_ignorable",
    "file_name",
    "find_shards",
    "index_path",
    "is_remote",
    "kinds_of",
    "load_index",
    "look_into",
    "packing_advice",
    "parse_row",
    "read_manifest",
    "scan_tar",
    "scheme",
    "write_index",
    "write_rows",
]
