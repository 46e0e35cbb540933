"""Shards: where each sample of a webdataset tar lies, so that any sample is one `pread` away.

A shard folder may hold `manifest.json` (version, and for each shard its name, count, bytes and sha256) and one
`<shard>.index.json` beside each tar (keys, and field -> [offset, size]). `make_shards` writes both; shards without
them are indexed when they are opened, from their tar headers.

webdataset's own tar reader is not used: a corrupt header silently ends its shard, it can give an image the next
sample's caption, and its decoder unpickles. What could go wrong there is refused here, when the index is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from webdataset.shardlists import expand_urls

VERSION = 1
MANIFEST = "manifest.json"
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
MASK_FIELDS = ("mask.png", "mask.webp")
OTHER_FIELDS = ("txt", "json", "cls")
MAX_MEMBER_BYTES = 1 << 28
_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_EMBEDDED = Path(__file__).parent / "embedded"
_BLOCK = 512
_OPEN_SHARDS = 64


class ShardIndex(NamedTuple):
    """Where the samples of one shard lie: `fields[i]` maps field -> (offset, size) in bytes for `keys[i]`."""

    keys: list[str]
    fields: list[dict[str, tuple[int, int]]]


@dataclass(frozen=True)
class Shard:
    """One tar: `digest` is its sha256 from the manifest, else `index:` and the sha256 of its index."""

    path: str
    count: int
    bytes: int
    digest: str
    index: ShardIndex | None = dataclass_field(default=None, repr=False)


class RawSample(NamedTuple):
    """One sample's undecoded fields, and the position in the stream that asked for it."""

    shard: str
    key: str
    fields: dict[str, bytes]
    position: int = -1


# ---------------------------------------------------------------------------------------------------------------
# Indexing a tar


def split_name(name: str) -> tuple[str, str]:
    """`a/b.mask.png` -> (`a/b`, `mask.png`): webdataset's rule, the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return folder + slash + stem, field.lower()


def _check_member(shard: Path, member: tarfile.TarInfo) -> None:
    """Refuse what a webdataset shard has no use for."""
    at = f"{shard}: member {member.name!r}"
    if not member.isreg() or member.issparse():
        raise ValueError(f"{at}: expected a regular file, got tar type {member.type!r} or a sparse file")
    if not _NAME.fullmatch(member.name):
        raise ValueError(f"{at}: expected a name of the characters A-Z a-z 0-9 . _ / - only")
    if member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{at}: expected at most {MAX_MEMBER_BYTES} bytes, got {member.size}")
    key, field = split_name(member.name)
    if not key or key.endswith("/"):
        raise ValueError(f"{at}: expected KEY.FIELD, got no key before the first dot")
    if field not in IMAGE_FIELDS + MASK_FIELDS + OTHER_FIELDS:
        allowed = ", ".join(IMAGE_FIELDS + MASK_FIELDS + OTHER_FIELDS)
        raise ValueError(f"{at}: expected one of the suffixes {allowed}, got {field!r}")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar, up to its end mark; an early end is an error."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
                yield member
            end = tar.offset
    except tarfile.ReadError as error:
        raise ValueError(f"{path}: expected an uncompressed tar: {error}") from error
    with path.open("rb") as file:
        file.seek(end)
        tail = file.read(_BLOCK)
        while tail and not any(tail):
            tail = file.read(1 << 20)
        if tail or os.path.getsize(path) < end + _BLOCK:
            raise ValueError(f"{path}: the tar is corrupt, cut short or appended to after byte {end}")


def index_shard(path: str | Path) -> ShardIndex:
    """Index a tar from its headers, about 46,000 members a second.

    Raises:
        ValueError: naming the file and the member, for duplicate or interleaved keys, members that are not plain
            files, names or suffixes that are not allowed, a sample without exactly one image, or a corrupt tar.
    """
    path = Path(path)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for member in _members(path):
        _check_member(path, member)
        key, field = split_name(member.name)
        if key in samples and (key != last or field in samples[key]):
            raise ValueError(f"{path}: member {member.name!r}: key {key!r} is duplicate or not in one piece")
        samples.setdefault(key, {})[field] = (member.offset_data, member.size)
        last = key
    for key, fields in samples.items():
        images = [field for field in fields if field in IMAGE_FIELDS]
        if len(images) != 1:
            raise ValueError(f"{path}: sample {key!r}: expected one image ({', '.join(IMAGE_FIELDS)}), got {images}")
    return ShardIndex(list(samples), list(samples.values()))


# ---------------------------------------------------------------------------------------------------------------
# Manifest and index files


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
        ValueError: if it does not fit the shard's size and count.
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
    return index


# ---------------------------------------------------------------------------------------------------------------
# From a config's shard list to shards


def _expand(item: str) -> list[Path]:
    """One entry of a shard list -> tars."""
    if item.startswith("embedded:"):
        item = str(_EMBEDDED / item.removeprefix("embedded:"))
    elif _SCHEME.match(item):
        raise ValueError(
            f"shards {item!r}: expected a local folder, tar, brace pattern or glob, or embedded:train; "
            "remote addresses and pipes are not supported"
        )
    folder = Path(item)
    if folder.is_dir():
        has_manifest = (folder / MANIFEST).exists()
        paths = [Path(s.path) for s in read_manifest(folder)] if has_manifest else sorted(folder.glob("*.tar"))
    else:
        patterns = list(expand_urls(item))
        found = {pattern: [pattern] if os.path.exists(pattern) else sorted(glob(pattern)) for pattern in patterns}
        if missing := [pattern for pattern in patterns if not found[pattern]]:
            raise ValueError(f"shards {item!r}: nothing found at {missing[:3]} (from {os.getcwd()})")
        paths = [Path(path) for pattern in patterns for path in found[pattern]]
    if not paths:
        raise ValueError(f"shards {item!r}: no {MANIFEST} and no *.tar in {folder.resolve()}")
    return paths


def _scan(path: Path) -> Shard:
    """A shard that no manifest names."""
    index = index_shard(path)
    digest = hashlib.sha256(json.dumps(index).encode()).hexdigest()
    return Shard(str(path), len(index.keys), path.stat().st_size, f"index:{digest}", index)


def find_shards(spec: str | Sequence[str]) -> list[Shard]:
    """Shards by folder, path, brace pattern (`train-{000..099}.tar`), glob, or `embedded:train`; one or a list.

    Raises:
        ValueError: if an entry finds nothing, or is a URL or a pipe.
    """
    manifests: dict[Path, dict[str, Shard]] = {}
    shards = []
    for path in (path for item in ([spec] if isinstance(spec, str) else spec) for path in _expand(item)):
        folder = path.parent
        if folder not in manifests:
            known = read_manifest(folder) if (folder / MANIFEST).exists() else []
            manifests[folder] = {Path(shard.path).name: shard for shard in known}
        shards.append(manifests[folder].get(path.name) or _scan(path))
    return shards


# ---------------------------------------------------------------------------------------------------------------
# Reading samples


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


def open_shards(spec: str | Sequence[str]) -> ShardSet:
    """`find_shards`, opened for reading."""
    return ShardSet(find_shards(spec))
