"""The index of one webdataset tar: which samples it holds and where their fields lie.

webdataset's own tar reader is not used: a corrupt header silently ends its shard, it can give an image the next
sample's caption, and its decoder unpickles. What could go wrong there is refused here, when the index is made.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datamodules.shards.sequential_file import SequentialFile

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
MASK_FIELDS = ("mask.png", "mask.webp", "mask.jpg", "mask.jpeg")
LABEL_FIELDS = ("label.png", "seg.png")
LATENTS_FIELD = "latents.safetensors"  # of cache_latents
OTHER_FIELDS = ("txt", "json", "cls", LATENTS_FIELD)
FIELDS = IMAGE_FIELDS + MASK_FIELDS + LABEL_FIELDS + OTHER_FIELDS  # never what a reader would have to execute
MAX_MEMBER_BYTES = 1 << 28
_EXECUTABLE = frozenset(
    ("pkl", "pickle", "dill", "joblib", "pth", "pt", "pt2", "ckpt", "py", "pyc", "pyo", "pyd", "pyx")
)
_EXECUTABLE |= frozenset(("so", "dylib", "dll", "exe", "com", "bat", "cmd", "ps1", "sh", "bash", "js", "jar", "wasm"))
_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_BLOCK = 512

Measure = Callable[[bytes], tuple[int, int]]  # an image file's bytes -> width and height


class ShardIndex(NamedTuple):
    """Where the samples of one shard lie: `fields[i]` maps field -> (offset, size) in bytes for `keys[i]`.

    `sizes[i]` is the width and height in pixels of its upright image, (0, 0) if its header cannot be read; None in
    indexes that do not know them.
    """

    keys: list[str]
    fields: list[dict[str, tuple[int, int]]]
    sizes: list[tuple[int, int]] | None = None


def split_name(name: str) -> tuple[str, str]:
    """`a/b.mask.png` -> (`a/b`, `mask.png`): webdataset's rule, the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return folder + slash + stem, field.lower()


def is_safe(key: str) -> bool:
    """Whether a file named after the key lies in the folder that it is written to."""
    return not key.startswith("/") and ".." not in key.split("/")


def check_ignorable(suffixes: Collection[str]) -> frozenset[str]:
    """The suffixes, lower case and without a leading dot.

    Raises:
        ValueError: if one is of a kind that a reader might execute, or is one that is used.
    """
    ignored = frozenset(suffix.lower().removeprefix(".") for suffix in suffixes)
    if bad := sorted(suffix for suffix in ignored if not suffix or _EXECUTABLE & set(suffix.split("."))):
        raise ValueError(f"ignore: expected suffixes of plain data, got {bad}: kinds that execute are always refused")
    if used := sorted(ignored & set(FIELDS)):
        raise ValueError(f"ignore: expected suffixes without a use here, got {used}")
    return ignored


def _check_field(at: str, field: str) -> None:
    known = f"{at}: expected one of the suffixes {', '.join(FIELDS)}, got {field!r}"
    if not field or _EXECUTABLE & set(field.split(".")):
        raise ValueError(f"{known}: kinds that execute are always refused" if field else known)
    if field not in FIELDS:
        raise ValueError(f"{known}; python -m datamodules.index_shards --ignore {field} leaves such members out")


def _check_member(at: str, member: tarfile.TarInfo, ignore: Collection[str]) -> None:
    """Refuse what a webdataset shard has no use for."""
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
    if field not in ignore:
        _check_field(at, field)


def _members(file: Any, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar, each as soon as its header is read; an early end is an error."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
                yield member
            end = tar.offset
    except tarfile.ReadError as error:
        raise ValueError(f"{name}: expected an uncompressed tar: {error}") from error
    file.seek(end)  # tarfile takes a damaged header for the end
    tail = file.read(_BLOCK)
    complete = len(tail) == _BLOCK
    while tail and tail.count(0) == len(tail):
        tail = file.read(1 << 20)
    if tail or not complete:
        raise ValueError(f"{name}: the tar is corrupt, cut short or appended to after byte {end}")


def index_members(
    file: BinaryIO | SequentialFile, name: str, *, ignore: Collection[str] = (), measure: Measure | None = None
) -> ShardIndex:
    """Index an open tar; `file` needs read, tell and seek, and is read to its end.

    Args:
        file: the tar.
        name: what error messages call it.
        ignore: suffixes of members to leave out of the index.
        measure: reads an image's size from its bytes; without it the index has no sizes.

    Raises:
        ValueError: as `index_shard`.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    last = None
    for member in _members(file, name):
        _check_member(f"{name}: member {member.name!r}", member, ignore)
        key, field = split_name(member.name)
        if field in ignore:
            continue
        if key in samples and (key != last or field in samples[key]):
            raise ValueError(f"{name}: member {member.name!r}: key {key!r} is duplicate or not in one piece")
        samples.setdefault(key, {})[field] = (member.offset_data, member.size)
        if measure is not None and field in IMAGE_FIELDS:
            sizes[key] = measure(file.read(member.size))
        last = key
    for key, fields in samples.items():
        images = [field for field in fields if field in IMAGE_FIELDS]
        if len(images) != 1:
            raise ValueError(f"{name}: sample {key!r}: expected one image ({', '.join(IMAGE_FIELDS)}), got {images}")
    return ShardIndex(list(samples), list(samples.values()), [sizes[key] for key in samples] if measure else None)


def index_shard(path: str | Path) -> ShardIndex:
    """Index a tar from its headers, about 46,000 members a second.

    Raises:
        ValueError: naming the file and the member, for duplicate or interleaved keys, members that are not plain
            files, names or suffixes that are not allowed, a sample without exactly one image, or a corrupt tar.
    """
    with open(path, "rb") as file:
        return index_members(file, str(path))


@dataclass(frozen=True)
class ScannedTar:
    """What one pass over a tar tells: its index, its size in bytes and its sha256."""

    index: ShardIndex
    bytes: int
    sha256: str


def scan_tar(stream: Any, name: str, *, ignore: Collection[str] = (), measure: Measure | None = None) -> ScannedTar:
    """Index and hash a tar in one pass over a stream that need not seek; arguments and errors as `index_members`."""
    file = SequentialFile(stream)
    index = index_members(file, name, ignore=ignore, measure=measure)
    return ScannedTar(index, file.tell(), file.sha256)
