"""One existing tar, local or remote -> its index file, made in one pass, or used again if the tar is the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.account import Account
from datamodules.decode.mask_files import why_look
from datamodules.decode.mask_sources import FileMask, MaskRequest
from datamodules.decode.reading import image_size, open_upright
from datamodules.shards.downloads import RemoteStream
from datamodules.shards.manifest import SHA256, ManifestRow, Shard, load_index, write_index
from datamodules.shards.shard_set import account_of, image_bytes
from datamodules.shards.tar_index import FIELDS, MASK_FIELDS, ScannedTar, ShardIndex, scan_tar
from datamodules.shards.transports import is_remote
from datamodules.writing.sidecars import masks_by_name
from inpaint_module.parsing import read_json
from inpaint_module.redaction import redact

UNUSABLE = "with a mask that cannot be used, or an image that cannot be read"
_LOOKED_AT = 64  # masks of a tar: to look at all of them would take many times as long as all else
_MAX_PIXELS = 50_000_000


class TarPlace(NamedTuple):
    """A tar, what a manifest calls it, and where its index file goes."""

    address: str
    name: str
    index_file: Path


class IndexedTar(NamedTuple):
    """A tar's row in a manifest, the keys of its images without a readable header, whether it was read now, and the
    account of its samples as JSON."""

    row: ManifestRow
    unreadable: list[str]
    fresh: bool
    account: dict[str, Any]


def _state(place: TarPlace) -> dict[str, Any]:
    """What tells that a tar is the same as before; a URL's size is all that every server knows."""
    if is_remote(place.address):
        with closing(RemoteStream(place.address)) as stream:
            return {"size": stream.size, "mtime_ns": None}
    stat = os.stat(place.address)
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _read_again(place: TarPlace, source: dict[str, Any]) -> ScannedTar | None:
    """What the index file says, if it was made from this very tar; a file that is not whole was not."""
    try:
        content = read_json(place.index_file)
        if source["size"] is None or content["source"].value != source:
            return None
        shard = Shard(place.address, len(content["keys"].items()), source["size"], "", index_file=str(place.index_file))
        index = load_index(shard)
        if any(f"not used, ending in .{field}" in (index.aside or {}) for field in FIELDS):
            return None  # of a version that did not read these
        return ScannedTar(index, shard.bytes, content["sha256"].text(SHA256))
    except (OSError, ValueError):
        return None


def _scan(place: TarPlace, ignore: frozenset[str]) -> ScannedTar:
    if is_remote(place.address):
        with closing(RemoteStream(place.address)) as stream:
            return scan_tar(stream, redact(place.address), ignore=ignore, measure=image_size)
    with open(place.address, "rb") as file:
        return scan_tar(file, place.address, ignore=ignore, measure=image_size)


def _unreadable(index: ShardIndex) -> list[str]:
    return [key for key, size in zip(index.keys, index.sizes or (), strict=True) if size == (0, 0)]


def _masks(index: ShardIndex, path: str) -> Iterator[tuple[str, str]]:
    """What is odd about the first masks of a local tar, each as a kind of an account and the sample's key."""
    rows = [row for row, fields in enumerate(index.fields) if any(name in fields for name in MASK_FIELDS)]
    with open(path, "rb") as file:
        for row in rows[:_LOOKED_AT]:
            places = index.fields[row].items()
            fields = {name: os.pread(file.fileno(), size, at) for name, (at, size) in places}
            try:
                opened = open_upright(image_bytes(fields), _MAX_PIXELS)
                request = MaskRequest(fields, opened.size, max_pixels=_MAX_PIXELS, turn=opened.turn)
                kind = why_look(np.asarray(FileMask()(request)) >= 128)
            except Exception:  # Pillow raises many kinds on damaged files
                kind = UNUSABLE
            if kind is not None:
                yield kind, index.keys[row]


NAMED_MASK = "taken for a photo, but named as a mask: masks in tars are called NAME.mask.png"


def _account(index: ShardIndex, place: TarPlace) -> Account:
    """The account of one tar, which names it before its members."""
    account, files = account_of(index), dict[Path, list[str]]()
    for whole in map(Path, index.keys):
        files.setdefault(whole.parent, []).append(f"{whole.name}.jpg")
    for photo in masks_by_name(files, ()):
        account.note(NAMED_MASK, f"{place.name}: {photo.with_suffix('')}")
    for kind, key in () if is_remote(place.address) else _masks(index, place.address):
        account.note(kind, f"{place.name}: {key}")
    for kind, (count, names) in account.aside.items():
        account.aside[kind] = (count, [f"{place.name}: {name}" for name in names])
    return account


def index_tar(place: TarPlace, *, ignore: frozenset[str], strict: bool) -> IndexedTar:
    """Index one tar, unless its index file was made from the same tar in the same way.

    Args:
        place: the tar and its index file.
        ignore: suffixes of members to leave out.
        strict: refuse images whose header cannot be read.

    Raises:
        ValueError: naming the tar and the member, if it cannot be used.
        OSError: if it cannot be read.
    """
    source = {**_state(place), "ignore": sorted(ignore)}
    known = _read_again(place, source)
    tar = known or _scan(place, ignore)
    if known is None:
        if {**_state(place), "ignore": sorted(ignore)} != source or source["size"] not in (None, tar.bytes):
            raise ValueError(f"{redact(place.address)}: has changed while it was read")
        write_index(place.index_file, tar.index, tar.bytes, sha256=tar.sha256, source=source)
    unreadable = _unreadable(tar.index)
    if strict and unreadable:
        fields = next(fields for key, fields in zip(*tar.index[:2], strict=True) if key == unreadable[0])
        at = f"{redact(place.address)}: member of {unreadable[0]!r} ({', '.join(fields)})"
        raise ValueError(f"{at}: expected an image, its header cannot be read ({len(unreadable)} such images)")
    count, aside = len(tar.index.keys), tar.index.count_aside()
    row = ManifestRow(place.name, count, tar.bytes, tar.sha256, aside=aside)
    return IndexedTar(row, unreadable, known is None, _account(tar.index, place).as_json())


def try_index_tar(place: TarPlace, *, ignore: frozenset[str], strict: bool) -> IndexedTar | str:
    """`index_tar`, or the reason why the tar cannot be used: for worker processes."""
    try:
        return index_tar(place, ignore=ignore, strict=strict)
    except (ValueError, OSError) as error:
        text = str(error)
        return text if redact(place.address) in text else f"{redact(place.address)}: {text}"
