"""Index existing webdataset shards: inpaint shards index SHARDS [OUT]

SHARDS is a folder of tars, a tar, a brace pattern or glob such as 'data/{000..099}.tar', a text file with one of
these a line, or the URL (http, https, s3, gs; with braces) of tars. The tars are read once, hashed and checked, and
never touched. An account at the end says what the samples have, what is odd about masks (the first 64 of each local
tar), and which members are no part of a sample and left aside: folders, hidden files, files without an image of their
name, and files of a kind without a use here.

Without OUT the manifest and the index files go beside the tars, which must be all of one local folder. With OUT, a
local folder, they go there, and its manifest says where the tars are: use it for tars that are remote, read-only or
in several folders. Training then reads OUT.

A run that was stopped or killed goes on when the same command is given again; tars that have not changed since are
not read again. A URL's size is taken for its state.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

from datamodules.account import Account, RefusedError, write_out
from datamodules.decode.mask_files import why_look
from datamodules.decode.mask_sources import FileMask, MaskRequest
from datamodules.decode.reading import image_bytes, image_size, open_upright
from datamodules.shards import account_of, manifest
from datamodules.shards.downloads import RemoteStream
from datamodules.shards.manifest import ManifestRow, Shard, index_path, read_manifest, write_index, write_rows
from datamodules.shards.shard_specs import find_tars
from datamodules.shards.tar_index import FIELDS, MASK_FIELDS, ScannedTar, ShardIndex, check_ignorable, scan_tar
from datamodules.shards.transports import file_name, is_remote
from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.sidecars import masks_by_name
from inpaint_module.cli import options
from inpaint_module.cli.errors import GOES_ON, exit_code_of
from inpaint_module.files import redact
from inpaint_module.parsing import read_json

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
    """By what a tar is known to be the same as before; a URL's size is all that every server knows."""
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
        index = manifest.load_index(shard)
        if any(f"not used, ending in .{field}" in (index.aside or {}) for field in FIELDS):
            return None  # of a version that did not read these
        return ScannedTar(index, shard.bytes, content["sha256"].text(manifest.SHA256))
    except (OSError, ValueError):
        return None


def _scan(place: TarPlace, ignore: frozenset[str]) -> ScannedTar:
    if is_remote(place.address):
        with closing(RemoteStream(place.address)) as stream:
            return scan_tar(stream, redact(place.address), ignore=ignore, measure=image_size)
    with open(place.address, "rb") as file:
        return scan_tar(file, place.address, ignore=ignore, measure=image_size)


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
    """Index one tar, without members of the suffixes in `ignore`, unless its index file is of the same tar and these.

    Raises:
        ValueError: naming the tar and the member, if it cannot be used; if `strict`, for a header that cannot be read.
        OSError: if it cannot be read.
    """
    source = {**_state(place), "ignore": sorted(ignore)}
    known = _read_again(place, source)
    tar = known or _scan(place, ignore)
    if known is None:
        if {**_state(place), "ignore": sorted(ignore)} != source or source["size"] not in (None, tar.bytes):
            raise ValueError(f"{redact(place.address)}: has changed while it was read")
        write_index(place.index_file, tar.index, tar.bytes, sha256=tar.sha256, source=source)
    sizes = zip(tar.index.keys, tar.index.sizes or (), strict=True)
    unreadable = [key for key, size in sizes if size == (0, 0)]
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


UNREADABLE = "with an image whose header cannot be read: its size is recorded as 0 x 0"


class IndexReport(NamedTuple):
    """The shards, how many of them were read now, the samples whose image size cannot be read, and the account."""

    shards: list[Shard]
    fresh: int
    unreadable: list[str]
    account: Account


def _places(addresses: Sequence[str], out: Path) -> list[TarPlace]:
    """A name for every tar, its own unless another has the same."""
    if twice := [redact(address) for address, count in Counter(addresses).items() if count > 1]:
        raise ValueError(f"shards: expected every tar once, got {twice[:3]} more than once")
    stems = Counter(index_path(Path(file_name(address))).name for address in addresses)
    places = []
    for address in addresses:
        name = file_name(address)
        if stems[index_path(Path(name)).name] > 1:
            name = f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"
        places.append(TarPlace(address, name, index_path(out / name)))
    return places


