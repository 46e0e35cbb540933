"""The index of one webdataset tar: which samples it holds and where their fields lie.

webdataset's own tar reader is not used: a corrupt header silently ends its shard, it can give an image the next
sample's caption, and its decoder unpickles. What could go wrong there is refused here, when the index is made.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datamodules.account import HIDDEN, Account, is_hidden
from datamodules.shards.tar_members import Member, SequentialFile, read_members

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
MASK_FIELDS = ("mask.png", "mask.webp", "mask.jpg", "mask.jpeg")
LABEL_FIELDS = ("label.png", "seg.png")
TARGET_FIELDS = ("target.png", "target.webp", "target.jpg", "target.jpeg")  # what the image should become
REFERENCE_FIELDS = ("reference.png", "reference.webp", "reference.jpg", "reference.jpeg")  # what edit models also see
LATENTS_FIELD = "latents.safetensors"  # of cache_latents
OTHER_FIELDS = ("txt", "instruction.txt", "json", "cls", LATENTS_FIELD)
FIELDS = (
    IMAGE_FIELDS + MASK_FIELDS + LABEL_FIELDS + TARGET_FIELDS + REFERENCE_FIELDS + OTHER_FIELDS
)  # never what a reader would have to execute
MAX_MEMBER_BYTES = 1 << 28
_KNOWN = frozenset(FIELDS)
_EXECUTABLE = frozenset(
    ("pkl", "pickle", "dill", "joblib", "pth", "pt", "pt2", "ckpt", "py", "pyc", "pyo", "pyd", "pyx")
)
_EXECUTABLE |= frozenset(("so", "dylib", "dll", "exe", "com", "bat", "cmd", "ps1", "sh", "bash", "js", "jar", "wasm"))
CONTROLS = re.compile(r"[\0-\x1f\x7f-\x9f]")
_MAX_NAME = 4096
_SHOWN, _FIRST_NAMES, _MOST_KINDS = 200, 3, 50  # characters of a name in messages, names of a kind, kinds
_ENDING = re.compile(r"[a-z][a-z0-9_]{0,19}(\.[a-z][a-z0-9_]{0,19}){0,2}")
_NEVER = "kinds that execute are always refused"
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}
_BESIDE = {
    "captions": {"txt", "instruction.txt"},
    "masks": {*MASK_FIELDS},
    "labels": {*LABEL_FIELDS, "cls"},
    "json": {"json"},
}
_BESIDE |= {"targets": {*TARGET_FIELDS}, "references": {*REFERENCE_FIELDS}}
_IMAGE_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}  # beginning -> end, of JPEG and PNG
_HOLLOW = 16  # zeros at the end of an image that is not whole
_META = re.compile(r"__[^/]*__(/|$)")  # of webdataset, which leaves them out too

FOLDERS, META = "folders", "named __like_this__"
NO_ENDING, NO_IMAGE, IGNORED = "not used, without an ending", "without an image of their name", "ignored, as asked for"
DOTTED, OTHERS = "with a dot in the name, where the key ends", "not used, with still other endings"
Aside = dict[str, tuple[int, list[str]]]  # why members are no part of a sample -> how many, and the first names

Measure = Callable[[bytes], tuple[int, int]]  # an image file's bytes -> width and height


class ShardIndex(NamedTuple):
    """Where the samples of one shard lie: `fields[i]` maps field -> (offset, size) in bytes for `keys[i]`.

    `sizes[i]` is the width and height in pixels of its upright image, (0, 0) if its header cannot be read; None in
    indexes that do not know them. `aside` are the members that are no part of a sample; None if
    there are none.
    """

    keys: list[str]
    fields: list[dict[str, tuple[int, int]]]
    sizes: list[tuple[int, int]] | None = None
    aside: Aside | None = None

    def count_aside(self) -> int | None:
        """How many members are left aside; None for none."""
        return sum(count for count, _ in (self.aside or {}).values()) or None


def kinds_of(fields: Iterable[str]) -> tuple[str, ...]:
    """The kinds of an account that a sample of these members has; a caption that is in its json counts as json."""
    fields = set(fields)
    return tuple(kind for kind, members in _BESIDE.items() if members & fields)


def account_of(index: ShardIndex) -> Account:
    """The account of one tar's samples, and of its members that are none."""
    account = Account()
    account.aside |= index.aside or {}
    for fields in index.fields:
        account.take(kinds_of(fields))
    return account


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
        raise ValueError(f"ignore: expected suffixes of plain data, got {bad}: {_NEVER}")
    if used := sorted(ignored & set(FIELDS)):
        raise ValueError(f"ignore: expected suffixes without a use here, got {used}")
    return ignored


def why_aside(name: str, ignore: Collection[str] = ()) -> str | None:
    """Why a file of this name is no part of a sample, whatever is in it; None if it may be one.

    Raises:
        ValueError: if its suffix is of a kind that a reader might execute.
    """
    field = split_name(name)[1]
    if any(is_hidden(part) for part in name.split("/") if part not in (".", "..")):
        return HIDDEN
    if _META.match(name):
        return META
    if field in ignore:
        return IGNORED
    if field in _KNOWN:
        return None
    if _EXECUTABLE & set(field.split(".")):
        raise ValueError(f"expected one of the suffixes {', '.join(FIELDS)}, got {field!r}: {_NEVER}")
    if not field:
        return NO_ENDING
    return f"not used, ending in .{field}" if _ENDING.fullmatch(field) else DOTTED


