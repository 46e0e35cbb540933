"""Manifest and index: what a folder of shards holds, written once, so that opening it reads no tar.

A shard folder may hold `manifest.json` (version, and for each shard its name, count, bytes and sha256) and one
`<shard>.index.json` beside each tar (keys, field -> [offset, size], and the upright width and height of each image).
`make_shards` and `index_shards` write both; shards without them are indexed when they are opened, from their tar
headers. A manifest made for tars that lie elsewhere says where: a `url` or a `path` in a shard's row.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from datamodules.shards.tar_index import (
    CONTROLS,
    FIELDS,
    IMAGE_FIELDS,
    MAX_MEMBER_BYTES,
    Aside,
    Measure,
    ShardIndex,
    index_shard,
    is_safe,
    scan_tar,
)
from datamodules.shards.tar_members import begins_as_tar
from inpaint_module.files import atomic_write_text, permissions_for
from inpaint_module.parsing import Parsed, parse_json

VERSION = 1
MANIFEST = "manifest.json"
JOURNAL = "make_shards.journal"  # lies in a folder that make_shards has not finished
_NAME = re.compile(r"(?!\.+$)[^/\\\0-\x1f\x7f]{1,255}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_ADVICE = "make it again"
_FIELDS, _IMAGES = frozenset(FIELDS), frozenset(IMAGE_FIELDS)
_LARGEST_SIDE = 1 << 31


@dataclass(frozen=True)
class Shard:
    """One tar: `digest` is its sha256 from the manifest, else `index:` and the sha256 of its index.

    `index_file` names the index file of a tar that has it elsewhere than beside itself; `aside` counts the members that
    are no part of a sample. `files` is there of a tar that was never written: for each sample, by field, the file that
    holds its bytes and the time (ns since 1970) that this file must have, 0 for any.
    """

    path: str
    count: int
    bytes: int
    digest: str
    index: ShardIndex | None = dataclass_field(default=None, repr=False)
    index_file: str | None = None
    aside: int = 0
    files: tuple[dict[str, tuple[str, int]], ...] | None = dataclass_field(default=None, repr=False)


@dataclass(frozen=True)
class ManifestRow:
    """One shard of a manifest; a tar that does not lie beside the manifest has a `url` or a `path`.

    `aside` counts its members that are no part of a sample; None if there are none.
    """

    name: str
    count: int
    bytes: int
    sha256: str
    url: str | None = None
    path: str | None = None
    aside: int | None = None


def index_path(shard: Path) -> Path:
    """`000000.tar` -> `000000.index.json`."""
    return shard.with_suffix(".index.json")


def write_index(path: Path, index: ShardIndex, size: int, **more: Any) -> None:
    """Write the index of a tar of `size` bytes; `more` goes into the file and means nothing to `load_index`."""
    known = {name: value for name, value in index._asdict().items() if value is not None}
    content = {"version": VERSION, "bytes": size, **known, **more}
    atomic_write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def write_rows(folder: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a folder's `manifest.json`."""
    shards = [{name: value for name, value in asdict(row).items() if value is not None} for row in rows]
    text = json.dumps({"version": VERSION, "shards": shards}, indent=1) + "\n"
    atomic_write_text(folder / MANIFEST, text, permissions=permissions_for(text))  # a URL may hold a secret


def write_manifest(folder: str | Path, *, measure: Measure | None = None) -> list[Shard]:
    """Index every tar of a folder and write its `manifest.json` and index files; returns the shards.

    Args:
        folder: holds the tars.
        measure: reads an image's upright size from its bytes; without it the index has no sizes.
    """
    folder = Path(folder)
    rows = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as file:
            tar = scan_tar(file, str(path), measure=measure)
        rows.append(ManifestRow(path.name, len(tar.index.keys), tar.bytes, tar.sha256, aside=tar.index.count_aside()))
        write_index(index_path(path), tar.index, tar.bytes)
    write_rows(folder, rows)
    return read_manifest(folder)


