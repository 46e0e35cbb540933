"""Look at the data of a config before training: python -m datamodules.doctor --config configs/quickstart.yaml

Reads a few batches as `fit` does, sends them through the config's VAE and one training step, and reports
what is wrong: pixel range, blank and duplicate images, inverted, empty and lossy masks, mask lost on the latent grid,
sizes, captions, the VAE's round trip, scale and overflow, bad samples, a source that does not answer. Says how fast
each stage is, and what would be faster. Nothing of a run is written or changed.

Exit codes, for CI: 0 if there is no error, 1 if there is, 2 if the command itself is wrong. With --strict warnings
are errors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from datamodules.account import tell
from datamodules.examination.doctor_sheet import draw_sheet
from datamodules.examination.doctor_table import table
from datamodules.examination.examination import Examination, examine
from datamodules.examination.findings import ERROR
from inpaint_module.commands.config_command import ConfigCommand
from inpaint_module.commands.devices import add_device, device_of
from inpaint_module.files import atomic_write
from inpaint_module.redaction import redact


def exit_code(exam: Examination, *, strict: bool = False) -> int:
    """1 if there is an error, or with `strict` any finding; else 0."""
    return int(any(strict or finding.severity == ERROR for finding in exam.findings))


def _parser() -> ConfigCommand:
    parser = ConfigCommand("python -m datamodules.doctor", __doc__)
    parser.add_argument("--batches", type=int, metavar="N", default=4, help="batches to read (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write a sheet of samples there (default: no sheet)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too (default: for errors)")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", default=120.0, help="how long to wait for a batch (default 120)"
    )
    add_device(parser)
    parser.add_argument("--no-step", action="store_true", help="leave out the training step, which needs its memory")
    return parser


def run(arguments: list[str] | None = None) -> tuple[int, bool]:
    """The command: the exit code, and whether a thread is left that waits for a stalled source."""
    parser = _parser()
    options, overrides = parser.parse(arguments)
    if options.batches < 1 or options.timeout <= 0:
        parser.error(
            f"expected --batches of at least 1 and a positive --timeout, got {options.batches}, {options.timeout}"
        )
    try:
        device = device_of(options.device)
    except ValueError as error:
        parser.error(f"--{error}")
    chosen = {"batches": options.batches, "timeout": options.timeout, "step": not options.no_step, "device": device}
    exam = examine(options.config, overrides, **chosen)
    tell(redact(table(exam)))
    if options.out is not None and (sheet := draw_sheet(exam, ", ".join(map(str, options.config)))) is not None:
        with atomic_write(options.out) as file:
            sheet.save(file, "PNG")
        sys.stdout.write(f"sheet: {options.out}\n")
    return exit_code(exam, strict=options.strict), exam.stalled


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return run(arguments)[0]


if __name__ == "__main__":
    code, stalled = run()
    sys.stdout.flush()
    if stalled:
        os._exit(code)  # a thread that waits for the source would hold up the end
    sys.exit(code)
