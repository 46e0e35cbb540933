"""Where a command works: its option --device."""

from __future__ import annotations

import argparse

import torch


def add_device(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--device`."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where the model works: cpu, cuda, cuda:1, ...; auto is a GPU if there is one (default %(default)s)",
    )


def device_of(name: str) -> torch.device:
    """The device of a name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        ValueError: no device of that name is there.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=found if name == "auto" else name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected auto, cpu or a GPU that is there, got {name!r}: {error}") from error