def _check_version(version: Parsed) -> None:
    if version.whole() != VERSION:
        raise version.refuse(f"version {VERSION}")


def parse_row(content: Parsed) -> ManifestRow:
    """One row of a manifest, checked.

    Raises:
        ValueError: naming the field.
    """
    url, path, aside = content.get("url"), content.get("path"), content.get("aside")
    return ManifestRow(
        content["name"].text(_NAME, "a file name without a folder"),
        content["count"].whole(),
        content["bytes"].whole(),
        content["sha256"].text(SHA256, "a sha256 of 64 digits"),
        None if url is None else url.text(),
        None if path is None else path.text(),
        None if aside is None else aside.whole(1),
    )


def parse_manifest(text: str | bytes, origin: str) -> list[ManifestRow]:
    """The rows of a `manifest.json`; `origin` is what error messages call it.

    Raises:
        ValueError: naming the field, if it is not a manifest, or a name in it is not that of a file in its folder, or
            comes twice.
    """
    whole = parse_json(text, f"{origin}: not a valid file of this kind", advice=_ADVICE)
    _check_version(whole["version"])
    rows: list[ManifestRow] = []
    for content in whole["shards"].items():
        content.origin = f"{origin}: not a valid row"
        rows.append(parse_row(content))
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise ValueError(f"{origin}: expected every shard once, got {twice} more than once; {_ADVICE}")
    return rows


def _check_local(path: Path, row: ManifestRow, folder: Path) -> None:
    """Refuse what a local row cannot mean: only tars are read, and elsewhere only those that the row names as such."""
    at = f"{folder / MANIFEST}: {row.name}"
    size = path.stat().st_size if path.exists() else None
    if size != row.bytes:
        found = "no such file" if size is None else f"{size} bytes"
        hint = "; make_shards was interrupted here, run it again" if (folder / JOURNAL).exists() else ""
        raise ValueError(f"{path}: expected {row.bytes} bytes by {MANIFEST}, got {found}{hint}")
    if row.path is not None:
        plain = os.path.isabs(row.path) and os.path.normpath(row.path) == row.path and row.path.endswith(".tar")
        if not plain or not begins_as_tar(path):
            raise ValueError(f"{at}: expected the absolute path of a tar, NAME.tar, got {row.path!r}; {_ADVICE}")
    elif not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{at}: expected a tar in the manifest's own folder, got a link to {path.resolve()}; "
            "inpaint shards index SHARDS OUT makes a manifest of tars that lie elsewhere"
        )


def read_manifest(folder: Path) -> list[Shard]:
    """The shards of a folder's `manifest.json`, in its order.

    Raises:
        ValueError: if a local shard is missing, has another size, lies in the folder but not in the manifest, or leads
            out of the folder without being named as a tar elsewhere.
    """
    shards, names = [], set()
    for row in parse_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST)):
        path = row.url or row.path or str(folder / row.name)
        names.add(row.name)
        if row.url is None:
            _check_local(Path(path), row, folder)
        elsewhere = None if path == str(folder / row.name) else str(index_path(folder / row.name))
        shards.append(Shard(path, row.count, row.bytes, row.sha256, index_file=elsewhere, aside=row.aside or 0))
    if extra := sorted(str(path) for path in folder.glob("*.tar") if path.name not in names):
        raise ValueError(f"{folder / MANIFEST}: expected every tar of its folder, {extra} are not in it")
    return shards


