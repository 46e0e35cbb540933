"""Masked PSNR by hand."""

from __future__ import annotations

import pytest
import torch

from inpaint_module.metrics.masked import MaskedPSNR


def test_by_hand() -> None:
    image = torch.zeros(3, 3, 2, 2)
    made = image.clone()
    made[:, :, 0] = 0.1  # 20 dB in the first row, none of it below
    chosen = torch.zeros(3, 1, 2, 2)
    chosen[0, :, 0] = 1  # 20 dB
    chosen[1] = 1  # half the error: 23.01 dB
    metric = MaskedPSNR()
    metric.update(made, image, chosen, torch.ones(3))  # the third image has nothing chosen
    assert metric.compute().item() == pytest.approx((20 + 23.0103) / 2, abs=1e-3)


def test_weight_zero_leaves_an_image_out_and_batches_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    image, made = torch.rand(2, 5, 3, 4, 4, generator=generator)
    chosen = torch.ones(5, 1, 4, 4)
    whole, parts = MaskedPSNR(), MaskedPSNR()
    whole.update(made[:4], image[:4], chosen[:4], torch.ones(4))
    parts.update(made[:3], image[:3], chosen[:3], torch.ones(3))
    parts.update(made[3:], image[3:], chosen[3:], torch.tensor([True, False]))
    assert torch.equal(whole.compute(), parts.compute())


def test_a_perfect_image_is_finite() -> None:
    metric = MaskedPSNR()
    metric.update(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1))
    assert metric.compute() == 100
