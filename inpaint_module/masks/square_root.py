"""A square root that every device and every version of torch rounds alike."""

from __future__ import annotations

from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded: float32 to float32.

    torch's own of float32 is off by one bit for a seventh of all numbers on some CPUs, none on a GPU. That of float64
    may be off by its last bit too, which rounding to float32 takes away: no root of a float32 comes that close to the
    middle of two.
    """
    return x.double().sqrt().float()