def parse_index(text: str | bytes, origin: str, shard: Shard) -> ShardIndex:
    """The index of a shard from its file's text; `origin` is what error messages call the file.

    Raises:
        ValueError: naming the field, if it does not fit the shard's size and count, points outside the shard, or holds
            a key that leaves its folder.
    """
    whole = parse_json(text, origin, advice=_ADVICE)
    _check_version(whole["version"])
    keys, fields = whole["keys"], whole["fields"]
    found = (whole["bytes"].whole(), len(keys.items()), len(fields.items()))
    if found != (shard.bytes, shard.count, shard.count):
        raise whole.refuse(f"{shard.bytes} bytes and {shard.count} samples", f"{found}")
    names, sizes, aside = _keys(keys), whole.get("sizes"), whole.get("aside")
    if unsafe := [key for key in names if not is_safe(key) or CONTROLS.search(key)]:
        raise whole.refuse("keys that stay in their folder", f"{unsafe[:3]}")
    return ShardIndex(
        names,
        _fields(fields, shard.bytes),
        None if sizes is None else _sizes(sizes, shard.count),
        None if aside is None else _aside(aside),
    )


def _keys(keys: Parsed) -> list[str]:
    for number, key in enumerate(keys.value):
        keys.part(key, number).text()
    if len(set(keys.value)) < len(keys.value):
        twice = next(key for key, count in Counter(keys.value).items() if count > 1)
        raise keys.refuse("every key once", f"{twice!r} more than once")
    return keys.value


def _fields(rows: Parsed, size: int) -> list[dict[str, tuple[int, int]]]:
    """Where the fields of all samples lie: each after the one before and a header, in a shard of `size` bytes."""
    end, found = 0, []
    for number, row in enumerate(rows.value):
        places: dict[str, tuple[int, int]] = {}
        for name, place in rows.part(row, number).members().items():
            value = place.value
            pair = type(value) is list and len(value) == 2 and type(value[0]) is int and type(value[1]) is int
            if not pair or not 0 <= value[1] <= MAX_MEMBER_BYTES or not end + 512 <= value[0] <= size - value[1]:
                raise place.refuse(f"[offset, size] after byte {end + 511} and before the shard's end, {size}")
            places[name] = (value[0], value[1])
            end = value[0] + value[1]
        if not _FIELDS.issuperset(places) or len(_IMAGES.intersection(places)) != 1:
            raise rows.part(row, number).refuse(f"one image, and other fields of {', '.join(FIELDS)}")
        found.append(places)
    return found


def _sizes(sizes: Parsed, count: int) -> list[tuple[int, int]]:
    if len(sizes.items()) != count:
        raise sizes.refuse(f"{count} sizes", f"{len(sizes.value)}")
    for number, size in enumerate(sizes.value):
        pair = type(size) is list and len(size) == 2 and type(size[0]) is int and type(size[1]) is int
        if not pair or not 0 <= min(size) <= max(size) <= _LARGEST_SIDE:
            raise sizes.part(size, number).refuse("sizes [[width, height], ...] of whole numbers")
    return [(width, height) for width, height in sizes.value]


def _aside(aside: Parsed) -> Aside:
    parsed = {why: pair.items(2) for why, pair in aside.members().items()}
    return {why: (count.whole(1), [name.text() for name in names.items()]) for why, (count, names) in parsed.items()}


def load_index(shard: Shard) -> ShardIndex:
    """The index of a shard: held, read from its file, or made from the tar.

    Raises:
        ValueError: if it does not fit the shard's size and count, or holds a key that leaves its folder.
    """
    if shard.index is not None:
        return shard.index
    path = Path(shard.index_file) if shard.index_file else index_path(Path(shard.path))
    if path.exists():
        return parse_index(path.read_bytes(), str(path), shard)
    index = index_shard(shard.path)
    if len(index.keys) != shard.count:
        raise ValueError(f"{shard.path}: expected {shard.count} samples, got {len(index.keys)}; {_ADVICE}")
    return index


def index_digest(index: ShardIndex) -> str:
    """`index:` and the sha256 of where the samples lie: stands for a tar's own sha256 in a set without a manifest."""
    return "index:" + hashlib.sha256(json.dumps([index.keys, index.fields]).encode()).hexdigest()
