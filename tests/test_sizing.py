"""Images and masks at the VAE's sizes, against diffusers' own image processor and pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from datamodules import MaskOptions, WebDatasetDataModule
from inpaint_module.base_models import StableDiffusionLayout
from inpaint_module.batch import Batch
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.masks import Boxes
from inpaint_module.pixels import padding_mask_crop

PICTURES = VaeImageProcessor(vae_scale_factor=8)
MASKS = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    return tiny.autoencoder(4, 0.18215)


def picture(height: int, width: int) -> Tensor:
    """Bytes (3, H, W)."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def soft_mask(height: int, width: int) -> Tensor:
    """Bytes (H, W), as a brush with soft edges paints them: 127 and 128 are in it."""
    rows, columns = torch.arange(height)[:, None] - height / 2, torch.arange(width) - width / 2
    return (255 - 6 * (rows**2 + columns**2).sqrt()).clamp(0, 255).round().to(torch.uint8)


NOISY = torch.randn(1, 4, 8, 5, generator=torch.Generator().manual_seed(2))


def fed(pipeline: Any, image: Tensor, mask: Tensor, **call: Any) -> Tensor:
    """What Stable Diffusion's pipeline feeds its denoiser at 64 x 40 pixels."""
    call |= {"image": as_pil(image), "mask_image": as_pil(mask), "height": 64, "width": 40, "strength": 1.0}
    call |= {"prompt_embeds": torch.zeros(1, 4, tiny.TEXT), "guidance_scale": 1.0, "latents": NOISY}
    return tiny.first_call(pipeline.unet, pipeline=pipeline, **call)["input"]


def as_pil(x: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(x.movedim(0, -1).numpy() if x.ndim == 3 else x.numpy()))


