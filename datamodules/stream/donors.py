"""Object-shape transfer: which sample lends its object's mask to the sample at each position.

A hole in the shape of another photo's object, over this photo's background, teaches to remove objects: the truth under
the hole is not the object (object masks of other images: Zheng et al. 2022, "Cascaded Modulation GAN and
Object-Aware Training").
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.stream.order import Order
from inpaint_module.randomness import Stream, draw, key


class Donors:
    """int64 positions (B,) -> int64 (B,): the number of the lending sample, or -1 for none.

    The donor is another sample of the window around the position, all equally likely, so that the same few shards stay
    open. It is a function of (seed, position) alone, as the order is.

    Args:
        order: position -> sample number.
        seed: seeds the choice.
        probability: the share (0..1) of positions with a donor.
    """

    def __init__(self, order: Order, *, seed: int, probability: float) -> None:
        self.order = order
        self.seed = seed
        self.probability = probability

    def __call__(self, positions: Tensor) -> Tensor:
        """See the class."""
        words = draw(key(self.seed, positions, Stream.DONOR), 2)
        lends = (words[:, 0] >> 8).float() * 2.0**-24 < self.probability
        return torch.where(lends, self.order.another(positions, words[:, 1]), -1)
