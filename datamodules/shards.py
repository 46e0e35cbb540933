"""Shards: random access to the samples of webdataset tars, any sample one `pread` away.

A shard folder may hold `manifest.json` (version, and for each shard its name, count, bytes and sha256) and one
`<shard>.index.json` beside each tar (keys, and field -> [offset, size]). `make_shards` writes both; shards without
them are indexed when they are opened, from their tar headers.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.tar_index import ShardIndex, index_shard, is_safe

VERSION = 1
MANIFEST = "manifest.json"
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Shard:
    """One tar: `digest` is its sha256 from the manifest, else `index:` and the sha256 of its index."""

    path: str
    count: int
    bytes: int
    digest: str
    index: ShardIndex | None = dataclass_field(default=None, repr=False)


class RawSample(NamedTuple):
    """One sample's undecoded fields, and the position in the stream that asked for it.

    `donor` is another sample, whose object mask goes onto this one's image; most samples have none.
    """

    shard: str
    key: str
    fields: dict[str, bytes]
    position: int = -1
    donor: RawSample | None = None


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


class ShardSet:
    """Random access to the samples of several shards, numbered 0..n-1 through the shards in their order.

    Holds at most 64 open files; `os.pread` shares no file offset, so that forked workers may use the same ones.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.counts = [shard.count for shard in self.shards]
        self.starts = [0, *accumulate(self.counts)]
        self._open: OrderedDict[int, tuple[int, ShardIndex]] = OrderedDict()
        if not len(self):
            raise ValueError(f"expected at least one sample, got none in {[shard.path for shard in self.shards]}")

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for file, _ in getattr(self, "_open", {}).values():
            os.close(file)

    @property
    def fingerprint(self) -> str:
        """sha256 over every shard's file name, count, size and digest, in order; folders do not count."""
        rows = [[Path(s.path).name, s.count, s.bytes, s.digest] for s in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _shard(self, number: int) -> tuple[int, ShardIndex]:
        if number not in self._open:
            while len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1][0])
            shard = self.shards[number]
            self._open[number] = (os.open(shard.path, os.O_RDONLY), load_index(shard))
        self._open.move_to_end(number)
        return self._open[number]

    def read(self, sample: int) -> RawSample:
        """The fields of sample number `sample`.

        Raises:
            OSError: if the shard ends before the sample does.
        """
        number = bisect_right(self.starts, sample) - 1
        file, index = self._shard(number)
        path, row = self.shards[number].path, sample - self.starts[number]
        fields = {name: os.pread(file, size, offset) for name, (offset, size) in index.fields[row].items()}
        short = [name for name, (_, size) in index.fields[row].items() if len(fields[name]) != size]
        if short:
            raise OSError(f"{path}: sample {index.keys[row]!r}: the file ends inside its fields {short}")
        return RawSample(path, index.keys[row], fields)
