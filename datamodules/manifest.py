"""Manifest and index: what a folder of shards holds, written once, so that opening it reads no tar.

A shard folder may hold `manifest.json` (version, and for each shard its name, count, bytes and sha256) and one
`<shard>.index.json` beside each tar (keys, and field -> [offset, size]). `make_shards` writes both; shards without
them are indexed when they are opened, from their tar headers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from datamodules.tar_index import ShardIndex, index_shard, is_safe

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar: `digest` is its sha256 from the manifest, else `index:` and the sha256 of its index."""

    path: str
    count: int
    bytes: int
    digest: str
    index: ShardIndex | None = dataclass_field(default=None, repr=False)


def index_path(shard: Path) -> Path:
    """`000000.tar` -> `000000.index.json`."""
    return shard.with_suffix(".index.json")


def write_manifest(folder: str | Path) -> list[Shard]:
    """Index every tar of a folder and write its `manifest.json` and index files; returns the shards."""
    folder = Path(folder)
    shards = []
    for path in sorted(folder.glob("*.tar")):
        index = index_shard(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append(Shard(str(path), len(index.keys), path.stat().st_size, digest))
        content = {"version": VERSION, "bytes": shards[-1].bytes, **index._asdict()}
        index_path(path).write_text(json.dumps(content, separators=(",", ":")) + "\n")
    rows = [{"name": Path(s.path).name, "count": s.count, "bytes": s.bytes, "sha256": s.digest} for s in shards]
    (folder / MANIFEST).write_text(json.dumps({"version": VERSION, "shards": rows}, indent=1) + "\n")
    return shards


def _read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"expected version {VERSION}, got {content['version']!r}")
        return {key: content[key] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a valid file of this kind: {error!r}; make it again") from error


def read_manifest(folder: Path) -> list[Shard]:
    """The shards of a folder's `manifest.json`, in its order.

    Raises:
        ValueError: if a shard is missing, has another size, or lies in the folder but not in the manifest.
    """
    shards = []
    for row in _read_json(folder / MANIFEST, ["shards"])["shards"]:
        path = folder / row["name"]
        size = path.stat().st_size if path.exists() else None
        if size != row["bytes"]:
            found = "no such file" if size is None else f"{size} bytes"
            raise ValueError(f"{path}: expected {row['bytes']} bytes by {MANIFEST}, got {found}")
        shards.append(Shard(str(path), row["count"], row["bytes"], row["sha256"]))
    extra = {str(path) for path in folder.glob("*.tar")} - {shard.path for shard in shards}
    if extra:
        raise ValueError(f"{folder / MANIFEST}: expected every tar of its folder, {sorted(extra)} are not in it")
    return shards


def load_index(shard: Shard) -> ShardIndex:
    """The index of a shard: held, read from its file, or made from the tar.

    Raises:
        ValueError: if it does not fit the shard's size and count, or holds a key that leaves its folder.
    """
    if shard.index is not None:
        return shard.index
    path = index_path(Path(shard.path))
    if path.exists():
        content = _read_json(path, ["bytes", "keys", "fields"])
        index, size = ShardIndex(content["keys"], content["fields"]), content["bytes"]
    else:
        index, size = index_shard(shard.path), shard.bytes
    found = (size, len(index.keys), len(index.fields))
    if found != (shard.bytes, shard.count, shard.count):
        raise ValueError(f"{path}: expected {shard.bytes} bytes and {shard.count} samples, got {found}; make it again")
    if unsafe := [key for key in index.keys if not is_safe(key)]:
        raise ValueError(f"{path}: expected keys that stay in their folder, got {unsafe[:3]}")
    return index
