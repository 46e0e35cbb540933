"""Sizes that a denoiser cannot compute with are refused when a run starts, by the argument that they come from."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from data_fixtures import Halves, in_parts
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel, WanTransformer3DModel
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import tiny_denoiser, tiny_module
from torch import nn

from datamodules import WebDatasetDataModule
from inpaint_module import InpaintEncoder
from inpaint_module.base_models import (
    DenoiserCall,
    DenoiserLayout,
    FluxCall,
    FluxFillLayout,
    ModelParts,
    StableDiffusion3Call,
    StableDiffusion3Layout,
    StableDiffusionLayout,
    check_image_sizes,
    latent_multiple,
)
from inpaint_module.encoder import InpaintLatents
from inpaint_module.inpaint_image import inpaint_image
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = QUIET
TEXT = torch.zeros(1, 3, tiny.TEXT)
TOLD: dict[str, Any] = {"encoder_hidden_states": TEXT, "pooled_projections": TEXT[:, 0]}


def deep_unet() -> nn.Module:
    return tiny_denoiser(
        block_out_channels=(8, 8, 16), down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3
    )


def wan() -> nn.Module:
    return WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, ffn_dim=8, num_layers=1, text_dim=8)


def qwen() -> nn.Module:
    return QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=8, num_attention_heads=2, axes_dims_rope=(4, 2, 2)
    )


CASES: dict[str, tuple[Any, DenoiserLayout, int]] = {
    "UNet2DModel of 2 levels": (tiny_denoiser, StableDiffusionLayout(), 2),
    "UNet2DModel of 3 levels": (deep_unet, StableDiffusionLayout(), 4),
    "UNet2DConditionModel": (lambda: tiny.unet(9), StableDiffusionLayout(), 1),
    "SD3": (lambda: tiny.sd3_transformer(33), StableDiffusion3Layout(), 2),
    "SD3 by another layout": (lambda: tiny.sd3_transformer(33), StableDiffusionLayout(), 2),
    "Flux": (lambda: tiny.flux_transformer(384, 64), FluxFillLayout(), 2),
    "Qwen-Image": (qwen, StableDiffusionLayout(), 2),
    "Wan": (wan, StableDiffusionLayout(), 2),
    "one without a config": (lambda: nn.Conv2d(9, 4, 1), StableDiffusionLayout(), 1),
}


@pytest.mark.parametrize(("make", "layout", "expected"), CASES.values(), ids=CASES)
def test_multiples_by_model(make: Any, layout: DenoiserLayout, expected: int) -> None:
    assert latent_multiple(make(), layout) == expected


@pytest.mark.parametrize(
    ("name", "call", "told"),
    [
        ("UNet2DModel of 3 levels", DenoiserCall(), {}),
        ("UNet2DConditionModel", DenoiserCall(), {"encoder_hidden_states": TEXT}),
        ("SD3 by another layout", StableDiffusion3Call(), TOLD),
        ("Flux", FluxCall(), {**TOLD, "txt_ids": torch.zeros(3, 3)}),
    ],
)
@torch.no_grad()
def test_the_multiples_are_what_the_models_take(name: str, call: DenoiserCall, told: dict[str, Any]) -> None:
    """Of the sizes 5 to 8 x 8 each model computes with those that pass, and with no other."""
    make, layout, _ = CASES[name]
    denoiser, channels = make(), 16 if name in ("SD3 by another layout", "Flux") else 4
    for rows in range(5, 9):
        latents = InpaintLatents(torch.zeros(1, channels, rows, 8), torch.zeros(1, 1, 8 * rows, 64))
        try:
            check_image_sizes(denoiser, layout, 8, {"size": [(8 * rows, 64)]})
            passes = True
        except ValueError:
            passes = False
        try:
            size, timesteps = (rows, 8), torch.zeros(1)
            shape = call(denoiser, layout(latents.samples, latents), timesteps, told, size).shape
        except (ValueError, RuntimeError):
            shape = None
        assert passes == (shape == latents.samples.shape)


def sd3() -> InpaintDiffusion:
    encoder = InpaintEncoder(tiny.sd3_autoencoder(), normalize=True)
    call = StableDiffusion3Call()
    return InpaintDiffusion(
        ModelParts(
            tiny.sd3_transformer(33), encoder, StableDiffusion3Layout(), FlowMatchEulerDiscreteScheduler(), call=call
        )
    )


def data_module(size: Any, **options: Any) -> WebDatasetDataModule:
    settings = {"batch_size": 2, "image_size": size, "mask_generator": Halves(), **options}
    return WebDatasetDataModule("embedded:val", "embedded:val", **in_parts(**settings))


STARTS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("fit", 72, {}, r"data.image_size: expected images .* multiples of 16 pixels, got 72 x 72: SD3Transformer2DModel"),
    ("validate", (64, 72), {}, r"data.image_size: .*, got 64 x 72: .* would be 8 x 9, of 8 pixels each; take multip"),
    (
        "fit",
        64,
        {"bucket_step": 8},
        r"data.order.bucket_step: expected images .* multiples of 16 pixels, got \d+ x \d+: SD3",
    ),
    ("fit", 72, {"bucket_step": 16}, r"data.image_size: .*, got 72 x 72"),  # which validation has
    ("fit", 64, {"mask_generator": None}, "data.mask_generator: expected what paints the masks .*, got null; set one"),
    ("fit", 7, {}, r"data.image_size: .*, got 7 x 7: .* would be 0 x 0"),
    ("fit", (64, 144), {}, r"data.image_size: expected images .* 128 pixels a side, got 64 x 144: SD3.* 8 x 18"),
    (
        "fit",
        112,
        {"bucket_step": 16},
        r"data.order.bucket_step: expected images of at most 128 pixels a side, got \d+ x \d+",
    ),
]


@pytest.mark.parametrize(("verb", "size", "options", "message"), STARTS)
def test_a_run_does_not_start(verb: str, size: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(quiet_trainer(1), verb)(sd3(), datamodule=data_module(size, **options))


def test_sizes_that_the_encoder_crops_to_fitting_ones_are_left_alone() -> None:
    """70 x 70 pixels become 64 x 64; and buckets need no fitting image_size where nothing is validated."""
    sizes = data_module(70).image_sizes("fit")
    check_image_sizes(sd3().denoiser, StableDiffusion3Layout(), 8, sizes)
    assert sizes == {"data.image_size": [(70, 70)]}
    data = data_module(72, bucket_step=16)
    data.val_shards = None
    assert data.image_sizes("fit")["data.image_size"] == []
    assert all(side % 16 == 0 for shape in data.image_sizes("fit")["data.order.bucket_step"] for side in shape)
    assert data.image_sizes("predict") == {"data.image_size": [(72, 72)]}


def test_one_picture_is_padded_to_what_the_denoiser_takes() -> None:
    module = tiny_module(denoiser=deep_unet(), scheduler=DDIMScheduler()).eval()
    image, mask = torch.full((3, 50, 77), 9, dtype=torch.uint8), torch.zeros(1, 50, 77, dtype=torch.bool)
    mask[:, 10:20, 10:30] = True
    result = inpaint_image(module, image, mask, tile=64, overlap=16, multiple=8)
    assert torch.equal(result[:, ~mask[0]], image[:, ~mask[0]])
    with pytest.raises(ValueError, match="tile: expected a multiple of 32 pixels, got 48"):
        inpaint_image(module, image, mask, tile=48, overlap=16, multiple=8)
