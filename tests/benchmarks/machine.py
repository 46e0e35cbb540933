"""What a benchmark ran on, in words that name no host and no path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from tests.benchmarks.markdown import write

PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "webdataset", "pillow", "numpy")


def cpu() -> str:
    """The CPU's model and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_model_name()}, {platform.machine()}, {cores} core(s)"


def _model_name() -> str:
    """As /proc/cpuinfo tells it; elsewhere, and on ARM, as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "CPU")


def card(device: str) -> str:
    """The GPU's name, or nothing on the CPU."""
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if device == "cuda" else ""


def versions() -> str:
    """Of Python and of the packages that the figures depend on."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def heading(title: str, device: str, note: str) -> None:
    """Print a benchmark's title and what it ran on."""
    parts = [card(device), cpu(), f"{torch.get_num_threads()} torch thread(s)"]
    write(f"# {title}\n\n{', '.join(filter(None, parts))}; {versions()}. {note}\n")
