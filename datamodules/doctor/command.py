"""Look at the data of a config before training: inpaint doctor --config configs/quickstart.yaml

Reads a few batches as `fit` does, sends them through the config's VAE and one training step, and reports
what is wrong: pixel range, blank and duplicate images, inverted, empty and lossy masks, mask lost on the latent grid,
sizes, captions, the VAE's round trip, scale and overflow, bad samples, a source that does not answer. Says how fast
each stage is, and what would be faster. With --all it looks at every sample instead, without a model, and writes one
page: sizes, aspects, buckets, captions and tags, mask coverage, near-duplicates, bad files. Nothing of a run is
written or changed.

Exit codes, for CI: 0 if there is no error, 1 if there is, 2 if the command itself is wrong. With --strict warnings
are errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from datamodules.account import tell
from datamodules.doctor.examination import Examination, examine
from datamodules.doctor.findings import ERROR
from datamodules.doctor.inputs import data_from_configs
from datamodules.doctor.output import draw_sheet, table
from datamodules.doctor.whole_set import look_at_all, page, summary
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.commands import options
from inpaint_module.commands.errors import exit_code_of
from inpaint_module.commands.parser import device_of
from inpaint_module.files import atomic_write_picture, atomic_write_text, check_replaceable
from inpaint_module.redaction import permissions_for, redact

_MAKER = "inpaint doctor"
_MOST_BAD = 10
_ALL_BAD = ["--data.loading.max_bad_share=1.0"]  # tell all of them, instead of ending at the first few


def exit_code(exam: Examination, *, strict: bool = False) -> int:
    """1 if there is an error, or with `strict` any finding; else 0."""
    return int(any(strict or finding.severity == ERROR for finding in exam.findings))


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.doctor` parsed; ends the process if a thread waits for a stalled source."""
    code, stalled = examined(given, overrides)
    sys.stdout.flush()
    if stalled:
        os._exit(code)  # the thread would hold up the end
    return code


def examined(given: Namespace, overrides: Sequence[str]) -> tuple[int, bool]:
    """Examine and report: the exit code, and whether a thread is left that waits for a stalled source."""
    try:
        device = device_of(given.device)
    except ValueError as error:
        options.doctor().error(f"--{error}")
    if given.all:
        return all_examined(given, overrides), False
    if given.out is not None:
        check_replaceable(given.out, _MAKER)
    chosen = {"batches": given.batches, "timeout": given.timeout, "step": not given.no_step, "device": device}
    exam = examine(given.config, overrides, **chosen)
    tell(redact(table(exam)))
    if given.out is not None and (sheet := draw_sheet(exam, ", ".join(map(str, given.config)))) is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_picture(given.out, sheet, _MAKER)
        sys.stdout.write(f"sheet: {given.out}\n")
    return exit_code(exam, strict=given.strict), exam.stalled


def all_examined(given: Namespace, overrides: Sequence[str]) -> int:
    """Look at the whole training set, write the page and report; the exit code, 1 if a sample cannot be used.

    Raises:
        ValueError: the page's name does not end in .html, or another program's file is there.
    """
    out = given.out or Path("doctor.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out: expected a name that ends in .html for the page of --all, got {out}")
    check_replaceable(out, _MAKER)
    data = data_from_configs(given.config, [*overrides, *_ALL_BAD])
    if not isinstance(data, WebDatasetDataModule):
        raise ValueError(f"data: expected datamodules.WebDatasetDataModule for --all, got {type(data).__name__}")
    found = look_at_all(data, progress=True)
    shards = [data.train_shards] if isinstance(data.train_shards, str) else data.train_shards
    out.parent.mkdir(parents=True, exist_ok=True)
    text = page(found, redact(", ".join(shards)), _MAKER)
    atomic_write_text(out, text, permissions=permissions_for(text))
    tell("".join(f"{name:17}{words}\n" for name, words in summary(found).items()))
    tell("".join(f"bad: {redact(each.fault)}\n" for each in found.bad[:_MOST_BAD]))
    sys.stdout.write(f"page: {out}\n")
    return int(bool(found.bad) or (given.strict and bool(found.alike)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, within this process; returns the exit code."""
    return examined(*options.doctor().parse(arguments))[0]


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: run(*options.doctor().parse())))
