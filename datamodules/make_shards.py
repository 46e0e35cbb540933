"""Make webdataset shards from images: inpaint shards make photos data/train

SOURCE is a folder (with its subfolders, linked ones too), a text file with one path a line, or a table: csv, tsv,
jsonl, ndjson or parquet with a column of paths or of pictures and, if you like, columns of captions, masks, targets,
instructions, references and class numbers. Paths in a list are relative to its folder.

Beside an image NAME.jpg may lie its caption NAME.txt or NAME.caption, its mask NAME.mask.png (white = inpaint), the
picture that it should become NAME.target.png, the text of that pair NAME.instruction.txt (else its caption), a
reference picture of an edit model NAME.reference.png, class numbers NAME.label.png or NAME.seg.png, its class
NAME.cls, and NAME.json with annotations of COCO or LabelMe; a table metadata.csv or
metadata.jsonl in the folder may say more. Names fit in any case, and what a table says wins. Masks with other names are
taken with --masks.

JPEG, PNG and WEBP are copied byte for byte; TIFF, BMP, GIF, AVIF, HEIC and others become PNG without loss. An account
at the end says what was taken and found, what was left aside and why, and what cannot be used.

The same input gives the same bytes, for any number of workers: sorted keys, no times, no owners. A run that was
stopped or killed goes on when the same command is given again, and ends with the same bytes.

Exit codes: 0 if something was taken and nothing refused (or with --skip-bad), else 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from jsonargparse import Namespace
from tqdm import tqdm

from datamodules.account import Account, RefusedError, write_out
from datamodules.shards.manifest import Shard, read_manifest
from datamodules.shards.tar_index import ScannedTar
from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.shard_writer import ShardJournal, ShardWriter, open_journal
from datamodules.writing.source_lists import Columns, Source, find_sources, fingerprint
from datamodules.writing.source_samples import PackedSample, Packing, Resize, try_source
from datamodules.writing.source_tables import PURPOSES
from inpaint_module.cli import options
from inpaint_module.cli.errors import GOES_ON, exit_code_of


class Report(NamedTuple):
    """What was written, the reasons of images left out with `skip_bad`, and the account of all files."""

    shards: list[Shard]
    skipped: list[str]
    account: Account


def _write(
    results: Iterator[PackedSample | str], writer: ShardWriter, journal: ShardJournal, skip_bad: bool, account: Account
) -> list[str]:
    """Write the samples of all sources from `journal.next_source` on; returns the reasons of those left out.

    Unless `skip_bad`, nothing more is written once something cannot be used.
    """
    bad, number, part = journal.skipped, journal.next_source, Account()
    for shard in journal.shards:
        account.add(Account.from_json(shard.account))

    def note(finished: tuple[str, ScannedTar] | None) -> Account:
        if finished:
            journal.add(*finished, next_source=number, skipped=bad, account=part.as_json())
        return Account() if finished else part

    for result in results:
        if isinstance(result, str):
            bad.append(result)
        else:
            if skip_bad or not (bad or account.refused):
                part = note(writer.write(*result.sample))
            for each in (part, account):
                each.take(result.found, result.notes)
        number += 1
    if skip_bad or not (bad or account.refused):
        note(writer.finish())
    account.refused += bad
    return bad


def check_encoding(name: str) -> str:
    """The name of an encoding, as given.

    Raises:
        ValueError: if Python knows no such encoding of texts.
    """
    try:
        b"a".decode(name)
    except UnicodeError:  # one letter may be half of one
        return name
    except LookupError as error:
        raise ValueError(f"caption_encoding: expected one that Python knows, such as latin-1, got {error}") from error
    return name


def _arguments(sources: Sequence[Source], **arguments: Any) -> dict[str, Any]:
    """All that the shards' bytes depend on; another Pillow may encode otherwise."""
    return {"images": len(sources), "contents": fingerprint(sources), **arguments, "pillow": PIL.__version__}


