"""Where shards go and how large they are: options of the commands that write them."""

from __future__ import annotations

import argparse
from pathlib import Path

SHARD_BYTES = 256_000_000


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    """Give a command the argument `out` and the option `--shard-bytes`."""
    parser.add_argument(
        "out", type=Path, help="folder for the shards; holds none, or an unfinished run of this command"
    )
    parser.add_argument(
        "--shard-bytes",
        type=int,
        metavar="N",
        default=SHARD_BYTES,
        help="size of a tar in bytes, about (default %(default)s)",
    )
