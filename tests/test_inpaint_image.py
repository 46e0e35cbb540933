"""One picture of any size: pixels outside the mask keep their bits."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from tiny_models import tiny_module

from inpaint_module.base_models import WholeImageLayout
from inpaint_module.inpaint_image import (
    inpaint_image,
    mask_region,
    padded,
    resized,
    seen_by_model,
    shrunk,
    surroundings,
    trained_side,
)
from inpaint_module.pixels import to_unit_float
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

SIZES: dict[str, Any] = {"tile": 64, "overlap": 16, "multiple": 16}


@pytest.fixture(scope="module")
def module() -> InpaintDiffusion:
    module = tiny_module().eval()
    module.sampling_steps = 1
    return module


def picture(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height)
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, height // 3 : height // 2, width // 4 : width // 2] = True
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator), mask


@pytest.mark.parametrize("size", [(64, 64), (65, 37), (200, 130), (1, 300)])
@pytest.mark.parametrize("options", [{}, {"working_side": 48}, {"margin": 3}, {"margin": 1000}])
def test_only_the_hole_changes(module: InpaintDiffusion, size: tuple[int, int], options: dict[str, Any]) -> None:
    image, mask = picture(*size)
    if not mask.any():
        mask[..., 5:9] = True
    before = image.clone()
    result = inpaint_image(module, image, mask, **SIZES, **options)
    assert torch.equal(image, before)
    assert result.dtype == torch.uint8
    assert torch.equal(result[:, ~mask[0]], image[:, ~mask[0]])
    assert not torch.equal(result[:, mask[0]], image[:, mask[0]])
    assert torch.equal(inpaint_image(module, image, mask, **SIZES, **options), result)


def test_the_model_works_at_its_own_scale(module: InpaintDiffusion) -> None:
    side = trained_side(module)
    image, mask = picture(3 * side, 5 * side)
    for hole, sides in ((mask, {side}), (torch.ones_like(mask), {side, 3 * side // 5 // 16 * 16})):
        with mock.patch.object(module, "inpaint", wraps=module.inpaint) as inpaint:
            inpaint_image(module, image, hole, multiple=16)
        shape = inpaint.call_args.args[0]["image"].shape[-2:]
        assert max(shape) == side
        assert set(shape) <= sides | {side * 3 // 5 // 16 * 16 + 16}


def test_surroundings_have_context() -> None:
    mask = torch.zeros(1, 500, 900, dtype=torch.bool)
    mask[0, 200:240, 400:420] = True
    assert surroundings(mask, 128) == (156, 356, 284, 464)  # as much as the model's side has room for
    assert surroundings(mask, 20) == (180, 380, 260, 440)  # half the hole
    assert surroundings(mask, 20, 3) == (197, 397, 243, 423)
    assert surroundings(mask & False, 20) is None


def test_shrinking_sees_nothing_of_the_hole() -> None:
    pixels, hole = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 1, 8, 8)
    pixels[..., 3:5], hole[..., 3:5] = 1, 1
    small, small_hole = shrunk(pixels, hole, (4, 4))
    assert torch.allclose(small[:, :, :, [0, 3]], torch.tensor(0.5))
    assert small_hole[0, 0, 0].tolist() == [0, 1, 1, 0]
    assert torch.equal(shrunk(pixels, hole, (8, 8))[0], pixels)


def test_hidden_pixels_do_not_matter(module: InpaintDiffusion) -> None:
    image, mask = picture(70, 90)
    other = torch.where(mask, 255 - image, image)
    assert torch.equal(inpaint_image(module, image, mask, **SIZES), inpaint_image(module, other, mask, **SIZES))


def test_a_model_that_is_shown_the_whole_image_sees_the_hole_at_any_scale(module: InpaintDiffusion) -> None:
    """At half its size each pixel is about the mean of four, in the hole too."""
    image, mask = picture(128, 128)
    shown = seen_by_model(module, image, mask, 64, margin=128)
    with mock.patch.object(module, "layout", WholeImageLayout()):
        whole = seen_by_model(module, image, mask, 64, margin=128)
    assert shown is not None
    assert whole is not None
    assert torch.equal(whole.mask, shown.mask)
    assert torch.equal(whole.image, resized(to_unit_float(image[None]), (64, 64)))
    assert not torch.allclose(whole.image, shown.image, atol=0.1)


def test_an_empty_mask_changes_nothing(module: InpaintDiffusion) -> None:
    image, mask = picture(40, 40)
    result = inpaint_image(module, image, torch.zeros_like(mask), **SIZES)
    assert torch.equal(result, image)
    assert result.data_ptr() != image.data_ptr()


def test_region() -> None:
    mask = torch.zeros(1, 10, 20, dtype=torch.bool)
    assert mask_region(mask, 2) is None
    mask[0, 4, 7] = mask[0, 5, 18] = True
    assert mask_region(mask, 0) == (4, 7, 6, 19)
    assert mask_region(mask, 3) == (1, 4, 9, 20)


def test_padding_repeats_the_edge() -> None:
    image = torch.arange(1.0, 7).reshape(1, 1, 2, 3)
    rows = [[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]
    assert padded(image, 4)[0, 0].tolist() == rows
    assert torch.equal(padded(image[..., :2], 2), image[..., :2])


def test_the_model_sees_the_edge_repeated(module: InpaintDiffusion) -> None:
    """Also around the mask: a hole that touches the edge goes on beyond it."""
    image, mask = torch.full((3, 20, 20), 200, dtype=torch.uint8), torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[..., 15:] = True
    with mock.patch.object(module, "inpaint", wraps=module.inpaint) as inpaint:
        inpaint_image(module, image, mask, **SIZES)
    batch = inpaint.call_args.args[0]
    assert batch["image"].shape[-2:] == (32, 32)
    assert (batch["image"] == 200).all()
    assert batch["mask"][..., 15:].all()


def test_refusals(module: InpaintDiffusion) -> None:
    image, mask = picture(40, 40)
    with pytest.raises(ValueError, match=r"image: expected uint8 \(3, H, W\), got torch.float32 \(3, 40, 40\)"):
        inpaint_image(module, image.float(), mask)
    with pytest.raises(ValueError, match=r"mask: expected bool \(1, 40, 40\), got torch.bool \(1, 20, 40\)"):
        inpaint_image(module, image, mask[:, :20])
    with pytest.raises(ValueError, match="tile: expected a multiple of 64 pixels, got 100"):
        inpaint_image(module, image, mask, tile=100)


def test_a_model_that_makes_nan_paints_nothing_black() -> None:
    module = tiny_module().eval()
    torch.nn.init.constant_(module.denoiser.conv_out.bias, torch.nan)
    with pytest.raises(ValueError, match=r"makes NaN of picture 7: .*VAE \(AutoencoderKL \(float32\)\), overflows"):
        inpaint_image(module, *picture(64, 64), **SIZES, position=7)
