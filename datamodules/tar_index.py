"""The index of one webdataset tar: which samples it holds and where their fields lie.

webdataset's own tar reader is not used: a corrupt header silently ends its shard, it can give an image the next
sample's caption, and its decoder unpickles. What could go wrong there is refused here, when the index is made.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
MASK_FIELDS = ("mask.png", "mask.webp", "mask.jpg", "mask.jpeg")
LABEL_FIELDS = ("label.png", "seg.png")
OTHER_FIELDS = ("txt", "json", "cls")
FIELDS = IMAGE_FIELDS + MASK_FIELDS + LABEL_FIELDS + OTHER_FIELDS  # never what a reader would have to execute
MAX_MEMBER_BYTES = 1 << 28
_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_BLOCK = 512


class ShardIndex(NamedTuple):
    """Where the samples of one shard lie: `fields[i]` maps field -> (offset, size) in bytes for `keys[i]`."""

    keys: list[str]
    fields: list[dict[str, tuple[int, int]]]


def split_name(name: str) -> tuple[str, str]:
    """`a/b.mask.png` -> (`a/b`, `mask.png`): webdataset's rule, the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return folder + slash + stem, field.lower()


def is_safe(key: str) -> bool:
    """Whether a file named after the key lies in the folder that it is written to."""
    return not key.startswith("/") and ".." not in key.split("/")


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
    if not is_safe(key):
        raise ValueError(f"{at}: expected a key that stays in its folder, got one with '..' or a leading '/'")
    if field not in FIELDS:
        raise ValueError(f"{at}: expected one of the suffixes {', '.join(FIELDS)}, got {field!r}")


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
