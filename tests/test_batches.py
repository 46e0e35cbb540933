"""Batches: one mask for every sample, those of the data first."""

from typing import Any

import torch
from data_fixtures import Halves
from torch import Tensor

from datamodules.order.loaders import collate
from datamodules.stream_datamodule import add_masks
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


def test_notes_of_a_batch() -> None:
    clean = collate([sample(p) for p in range(2)])
    assert set(clean) == {"image", "position", "caption", "__key__"}
    rows = [
        sample(0),
        {**sample(1), "notes": [("bad", "a"), ("bad", "b")]},
        {**sample(2), "notes": [("bad", "c"), ("x", "d")]},
    ]
    assert collate(rows)["notes"] == {"bad": ["a", "b", "c"], "x": ["d"]}
    assert add_masks(collate(rows), Halves(), 7)["notes"] == {"bad": ["a", "b", "c"], "x": ["d"]}


def test_labels() -> None:
    batch = collate([{**sample(p), "label": 7 - p} for p in range(3)])
    assert batch["label"].tolist() == [7, 6, 5]
    assert batch["label"].dtype == torch.int64
