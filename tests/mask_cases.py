"""Mask generators of every kind, and keys to call them with."""

from __future__ import annotations

import torch

from inpaint_module.masks import (
    Blob,
    Boxes,
    Cloud,
    CoverageBetween,
    Curriculum,
    Grown,
    Intersection,
    Inverted,
    MaskGenerator,
    Outpaint,
    Union,
    preset,
    presets,
)
from inpaint_module.randomness import Stream, key

KEYS = key(0, torch.arange(24), Stream.MASK)
MANY = key(1, torch.arange(2000), Stream.MASK)
GENERATORS: dict[str, MaskGenerator] = {name: preset(name) for name in presets()} | {
    "grown": Grown(preset("lama-thick"), (-20, 20)),
    "inverted": Inverted(preset("sd"), 0.5),
    "intersection": Intersection([Cloud(), Boxes()]),
    "union": Union([Outpaint(), Blob()]),
    "bounded": CoverageBetween(Boxes(), (0.2, 0.3), tries=2),
    "curriculum": Curriculum([preset("outpaint"), preset("lama-thin")], [0, 10]),
}
GENERATORS["curriculum"].set_step(4)