def _check_member(at: str, member: Member, field: str) -> None:
    """Refuse what could harm, and what a sample has no use for."""
    if not member.is_file:
        kind = "a sparse file" if member.sparse else _KINDS.get(member.kind, f"tar type {member.kind!r}")
        raise ValueError(f"{at}: expected a regular file, got {kind}; tar --dereference --hard-dereference has none")
    if CONTROLS.search(member.name) or len(member.name) > _MAX_NAME:
        raise ValueError(f"{at}: expected a name of at most {_MAX_NAME} characters, without control characters")
    if not is_safe(member.name):
        raise ValueError(f"{at}: expected a key that stays in its folder, got one with '..' or a leading '/'")
    if field in FIELDS and member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{at}: expected at most {MAX_MEMBER_BYTES} bytes, got {member.size}")


class _Samples:
    """The samples of a tar, grown member by member."""

    def __init__(self, name: str, ignore: Collection[str]) -> None:
        self.name, self.ignore = name, ignore
        self.fields: dict[str, dict[str, tuple[int, int]]] = {}
        self.names: dict[str, list[str]] = {}
        self.aside: Aside = {}
        self._last: str | None = None

    def leave(self, why: str, *names: str) -> None:
        """Count members as no part of a sample."""
        if why not in self.aside and len(self.aside) > _MOST_KINDS:
            why = OTHERS
        count, first = self.aside.get(why, (0, []))
        self.aside[why] = (count + len(names), [*first, *names][:_FIRST_NAMES])

    def add(self, member: Member) -> bool:
        """Take a member, or leave it aside; whether it is a sample's image."""
        if member.is_folder:
            self.leave(FOLDERS, member.name.rstrip("/") + "/")
            return False
        key, field = split_name(member.name)
        at = f"{self.name}: member {member.name[:_SHOWN]!r}"
        _check_member(at, member, field)
        try:
            why = why_aside(member.name, self.ignore)
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from None
        if why is not None:
            self.leave(why, member.name)
            return False
        if key in self.fields and (key != self._last or field in self.fields[key]):
            raise ValueError(f"{at}: key {key!r} is duplicate or not in one piece; tar --sort=name keeps them together")
        self.fields.setdefault(key, {})[field] = (member.offset, member.size)
        self.names.setdefault(key, []).append(member.name)
        self._last = key
        return field in IMAGE_FIELDS

    def finish(self) -> dict[str, dict[str, tuple[int, int]]]:
        """The samples; what has no image is none, and a tar without samples is refused."""
        for key, fields in list(self.fields.items()):
            images = [field for field in fields if field in IMAGE_FIELDS]
            if not images:
                self.leave(NO_IMAGE, *self.names[key])
                del self.fields[key]
            elif len(images) > 1:
                raise ValueError(
                    f"{self.name}: sample {key!r}: expected one image ({', '.join(IMAGE_FIELDS)}), got {images}"
                )
        if not self.fields:
            found = "; ".join(f"{count} {why}, such as {names[0]!r}" for why, (count, names) in self.aside.items())
            raise ValueError(
                f"{self.name}: expected one image ({', '.join(IMAGE_FIELDS)}) at least, got none, but members left "
                f"aside: {found}"
            )
        return self.fields


def _check_not_hollow(at: str, data: bytes) -> None:
    """Refuse a tar's last image if its end is missing and zeros stand there."""
    filled = data.rstrip(b"\0")
    ends = next((end for start, end in _IMAGE_ENDS.items() if data.startswith(start)), b"")
    if len(data) - len(filled) >= _HOLLOW and not filled.endswith(ends):
        raise ValueError(f"{at}: expected an image, got one that ends in zeros, as in a download that did not end")


def index_members(
    file: BinaryIO | SequentialFile, name: str, *, ignore: Collection[str] = (), measure: Measure | None = None
) -> ShardIndex:
    """Index an open tar; `file` needs read, tell and seek onwards, and is read to its end.

    Args:
        file: the tar.
        name: what error messages call it.
        ignore: suffixes of members to leave out of the index.
        measure: reads an image's size from its bytes; without it the index has no sizes.

    Raises:
        ValueError: as `index_shard`.
    """
    samples = _Samples(name, ignore)
    sizes: dict[str, tuple[int, int]] = {}
    last: Member | None = None
    data = b""
    for member in read_members(file, name):
        last = member if samples.add(member) else None
        if last is not None and measure is not None:
            data = file.read(member.size)
            sizes[split_name(member.name)[0]] = measure(data)
    if last is not None:
        if measure is None and not isinstance(file, SequentialFile):
            file.seek(last.offset)
            data = file.read(last.size)
        _check_not_hollow(f"{name}: member {last.name[:_SHOWN]!r}", data)
    fields = samples.finish()
    known = [sizes[key] for key in fields] if measure else None
    return ShardIndex(list(fields), list(fields.values()), known, samples.aside or None)


def index_shard(path: str | Path) -> ShardIndex:
    """Index a tar from its headers, at about three quarters of the speed of tarfile, which checks less.

    Members that are no part of a sample are left aside, and counted: folders, hidden files and those of systems, files
    without an image of their name, and files of a kind without a use here.

    Raises:
        ValueError: naming the file and the member, for duplicate or interleaved keys, members that are not plain
            files, names that lead out of their folder, suffixes of kinds that execute, a sample with several images, a
            tar without samples, or a corrupt one.
    """
    with open(path, "rb") as file:
        return index_members(file, str(path))


@dataclass(frozen=True)
class ScannedTar:
    """What one pass over a tar finds: its index, its size in bytes and its sha256."""

    index: ShardIndex
    bytes: int
    sha256: str


def scan_tar(stream: Any, name: str, *, ignore: Collection[str] = (), measure: Measure | None = None) -> ScannedTar:
    """Index and hash a tar in one pass over a stream that need not seek; arguments and errors as `index_members`."""
    file = SequentialFile(stream)
    index = index_members(file, name, ignore=ignore, measure=measure)
    return ScannedTar(index, file.tell(), file.sha256)
