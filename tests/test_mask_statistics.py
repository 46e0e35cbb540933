"""Every random preset against an independent slow sampler: 1,000 or 2,000 masks of each, 96 x 96 pixels."""

from __future__ import annotations

import pytest
import torch
from slow_masks import SLOW, slow_masks
from torch import Tensor

from inpaint_module.masks import preset, presets
from inpaint_module.masks.components import count_components
from inpaint_module.morphology import mask_leak, reduce_mask
from inpaint_module.randomness import Stream, key

NUMBER, SIDE = 2000, 96
LONGEST = {"lama-thin", "comodgan", "mat", "grid"}  # half as many: 0.02 are 2.5 standard errors or more


def box_sides(masks: Tensor) -> Tensor:
    """Mean width and height of the boxes around masks, as shares of the side: float (2,)."""
    spans = []
    for dim in (-2, -1):
        line = masks[:, 0].any(dim)
        first, last = line.int().argmax(1), SIDE - 1 - line.flip(1).int().argmax(1)
        spans.append((last - first + 1).float().mean() / SIDE)
    return torch.stack(spans)


@pytest.mark.parametrize("name", SLOW)
def test_statistics_equal_the_slow_samplers(name: str) -> None:
    number = NUMBER // 2 if name in LONGEST else NUMBER
    fast = preset(name)(key(0, torch.arange(number), Stream.MASK), SIDE, SIDE)
    slow = torch.from_numpy(slow_masks(name, number, SIDE))[:, None]
    shares = [masks.flatten(1).float().mean(1) for masks in (fast, slow)]
    assert abs(shares[0].mean() - shares[1].mean()) < 0.02  # 3 standard errors of the difference, or less
    deciles = [share.quantile(torch.arange(1, 10) / 10) for share in shares]
    assert (deciles[0] - deciles[1]).abs().max() < 0.04
    pieces = [torch.tensor(count_components(masks)).float().mean() for masks in (fast, slow)]
    assert abs(pieces[0] - pieces[1]) < 0.1 + 0.1 * pieces[1]
    assert (box_sides(fast) - box_sides(slow)).abs().max() < 0.025


def test_every_random_preset_has_a_slow_twin() -> None:
    assert set(presets()) == {*SLOW, *(name for name in presets() if name.startswith("repaint"))}


def test_a_quarter_of_sd_masks_is_full() -> None:
    masks = preset("sd")(key(0, torch.arange(NUMBER), Stream.MASK), 64, 64)
    assert abs(masks.flatten(1).all(1).float().mean() - 0.25) < 0.03


LEAK = {  # lama-thin, share of all masked pixels whose latent cell says keep (64 masks of LaMa's own, 512 px)
    (8, "nearest"): 0.179,
    (8, "bilinear"): 0.123,
    (8, "area"): 0.092,
    (8, "max"): 0.0,
    (32, "nearest"): 0.485,
    (32, "bilinear"): 0.376,
    (32, "area"): 0.336,
}


def test_lama_thin_leaks_as_lamas_own_masks() -> None:
    masks = preset("lama-thin")(key(0, torch.arange(64), Stream.MASK), 512, 512)
    area = masks.flatten(1).sum(1)
    for (ratio, how), published in LEAK.items():
        leak = (mask_leak(masks, reduce_mask(masks, ratio, how)) * area).sum() / area.sum()
        assert abs(leak - published) <= 0.2 * published, (ratio, how, leak)