def _home(addresses: Sequence[str]) -> Path:
    """The one folder whose tars these are, for a manifest beside them."""
    folder = Path(addresses[0]).parent
    if any(map(is_remote, addresses)) or set(folder.glob("*.tar")) != set(map(Path, addresses)):
        raise ValueError("expected all tars of one local folder, got others; name a folder OUT for their manifest")
    if (folder / manifest.JOURNAL).exists():
        raise ValueError(f"{folder}: expected a finished set, make_shards was interrupted here; run it again")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: expected a folder to write into; name a folder OUT for the manifest")
    return folder


def _row(row: ManifestRow, address: str, out: Path) -> ManifestRow:
    """The row, saying where its tar is if it is not beside the manifest; a link may lead anywhere."""
    if is_remote(address):
        return replace(row, url=address)
    beside = os.path.abspath(address) == os.path.abspath(out / row.name)
    inside = Path(address).resolve().is_relative_to(out.resolve())
    return row if beside and inside else replace(row, path=os.path.abspath(address))


def index_shards(
    shards: str,
    out: str | Path | None = None,
    *,
    workers: int = 1,
    ignore: Collection[str] = (),
    strict: bool = False,
    keep_going: bool = False,
    progress: bool = False,
) -> IndexReport:
    """Write the manifest and the index files of existing tars, which are only read.

    Args:
        shards: a folder, a tar, a pattern, a URL, or a text file of these.
        out: a local folder for the manifest and the index files; None for the tars' own.
        workers: processes that read.
        ignore: suffixes of members to leave out, such as `npy`; never of kinds that execute.
        strict: refuse images whose header cannot be read; else their size is recorded as 0 x 0.
        keep_going: look at all tars before refusing.
        progress: show a progress bar.

    Raises:
        ValueError: naming tar and member, if one cannot be used.
        RefusedError: with `keep_going`, naming all such tars.
        OSError: if writing fails, or a worker dies; the same call goes on.
    """
    addresses = find_tars(shards)
    out = _home(addresses) if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    places = _places(addresses, out)
    good: list[IndexedTar] = []
    bad: list[str] = []
    job = partial(try_index_tar, ignore=check_ignorable(ignore), strict=strict)
    with closing(ordered_map(job, places, workers=workers, preload=try_index_tar.__module__)) as results:
        for result in tqdm(results, total=len(places), unit="tar", disable=not progress):
            if isinstance(result, IndexedTar):
                good.append(result)
            elif keep_going:
                bad.append(result)
            else:
                raise ValueError(f"{result}\nstopped at this tar; --keep-going looks at all of them")
    account = Account()
    for tar in good:
        account.add(Account.from_json(tar.account))
    unreadable = [f"{tar.row.name}: {key}" for tar in good for key in tar.unreadable]
    account.note(UNREADABLE, *unreadable)
    account.refused += bad
    if bad:
        raise RefusedError(f"{len(bad)} of {len(places)} tars cannot be used:\n" + "\n".join(bad), account)
    write_rows(out, [_row(tar.row, address, out) for tar, address in zip(good, addresses, strict=True)])
    return IndexReport(read_manifest(out), sum(tar.fresh for tar in good), unreadable, account)


def run(given: Namespace, overrides: Sequence[str] = ()) -> int:
    """The command, with what `options.shards_index` parsed."""
    chosen: dict[str, Any] = dict(vars(given))
    chosen["ignore"] = [suffix for suffix in chosen["ignore"].split(",") if suffix]
    try:
        report = index_shards(**chosen, progress=True)
    except RefusedError as error:
        write_out(error.account.text("samples in the tars that can be used"))
        raise
    for sample in report.unreadable:
        sys.stderr.write(f"no image size: {sample}\n")
    count = len(report.shards)
    head = f"samples in {count} shard{'s' * (count != 1)}, {count - report.fresh} of them indexed before"
    write_out(report.account.text(head))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.shards_index().parse(arguments)), GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
