"""Manifest and index: what a folder of shards holds, written once, so that opening it reads no tar.

A shard folder may hold `manifest.json` (version, and for each shard its name, count, bytes and sha256) and one
`<shard>.index.json` beside each tar (keys, field -> [offset, size], and the upright width and height of each image).
`make_shards` and `index_shards` write both; shards without them are indexed when they are opened, from their tar
headers. A manifest made for tars that lie elsewhere says where: a `url` or a `path` in a shard's row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from datamodules.shards.tar_index import Measure, ShardIndex, index_shard, is_safe, scan_tar
from inpaint_module.files import atomic_write_text
from inpaint_module.redaction import permissions_for, redact

VERSION = 1
MANIFEST = "manifest.json"
JOURNAL = "make_shards.journal"  # lies in a folder that make_shards has not finished
_NAME = re.compile(r"(?!\.+$)[^/\\\0]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar: `digest` is its sha256 from the manifest, else `index:` and the sha256 of its index.

    `index_file` names the index file of a tar that has it elsewhere than beside itself.
    """

    path: str
    count: int
    bytes: int
    digest: str
    index: ShardIndex | None = dataclass_field(default=None, repr=False)
    index_file: str | None = None


@dataclass(frozen=True)
class ManifestRow:
    """One shard of a manifest; a tar that does not lie beside the manifest has a `url` or a `path`."""

    name: str
    count: int
    bytes: int
    sha256: str
    url: str | None = None
    path: str | None = None


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
        rows.append(ManifestRow(path.name, len(tar.index.keys), tar.bytes, tar.sha256))
        write_index(index_path(path), tar.index, tar.bytes)
    write_rows(folder, rows)
    return read_manifest(folder)


def _read_json(text: str, origin: str, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            raise ValueError(f"expected version {VERSION}, got {content['version']!r}")
        return {**content, **{key: content[key] for key in keys}}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{origin}: not a valid file of this kind: {error!r}; make it again") from error


def _row(content: dict[str, Any]) -> ManifestRow:
    row = ManifestRow(**{field.name: content[field.name] for field in fields(ManifestRow) if field.name in content})
    texts, numbers = (row.name, row.sha256, row.url or "", row.path or ""), (row.count, row.bytes)
    if {type(text) for text in texts} != {str} or {type(number) for number in numbers} != {int} or min(numbers) < 0:
        raise ValueError("expected texts as name, sha256, url and path, and whole numbers as count and bytes")
    if not _NAME.fullmatch(row.name) or not _SHA256.fullmatch(row.sha256):
        raise ValueError("expected a file name without a folder, and a sha256 of 64 digits")
    return row


def parse_manifest(text: str, origin: str) -> list[ManifestRow]:
    """The rows of a `manifest.json`; `origin` is what error messages call it.

    Raises:
        ValueError: if it is not a manifest, or a name in it is not that of a file in its folder, or comes twice.
    """
    rows: list[ManifestRow] = []
    for content in _read_json(text, origin, ["shards"])["shards"]:
        try:
            rows.append(_row(content))
        except (ValueError, TypeError) as error:
            raise ValueError(redact(f"{origin}: not a valid row: {content!r}: {error}; make it again")) from None
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise ValueError(f"{origin}: expected every shard once, got {twice} more than once; make it again")
    return rows


def _check_local(path: Path, row: ManifestRow, folder: Path) -> None:
    size = path.stat().st_size if path.exists() else None
    if size != row.bytes:
        found = "no such file" if size is None else f"{size} bytes"
        hint = "; make_shards was interrupted here, run it again" if (folder / JOURNAL).exists() else ""
        raise ValueError(f"{path}: expected {row.bytes} bytes by {MANIFEST}, got {found}{hint}")


def read_manifest(folder: Path) -> list[Shard]:
    """The shards of a folder's `manifest.json`, in its order.

    Raises:
        ValueError: if a local shard is missing, has another size, or lies in the folder but not in the manifest.
    """
    shards, names = [], set()
    for row in parse_manifest((folder / MANIFEST).read_text(), str(folder / MANIFEST)):
        path = row.url or row.path or str(folder / row.name)
        names.add(row.name)
        if row.url is None:
            _check_local(Path(path), row, folder)
        elsewhere = None if path == str(folder / row.name) else str(index_path(folder / row.name))
        shards.append(Shard(path, row.count, row.bytes, row.sha256, index_file=elsewhere))
    if extra := sorted(str(path) for path in folder.glob("*.tar") if path.name not in names):
        raise ValueError(f"{folder / MANIFEST}: expected every tar of its folder, {extra} are not in it")
    return shards


def parse_index(text: str, origin: str, shard: Shard) -> ShardIndex:
    """The index of a shard from its file's text; `origin` is what error messages call the file.

    Raises:
        ValueError: if it does not fit the shard's size and count, or holds a key that leaves its folder.
    """
    content = _read_json(text, origin, ["bytes", "keys", "fields"])
    try:
        sizes = None if content.get("sizes") is None else [(int(w), int(h)) for w, h in content["sizes"]]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{origin}: expected sizes [[width, height], ...]: {error}; make it again") from error
    index = ShardIndex(content["keys"], content["fields"], sizes)
    _check_index(index, content["bytes"], origin, shard)
    return index


def _check_index(index: ShardIndex, size: int, origin: str, shard: Shard) -> None:
    found = (size, len(index.keys), len(index.fields))
    if found != (shard.bytes, shard.count, shard.count):
        raise ValueError(
            f"{origin}: expected {shard.bytes} bytes and {shard.count} samples, got {found}; make it again"
        )
    if index.sizes is not None and len(index.sizes) != shard.count:
        raise ValueError(f"{origin}: expected {shard.count} sizes, got {len(index.sizes)}; make it again")
    if unsafe := [key for key in index.keys if not is_safe(key)]:
        raise ValueError(f"{origin}: expected keys that stay in their folder, got {unsafe[:3]}")


def load_index(shard: Shard) -> ShardIndex:
    """The index of a shard: held, read from its file, or made from the tar.

    Raises:
        ValueError: if it does not fit the shard's size and count, or holds a key that leaves its folder.
    """
    if shard.index is not None:
        return shard.index
    path = Path(shard.index_file) if shard.index_file else index_path(Path(shard.path))
    if path.exists():
        return parse_index(path.read_text(), str(path), shard)
    index = index_shard(shard.path)
    _check_index(index, shard.bytes, str(path), shard)
    return index


def index_digest(index: ShardIndex) -> str:
    """`index:` and the sha256 of where the samples lie: stands for a tar's own sha256 in a set without a manifest."""
    return "index:" + hashlib.sha256(json.dumps([index.keys, index.fields]).encode()).hexdigest()
