"""Draws: one position's numbers are its row of the batch's."""

import torch

from datamodules.decode.augmentations import position_draws
from inpaint_module.randomness import Stream, key, uniform


def test_rows_of_the_batch() -> None:
    positions = torch.tensor([-1, 0, 63, 64, 10**12])
    for stream, count in ((Stream.CROP, 3), (Stream.OWN_MASK, 2), (Stream.REMOVAL_MASK, 5)):
        rows = uniform(key(9, positions, stream), count).tolist()
        assert [position_draws(9, int(position), stream, count) for position in positions] == rows
