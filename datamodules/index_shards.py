"""Index existing webdataset shards: inpaint shards index SHARDS [OUT]

SHARDS is a folder of tars, a tar, a brace pattern or glob such as 'data/{000..099}.tar', a text file with one of
these a line, or the URL (http, https, s3, gs; with braces) of tars. The tars are read once, hashed and checked, and
never touched. An account at the end tells what the samples have, what is odd about masks (the first 64 of each local
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
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from glob import escape, glob
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from tqdm import tqdm
from webdataset.shardlists import expand_urls

from datamodules.account import Account, RefusedError, tell
from datamodules.shards.manifest import JOURNAL, ManifestRow, Shard, index_path, read_manifest, write_rows
from datamodules.shards.shard_specs import packing_advice
from datamodules.shards.tar_index import check_ignorable
from datamodules.shards.transports import file_name, is_remote, scheme
from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.tar_indexer import IndexedTar, TarPlace, try_index_tar
from inpaint_module.commands import options
from inpaint_module.commands.errors import GOES_ON, exit_code_of
from inpaint_module.redaction import redact, redacted

UNREADABLE = "with an image whose header cannot be read: its size is recorded as 0 x 0"


class IndexReport(NamedTuple):
    """The shards, how many of them were read now, the samples whose image size cannot be read, and the account."""

    shards: list[Shard]
    fresh: int
    unreadable: list[str]
    account: Account


def find_tars(spec: str, base: str = "") -> list[str]:
    """Addresses of tars by folder, path, brace pattern, glob, URL, or a text file of these (relative to its folder).

    Raises:
        ValueError: if nothing is found, or an address has a scheme that is not read.
    """
    if is_remote(spec):
        urls = list(expand_urls(spec))
        if other := [url for url in urls if not is_remote(url)]:
            raise ValueError(f"shards {redact(spec)!r}: expected URLs only, got {redacted(other[:3])}")
        return urls
    if scheme(spec) is not None:
        raise ValueError(f"shards {redact(spec)!r}: expected local tars or URLs of http, https, s3 or gs")
    path = os.path.join(base, spec)
    if os.path.isdir(path):
        found = sorted(glob(os.path.join(escape(path), "*.tar")))
    elif os.path.isfile(path) and path.endswith(".txt"):
        lines = (line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines())
        found = [tar for line in lines if line for tar in find_tars(line, os.path.dirname(path))]
    else:
        found = []
        for pattern in expand_urls(path):
            tars = [pattern] if os.path.exists(pattern) else sorted(glob(pattern))
            if not tars:
                raise ValueError(redact(f"shards {spec!r}: nothing found at {pattern}"))
            found += tars
    if not found:
        raise ValueError(f"shards {spec!r}: no tars there{packing_advice(Path(path))}")
    return found


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
    if any(is_remote(address) for address in addresses) or set(folder.glob("*.tar")) != {
        Path(tar) for tar in addresses
    }:
        raise ValueError("expected all tars of one local folder, got others; name a folder OUT for their manifest")
    if (folder / JOURNAL).exists():
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
        tell(error.account.text("samples in the tars that can be used"))
        raise
    for sample in report.unreadable:
        sys.stderr.write(f"no image size: {sample}\n")
    count = len(report.shards)
    head = f"samples in {count} shard{'s' * (count != 1)}, {count - report.fresh} of them indexed before"
    tell(report.account.text(head))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.shards_index().parse(arguments)), GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
