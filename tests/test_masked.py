"""PSNR, seams and structure by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from inpaint_module.metrics.scores import MaskedPSNR, masked_ssim, seam_error
from inpaint_module.sampling import composite


def rows(*values: list[float]) -> Tensor:
    """(1, 3, H, W), alike in all channels."""
    return torch.tensor(values).expand(1, 3, -1, -1)


def hole(*values: list[int]) -> Tensor:
    return torch.tensor(values)[None, None].bool()


def pictures(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_seams_by_hand() -> None:
    image = rows([0.0, 0.2, 0.2, 0.2], [0.0, 0.2, 0.2, 0.2])
    filled = rows([0.0, 0.5, 0.3, 0.2], [0.0, 0.2, 0.6, 0.2])
    mask = hole([0, 1, 1, 0], [0, 0, 0, 0])
    # left: jump .5, truth .2: .3; right: -.1, truth 0: .1; below: -.3 and .3, truth 0: .3 and .3; inside: no pair
    assert seam_error(filled, image, mask).tolist() == pytest.approx([(0.3 + 0.1 + 0.3 + 0.3) / 4])


def test_channels_count_alike_and_signs_do_not_cancel() -> None:
    image = torch.zeros(1, 3, 1, 2)
    filled = image.clone()
    filled[0, :, 0, 1] = torch.tensor([0.6, 0.0, 0.0])
    assert seam_error(filled, image, hole([0, 1])).item() == pytest.approx(0.2)
    image[0, :, 0, 1] = torch.tensor([0.0, 0.3, 0.0])
    assert seam_error(filled, image, hole([0, 1])).item() == pytest.approx(0.3)


def test_an_even_shift_of_everything_is_no_seam_and_truth_is_none() -> None:
    image, mask = pictures() * 0.5, torch.zeros(2, 1, 16, 16)
    mask[..., 4:9, 3:12] = 1
    assert seam_error(image, image, mask).tolist() == [0, 0]
    assert seam_error(image + 0.25, image, mask).tolist() == pytest.approx([0, 0], abs=1e-7)
    joined = composite(image + 0.25, image, mask)
    assert seam_error(joined, image, mask).tolist() == pytest.approx([0.25, 0.25], abs=1e-6)


def test_the_worst_composite_is_one() -> None:
    image, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    assert seam_error(composite(1 - image, image, mask), image, mask).item() == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_border_is_nan(value: float) -> None:
    assert math.isnan(seam_error(pictures(1), pictures(1), torch.full((1, 1, 16, 16), value)).item())


def test_each_image_has_its_own() -> None:
    image, mask = pictures(3), (torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    filled = image.flip(0)
    for measure in (seam_error, masked_ssim):
        alone = [measure(filled[n : n + 1], image[n : n + 1], mask[n : n + 1]) for n in range(3)]
        assert torch.allclose(measure(filled, image, mask), torch.cat(alone), atol=1e-6)


def test_ssim_of_the_whole_picture_is_torchmetrics() -> None:
    first, second = pictures(), pictures().flip(0)
    expected = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    assert isinstance(expected, Tensor)
    assert torch.allclose(masked_ssim(first, second, torch.ones(2, 1, 16, 16)).float(), expected, atol=1e-6)


def test_ssim_looks_inside_the_mask() -> None:
    image, mask = pictures(1, 48), torch.zeros(1, 1, 48, 48)
    mask[..., :16] = 1
    far = image.clone()
    far[..., 32:] = 0  # further away than half a window
    assert masked_ssim(far, image, mask).item() == pytest.approx(1)
    assert masked_ssim(far, image, 1 - mask).item() < 0.7
    assert math.isnan(masked_ssim(far, image, 0 * mask).item())


def test_pictures_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="SSIM expects pictures of at least 6 x 6 pixels, got 5 x 5"):
        masked_ssim(pictures(1, 5), pictures(1, 5), torch.ones(1, 1, 5, 5))


def test_psnr_by_hand() -> None:
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


def test_the_psnr_of_a_perfect_image_is_finite() -> None:
    metric = MaskedPSNR()
    metric.update(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1))
    assert metric.compute() == 100