@pytest.mark.parametrize("size", [(67, 45), (64, 40), (71, 40), (64, 47), (8, 15)])
@pytest.mark.parametrize("of_mask", [(67, 45), (33, 90), (64, 40)])
def test_equals_diffusers_image_processor(
    vae: torch.nn.Module, size: tuple[int, int], of_mask: tuple[int, int]
) -> None:
    image, mask = picture(*size), soft_mask(*of_mask)
    height, width = (side // 8 * 8 for side in size)
    expected = PICTURES.preprocess(as_pil(image), height, width) / 2 + 0.5
    hole = MASKS.preprocess(as_pil(mask), height, width)
    filled = InpaintEncoder(vae, 0, sizing="diffusers").fill_hole(image[None], mask / 255)
    torch.testing.assert_close(filled.image, expected, rtol=0, atol=1e-6)
    assert torch.equal(filled.noise_mask, hole)
    torch.testing.assert_close(filled.masked_image, torch.where(hole > 0.5, 0.5, expected), rtol=0, atol=1e-6)


def test_input_of_the_denoiser_is_the_pipelines(vae: torch.nn.Module) -> None:
    """Odd sides, a mask of another size with soft edges: what the denoiser is fed is the pipeline's own."""
    pipeline, layout = tiny.stable_diffusion(), StableDiffusionLayout()
    image, mask = picture(67, 45), soft_mask(90, 33)
    encoder = InpaintEncoder(pipeline.vae, 0, sizing="diffusers", normalize=True)
    ours = layout(NOISY, encoder(image[None], mask / 255))
    theirs = fed(pipeline, image, mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    other = layout(NOISY, InpaintEncoder(pipeline.vae, 0, normalize=True)(image[None], mask / 255))
    assert not torch.allclose(other, theirs, atol=1e-2)


def holes(*boxes: tuple[int, int, int, int]) -> Tensor:
    """bool (B, 1, 64, 40), a box of rows and columns each."""
    masks = torch.zeros(len(boxes), 1, 64, 40, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, boxes, strict=True):
        mask[:, top:bottom, left:right] = True
    return masks


HOLES = {"middle": (20, 40, 10, 18), "corner": (0, 5, 30, 40), "wide": (30, 33, 0, 40), "pixel": (63, 64, 0, 1)}


@pytest.mark.parametrize("box", HOLES.values(), ids=HOLES)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_crop_around_the_hole_is_the_pipelines(padding: int, box: tuple[int, int, int, int]) -> None:
    pipeline, layout, image = tiny.stable_diffusion(), StableDiffusionLayout(), picture(64, 40)
    encoder = InpaintEncoder(pipeline.vae, 0, normalize=True)
    batch = padding_mask_crop({"image": image[None], "mask": holes(box), "position": torch.zeros(1)}, padding)
    mask = holes(box)[0, 0].byte() * 255
    theirs = fed(pipeline, image, mask, padding_mask_crop=padding, output_type="pil")
    torch.testing.assert_close(layout(NOISY, encoder(batch["image"], batch["mask"])), theirs, rtol=0, atol=1e-6)
    assert not torch.equal(batch["image"][0], image) or box == HOLES["wide"]


def test_what_a_crop_around_the_hole_says_and_refuses() -> None:
    """The hole of 16 x 10 pixels at (24, 20) is enlarged fourfold; without a hole the image stays whole."""
    batch: Batch = {"image": picture(64, 40).expand(2, -1, -1, -1), "mask": holes((24, 40, 20, 30), (0, 0, 0, 0))}
    sizes = {"original_size": [600, 800], "crop": [3, 4], "target_size": [64, 40]}
    batch |= {name: torch.tensor([size, size]) for name, size in sizes.items()}  # type: ignore[typeddict-item]
    cut = padding_mask_crop(batch, 0)
    assert cut["crop"].tolist() == [[4 * (3 + 24), 4 * (4 + 20)], [3, 4]]
    assert cut["original_size"].tolist() == [[600, 800]] * 2
    assert cut["target_size"].tolist() == [[64, 40]] * 2
    assert cut["mask"].flatten(1).all(1).tolist() == [True, False]
    assert torch.equal(cut["image"][1], batch["image"][1])
    assert cut.keys() == batch.keys()
    with pytest.raises(ValueError, match="without cached latents"):
        padding_mask_crop({**batch, "latents": torch.zeros(2, 4, 8, 5)}, 0)
    with pytest.raises(ValueError, match="padding_mask_crop: expected 0 or more pixels, got -1"):
        padding_mask_crop(batch, -1)


def test_the_data_module_cuts_around_the_holes() -> None:
    plain, cut = (
        WebDatasetDataModule("embedded:val", batch_size=2, image_size=64, mask_generator=Boxes(), masks=way)
        for way in (MaskOptions(), MaskOptions(padding_mask_crop=4))
    )
    batch, found = (data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0) for data in (plain, cut))
    expected = padding_mask_crop(batch, 4)
    assert all(torch.equal(found[name], expected[name]) for name in ("image", "mask", "crop"))
    assert not torch.equal(found["image"], batch["image"])


def test_one_half() -> None:
    vae, half = tiny.autoencoder(4, 0.18215), torch.full((16, 16), 0.5)
    holes = {way: InpaintEncoder(vae, 0, sizing=way).fill_hole(picture(16, 16)[None], half).noise_mask for way in WAYS}
    assert holes["comfyui"].sum() == 0
    assert holes["diffusers"].sum() == 256
    assert torch.equal(holes["diffusers"], MASKS.preprocess(half[None, None]))


WAYS = ("comfyui", "diffusers")


@pytest.mark.parametrize("of_image", [torch.uint8, torch.float32])
@pytest.mark.parametrize("of_mask", [torch.bool, torch.uint8, torch.float16])
def test_multiples_and_masks_without_grey_are_the_same_either_way(
    vae: torch.nn.Module, of_image: torch.dtype, of_mask: torch.dtype
) -> None:
    image = picture(64, 40)[None] if of_image == torch.uint8 else picture(64, 40)[None] / 255
    mask = (soft_mask(64, 40) > 100).to(of_mask)
    first, second = (InpaintEncoder(vae, sizing=way).fill_hole(image, mask) for way in WAYS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


def test_images_and_masks_alone_come_to_the_same_sizes(vae: torch.nn.Module) -> None:
    encoder, image, mask = InpaintEncoder(vae, 0, sizing="diffusers"), picture(67, 45)[None], soft_mask(67, 45) > 99
    filled = encoder.fill_hole(image, mask)
    assert torch.equal(encoder.crop(image / 255), filled.image)
    assert torch.equal(encoder.crop(mask[None, None]), filled.noise_mask > 0.5)


def test_an_unknown_way_is_refused(vae: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="sizing must be one of comfyui, diffusers; got 'pil'"):
        InpaintEncoder(vae, sizing="pil")
