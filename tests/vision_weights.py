"""Random weights of a vision network in torchvision's file format, under torchvision's file name."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models import squeezenet1_1

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


def saved(folder: Path, place: str = "") -> str:
    """The folder, with a file of SqueezeNet's weights in it or in a folder of it."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(squeezenet1_1().state_dict(), folder / place / SQUEEZENET)
    return str(folder)
