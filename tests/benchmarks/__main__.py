"""All benchmarks, one after another, into one dated Markdown file.

    python -m tests.benchmarks                                # CPU; half an hour on two quiet cores
    python -m tests.benchmarks --device cuda --only encoder,masks,step
    python -m tests.benchmarks --device cuda --only memory    # ten minutes or so, 24 GB of disk
    python -m tests.benchmarks --quick --out FILE             # a minute: does it run?

Each runs in a process of its own, and what it prints is shown and written as it comes. One that fails is named in the
file, the others go on, and the exit code is 1. Only --device, --quick and what is said here is passed on; for other
options run a benchmark by itself, `python -m tests.benchmarks.bench_step --help`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple, TextIO

from tests.benchmarks import machine
from tests.benchmarks.markdown import write

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"


class Benchmark(NamedTuple):
    """How one is run.

    Attributes:
        takes_device: knows --device; the others are of the CPU whatever the device.
        one_thread: its figures are of one thread, also in the processes that it starts.
    """

    takes_device: bool = True
    one_thread: bool = False


BENCHMARKS = {
    "encoder": Benchmark(),
    "masks": Benchmark(one_thread=True),
    "stream": Benchmark(takes_device=False),
    "step": Benchmark(),
    "resume": Benchmark(takes_device=False, one_thread=True),
    "latent_cache": Benchmark(),
    "serving": Benchmark(takes_device=False),
    "memory": Benchmark(one_thread=True),
}


def command(name: str, device: str, *, quick: bool) -> list[str]:
    """What comes after the name of the interpreter."""
    chosen = ["--device", device] if BENCHMARKS[name].takes_device else []
    return ["-m", f"tests.benchmarks.bench_{name}", *chosen, *(["--quick"] if quick else [])]


def lines_of(arguments: list[str], one_thread: bool) -> Iterator[str]:
    """What a Python of its own prints, line by line; raises CalledProcessError at its end if it failed."""
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if one_thread else {})
    whole = [sys.executable, "-u", *arguments]
    with subprocess.Popen(whole, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, whole)


def report(name: str, device: str, file: TextIO, *, quick: bool) -> bool:
    """Run one, show and write what it prints; whether it went well."""
    one_thread, arguments = BENCHMARKS[name].one_thread, command(name, device, quick=quick)
    began, failed = time.monotonic(), ""
    try:
        for line in lines_of(arguments, one_thread):
            tell(line, file)
    except subprocess.CalledProcessError as error:
        failed = f"**{name} failed** with exit code {error.returncode}. "
    shown = " ".join(["OMP_NUM_THREADS=1"] * one_thread + ["python", *arguments])
    tell(f"\n{failed}`{shown}`, {time.monotonic() - began:.0f} s\n\n", file)
    return not failed


def tell(text: str, file: TextIO) -> None:
    """To both; the file keeps what there is if the rest is lost."""
    write(text)
    file.write(text)
    file.flush()


def chosen_names(text: str) -> list[str]:
    """`encoder,masks` to names, in the order of running."""
    given = text.split(",")
    unknown = [name for name in given if name not in BENCHMARKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(BENCHMARKS)}; got {','.join(unknown)}")
    return [name for name in BENCHMARKS if name in given]


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen ones; the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: do they run?")
    parser.add_argument("--only", type=chosen_names, default=list(BENCHMARKS), help=",".join(BENCHMARKS))
    parser.add_argument("--out", type=Path, help="default: results/DEVICE-DATE.md beside this module")
    options = parser.parse_args(arguments)
    out = options.out or RESULTS / f"{options.device}-{date.today().isoformat()}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        hardware = ", ".join(filter(None, [machine.card(options.device), machine.cpu()]))
        tell(f"Benchmarks of {date.today().isoformat()}: {hardware}; {machine.versions()}.\n\n", file)
        went = [report(name, options.device, file, quick=options.quick) for name in options.only]
    return 0 if all(went) else 1


if __name__ == "__main__":
    sys.exit(main())
