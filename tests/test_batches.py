"""Batches: one mask for every sample, those of the data first."""

from typing import Any

import torch
from data_fixtures import Halves
from torch import Tensor

from datamodules.batches import add_masks, collate
from inpaint_module.randomness import Stream, key


def sample(position: int, mask: Tensor | None = None) -> dict[str, Any]:
    row = {"image": torch.zeros(3, 4, 6, dtype=torch.uint8), "position": position, "caption": "", "__key__": "k"}
    return row if mask is None else {**row, "mask": mask}


def test_masks_of_the_shard_win() -> None:
    own = torch.eye(4, 6, dtype=torch.bool)[None]
    painted = Halves()(key(7, torch.tensor([0, 1, 2]), Stream.MASK), 4, 6)
    none = add_masks(collate([sample(p) for p in range(3)]), Halves(), 7)
    some = add_masks(collate([sample(0), sample(1, own), sample(2)]), Halves(), 7)
    every = add_masks(collate([sample(p, own) for p in range(3)]), Halves(), 7)
    assert none["mask"].equal(painted)
    assert some["mask"].equal(torch.stack([painted[0], own, painted[2]]))
    assert every["mask"].equal(own.expand(3, 1, 4, 6))
    assert none.keys() == some.keys() == every.keys()
