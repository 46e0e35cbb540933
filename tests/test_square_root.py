"""Roots are those of IEEE 754, on every device: numpy's, which are the processor's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inpaint_module.masks import generator as masks


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("by_numpy", [True, False])
def test_roots_are_correctly_rounded(device: str, by_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not by_numpy:
        monkeypatch.setattr(masks, "cheap_to_read", lambda x: False)
    chance = torch.Generator().manual_seed(0)
    numbers = torch.cat([torch.rand(500_001, generator=chance) * scale for scale in (1e-6, 1.0, 500.0, 1e9)])
    numbers = torch.cat([numbers, torch.tensor([0.0, 1.0, 2.0**-149, 3.4e38])])
    assert np.array_equal(masks.square_root(numbers.to(device)).cpu().numpy(), np.sqrt(numbers.numpy()))
