"""Make webdataset shards from images: python -m datamodules.make_shards photos data/train

SOURCE is a folder (with its subfolders), a text file with one path a line, or a table: csv, tsv, jsonl, ndjson or
parquet with a column of paths and, if you like, columns of captions, masks and class numbers. Paths in a list are
relative to its folder.

Beside an image NAME.jpg (or png, webp) may lie its caption NAME.txt, its mask NAME.mask.png (or webp, jpg; white =
inpaint), class numbers NAME.label.png or NAME.seg.png, and NAME.json with COCO annotations. What a table says wins.

The same input gives the same bytes, for any number of workers: sorted keys, no times, no owners. A run that was
stopped or killed goes on when the same command is given again, and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from tqdm import tqdm

from datamodules.shards.manifest import Shard, read_manifest
from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.shard_journal import ShardJournal, open_journal
from datamodules.writing.shard_options import SHARD_BYTES, add_shard_options
from datamodules.writing.shard_writer import ShardWriter
from datamodules.writing.source_lists import Columns, Source, find_sources, fingerprint
from datamodules.writing.source_samples import EncodedSample, Resize, try_source
from inpaint_module.commands.errors import GOES_ON, exit_code_of


class Report(NamedTuple):
    """What was written, and the images left out with `skip_bad`, each with its reason."""

    shards: list[Shard]
    skipped: list[str]


def _write(
    results: Iterator[EncodedSample | str], writer: ShardWriter, journal: ShardJournal, skip_bad: bool
) -> list[str]:
    """Write the samples of all sources from `journal.next_source` on; returns the reasons of those left out."""
    bad, number = journal.skipped, journal.next_source
    for result in results:
        if isinstance(result, str):
            bad.append(result)
        elif (not bad or skip_bad) and (finished := writer.write(*result)):
            journal.add(*finished, next_source=number, skipped=bad)
        number += 1
    if (not bad or skip_bad) and (finished := writer.finish()):
        journal.add(*finished, next_source=number, skipped=bad)
    return bad


def _arguments(sources: Sequence[Source], **arguments: Any) -> dict[str, Any]:
    """All that the shards' bytes depend on; another Pillow may encode otherwise."""
    return {"images": len(sources), "contents": fingerprint(sources), **arguments, "pillow": PIL.__version__}


def make_shards(
    source: str | Path,
    out: str | Path,
    *,
    columns: Columns = Columns(),  # noqa: B008, immutable
    shard_bytes: int = SHARD_BYTES,
    samples_per_shard: int | None = None,
    resize: Resize = Resize(),  # noqa: B008, immutable
    max_pixels: int = 50_000_000,
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
        shard_bytes: size of a tar, about.
        samples_per_shard: at most so many samples a tar.
        resize: shrink larger images; without it their bytes are copied unchanged.
        max_pixels: refuse larger images.
        skip_bad: leave unusable images out and report them, instead of refusing all.
        workers: processes that read, shrink and encode.
        progress: show a progress bar.

    Raises:
        ValueError: if `out` has shards already, or an unfinished run of other arguments or of images that have
            changed since, or naming every image that cannot be used.
        OSError: if writing fails, or a worker dies; the same call goes on.
    """
    out = Path(out)
    sources = find_sources(source, columns)
    arguments = _arguments(
        sources,
        shard_bytes=shard_bytes,
        samples_per_shard=samples_per_shard,
        **resize._asdict(),
        max_pixels=max_pixels,
        skip_bad=skip_bad,
    )
    with closing(open_journal(out, arguments)) as journal:
        number = journal.next_source
        bar = tqdm(sources[number:], initial=number, total=len(sources), unit="image", disable=not progress)
        encode = partial(try_source, resize=resize, max_pixels=max_pixels)
        with (
            closing(ordered_map(encode, bar, workers=workers, preload=try_source.__module__)) as results,
            closing(ShardWriter(out, shard_bytes, samples_per_shard, number=len(journal.shards))) as writer,
        ):
            bad = _write(results, writer, journal, skip_bad)
        if (bad and not skip_bad) or not journal.shards:
            journal.discard()
            raise ValueError(f"{len(bad)} of {len(sources)} images cannot be used:\n" + "\n".join(bad))
        journal.publish()
    return Report(read_manifest(out), bad)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.make_shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder of images, text file with one path a line, or table")
    add_shard_options(parser)
    number = partial(parser.add_argument, type=int, metavar="N")
    number("--samples-per-shard", help="start a new tar after N samples (default: by size alone)")
    number("--short-side", help="shrink larger images to N pixels at their short side (default: copied unchanged)")
    number("--max-side", help="shrink larger images to N pixels at their long side (default: copied unchanged)")
    number("--quality", default=92, help="of shrunk JPEG and WEBP, 1 to 100 (default %(default)s)")
    number("--max-pixels", default=50_000_000, help="refuse images of more than N pixels (default %(default)s)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that cannot be used (default: refuse all)"
    )
    number("--workers", default=os.cpu_count(), help="processes (default: one per core)")
    _add_columns(parser)
    return parser


def _add_columns(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group("columns of a table")
    told = {"image": "paths", "caption": "captions", "mask": "paths of masks", "label": "class numbers"}
    for purpose, what in told.items():
        names = " or ".join(Columns._field_defaults[purpose])
        more = "" if purpose == "image" else "; '' for none"
        table.add_argument(f"--{purpose}-column", metavar="NAME", help=f"{what} (default: {names}{more})")
    table.add_argument(
        "--json-columns", metavar="A,B", default="", help="more columns to keep, in each sample's json (default: none)"
    )


def _columns(options: dict[str, Any]) -> Columns:
    """Columns from the command's options; an empty name stands for no column."""
    names = {purpose: options.pop(f"{purpose}_column") for purpose in ("image", "caption", "mask", "label")}
    chosen = {purpose: (name,) if name else () for purpose, name in names.items() if name is not None}
    return Columns(**chosen, json=tuple(filter(None, options.pop("json_columns").split(","))))


def _run(options: dict[str, Any]) -> int:
    resize = Resize(options.pop("short_side"), options.pop("max_side"), options.pop("quality"))
    columns = _columns(options)
    report = make_shards(**options, columns=columns, resize=resize, progress=True)
    for reason in report.skipped:
        sys.stderr.write(f"skipped: {reason}\n")
    total = sum(shard.count for shard in report.shards)
    sys.stdout.write(f"{total} samples in {len(report.shards)} shards, {len(report.skipped)} skipped\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    return exit_code_of(lambda: _run(options), GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
