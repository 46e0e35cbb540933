"""Counting the pieces of a mask."""

from __future__ import annotations

import torch

from inpaint_module.masks.gallery import count_components


def test_pieces_by_hand() -> None:
    picture = ["##..#", ".....", "#.#.#", "###.#", "...#."]
    mask = torch.tensor([[char == "#" for char in line] for line in picture])
    snail = torch.tensor([[char == "#" for char in line] for line in ["#####", "....#", "###.#", "#...#", "#####"]])
    masks = torch.stack([mask, snail, torch.zeros(5, 5, dtype=torch.bool), ~snail])[:, None]
    assert count_components(masks) == [3, 1, 0, 1]