def make_shards(
    source: str | Path,
    out: str | Path,
    *,
    columns: Columns = Columns(),  # noqa: B008, immutable
    masks: str | None = None,
    shard_bytes: int = options.SHARD_BYTES,
    samples_per_shard: int | None = None,
    resize: Resize = Resize(),  # noqa: B008, immutable
    max_pixels: int = 50_000_000,
    caption_encoding: str = "utf-8",
    inverted_masks: bool = False,
    transparent_masks: bool = False,
    skip_bad: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Write the images of a folder or a list into shards, with manifest and index.

    Goes on with what a killed run of the same arguments has finished; `workers` may differ.

    Args:
        source: a folder, searched with its subfolders, a text file with one path a line, or a table.
        out: a folder without shards, or with an unfinished run; made if missing.
        columns: which columns of a table are used.
        masks: where masks are besides NAME.mask.png: a pattern such as `{name}_mask*.png`, or a folder.
        shard_bytes: size of a tar, about.
        samples_per_shard: at most so many samples a tar.
        resize: shrink larger images; without it their bytes are copied unchanged.
        max_pixels: refuse larger images.
        caption_encoding: of captions, tables and lists that have no byte-order mark.
        inverted_masks: black = inpaint in mask files; they are written the other way round.
        transparent_masks: mask files are transparent where to inpaint; they are written in black and white.
        skip_bad: leave unusable images out and report them, instead of refusing all.
        workers: processes that read, shrink and encode.
        progress: show a progress bar.

    Raises:
        ValueError: if `out` has shards already, or an unfinished run of other arguments or of images that have
            changed since.
        RefusedError: naming every image that cannot be used.
        OSError: if writing fails, or a worker dies; the same call goes on.
    """
    out, account, encoding = Path(out), Account(), check_encoding(caption_encoding)
    packing = Packing(resize, max_pixels, encoding, inverted_masks, transparent_masks)
    sources = find_sources(source, columns, masks=masks, encoding=packing.encoding, account=account)
    arguments = _arguments(
        sources,
        shard_bytes=shard_bytes,
        samples_per_shard=samples_per_shard,
        **resize._asdict(),
        max_pixels=max_pixels,
        caption_encoding=encoding,
        inverted_masks=inverted_masks,
        transparent_masks=transparent_masks,
        skip_bad=skip_bad,
    )
    with closing(open_journal(out, arguments)) as journal:
        number = journal.next_source
        bar = tqdm(sources[number:], initial=number, total=len(sources), unit="image", disable=not progress)
        encode = partial(try_source, packing=packing)
        with (
            closing(ordered_map(encode, bar, workers=workers, preload=try_source.__module__)) as results,
            closing(ShardWriter(out, shard_bytes, samples_per_shard, number=len(journal.shards))) as writer,
        ):
            bad = _write(results, writer, journal, skip_bad, account)
        if (account.refused and not skip_bad) or not journal.shards:
            journal.discard()
            reasons = "\n".join(account.refused)
            raise RefusedError(f"{len(bad)} of {len(sources)} images cannot be used:\n{reasons}", account)
        journal.publish()
    return Report(read_manifest(out), bad, account)


def _columns(chosen: dict[str, Any]) -> Columns:
    """Columns from the command's options; an empty name stands for no column."""
    names = {purpose: chosen.pop(f"{purpose}_column") for purpose in PURPOSES}
    given = {purpose: (name,) if name else () for purpose, name in names.items() if name is not None}
    return Columns(**given, json=tuple(filter(None, chosen.pop("json_columns").split(","))))


def run(given: Namespace, overrides: Sequence[str] = ()) -> int:
    """The command, with what `options.shards_make` parsed."""
    chosen = dict(vars(given))
    resize = Resize(chosen.pop("short_side"), chosen.pop("max_side"), chosen.pop("quality"))
    columns = _columns(chosen)
    try:
        report = make_shards(**chosen, columns=columns, resize=resize, progress=True)
    except RefusedError as error:
        write_out(error.account.text("photos can be taken"))
        raise
    for reason in report.skipped:
        sys.stderr.write(f"skipped: {reason}\n")
    count = len(report.shards)
    write_out(report.account.text(f"photos taken, in {count} shard{'s' * (count != 1)}"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.shards_make().parse(arguments)), GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
