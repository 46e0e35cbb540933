"""A square root that every device and every version of torch rounds alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inpaint_module.masks.generator import cheap_to_read


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded: float32 to float32.

    torch's own of float32 is off by one bit for a seventh of all numbers on some CPUs, none on a GPU; numpy's is the
    processor's. Where there is none, that of float64 may be off by its last bit too, which rounding to float32 takes
    away: no root of a float32 comes that close to the middle of two.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if cheap_to_read(x) else x.double().sqrt().float()
