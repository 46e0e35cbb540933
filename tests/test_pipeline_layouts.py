"""Layouts against the tensors that diffusers' own pipelines hand their denoisers, and that other people's code makes.

The encoder is made before the pipeline runs: it puts the shared VAE's weights in channels_last, and then both give the
same bits. In another memory format they differ by rounding, about 1e-6.

The pipelines sample the posterior of the masked image, but for Z-Image's, which takes its mode. With posterior="sample"
and the same draws the encoder makes the same; its own draws in training are of keys. The mode, which training takes by
default, is compared through autoencoders whose posterior has no variance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DiffusionPipeline, VQModel
from layout_inputs import HEIGHT, WIDTH, holes, images, noise
from torch import Tensor, nn

from inpaint_module import base_models
from inpaint_module.base_models import Layout, pack, unpack
from inpaint_module.encoder import InpaintEncoder, InpaintLatents

needs_pipelines = pytest.mark.skipif(
    find_spec("transformers") is None, reason="diffusers has no pipelines without transformers"
)
flux_controlnet_warning = pytest.mark.filterwarnings(
    "ignore:.FluxPosEmbed. is deprecated:FutureWarning"  # diffusers' own FluxControlNetModel uses it
)


def text(pooled: bool = False) -> dict[str, Tensor]:
    embeds = torch.randn(2, 4, tiny.TEXT, generator=torch.Generator().manual_seed(3))
    return {"prompt_embeds": embeds, **({"pooled_prompt_embeds": embeds[:, 0]} if pooled else {})}


@pytest.fixture(params=["mode", "sample"])
def posterior(request: pytest.FixtureRequest) -> str:
    """The mode under autoencoders without variance, or a sample under those with it."""
    return request.param


def encoded(vae: nn.Module, layout: Layout, posterior: str = "mode") -> InpaintLatents:
    if posterior == "sample":
        tiny.give_variance(vae)
    encoder = InpaintEncoder(vae, grow_mask_by=0, fill=layout.fill, normalize=True, posterior=posterior)
    layout.check(encoder)
    latents = encoder(images(), holes(), generator=tiny.generator())
    encoder.posterior = "mode"
    assert torch.equal(latents.samples, encoder(images(), holes()).samples) is (posterior == "mode")
    return latents


def inputs(pipeline: DiffusionPipeline, latents: Tensor) -> dict[str, Any]:
    """What most inpaint pipelines are called with."""
    sizes = {"height": HEIGHT, "width": WIDTH, "strength": 1.0}
    pictures = {"image": images(), "mask_image": holes(), "latents": latents, "generator": tiny.generator()}
    return {"pipeline": pipeline, **pictures, **sizes}


def control_inputs(pipeline: DiffusionPipeline, latents: Tensor) -> dict[str, Any]:
    """For the pipelines with a control mask, which take tensors as they are: -1..1, not 0..1."""
    control = {"control_image": images() * 2 - 1, "control_mask": holes()}
    drawn = {"latents": latents, "generator": tiny.generator()}
    return {"pipeline": pipeline, **drawn, "height": HEIGHT, "width": WIDTH, **control}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # shape and dtype too


@needs_pipelines
@pytest.mark.parametrize(
    ("make", "layout", "channels", "denoiser", "argument"),
    [
        (tiny.stable_diffusion, base_models.StableDiffusionLayout(), 4, "unet", "input"),
        (tiny.stable_diffusion_xl, base_models.StableDiffusionLayout(), 4, "unet", "input"),
        (tiny.stable_diffusion_3, base_models.StableDiffusion3Layout(), 16, "transformer", "hidden_states"),
    ],
)
def test_stable_diffusion_input_is_the_pipelines(
    make: Callable[[], DiffusionPipeline], layout: Layout, channels: int, denoiser: str, argument: str, posterior: str
) -> None:
    pipeline = make()
    ours = layout(noise(channels), encoded(pipeline.vae, layout, posterior))
    prompt = text(pooled=make is not tiny.stable_diffusion)
    latents = inputs(pipeline, noise(channels))
    call = tiny.first_call(getattr(pipeline, denoiser), **latents, **prompt, guidance_scale=1.0)
    assert_same(ours, call[argument])


@needs_pipelines
def test_a_pipeline_in_bfloat16_encodes_as_a_vae_in_bfloat16_does() -> None:
    """Its denoiser, which computes in bfloat16, is fed the same bits; by a VAE in float32 it is not."""
    pipeline, layout = tiny.stable_diffusion(), base_models.StableDiffusionLayout()
    exact = encoded(copy.deepcopy(pipeline.vae), layout)
    for part in (pipeline.vae, pipeline.unet):
        nn.Module.to(part, torch.bfloat16)  # diffusers' own `to` warns of every cast
    ours = layout(noise(4).bfloat16(), encoded(pipeline.vae, layout))
    latents, prompt = inputs(pipeline, noise(4).bfloat16()), {"prompt_embeds": text()["prompt_embeds"].bfloat16()}
    fed = tiny.first_call(pipeline.unet, **latents, **prompt, guidance_scale=1.0)["input"]
    assert torch.equal(ours, fed)
    apart = (layout(noise(4).bfloat16(), exact) - fed)[:, 5:].float()
    assert 0 < apart.std() / exact.samples.std() < 0.1


@needs_pipelines
def test_flux_fill_tokens_are_the_pipelines(posterior: str) -> None:
    pipeline, layout = tiny.flux_fill(), base_models.FluxFillLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout, posterior))
    tokens = pipeline._pack_latents(noise(16), 2, 16, HEIGHT // 8, WIDTH // 8)
    call = tiny.first_call(pipeline.transformer, **inputs(pipeline, tokens), **text(pooled=True))
    assert_same(ours, call["hidden_states"])


@needs_pipelines
def test_stable_diffusion_3_controlnet_condition_is_the_pipelines(posterior: str) -> None:
    pipeline, layout = tiny.stable_diffusion_3_controlnet(), base_models.StableDiffusion3ControlNetLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout, posterior))
    prompt = text(pooled=True)
    call = tiny.first_call(pipeline.controlnet, **control_inputs(pipeline, noise(16)), **prompt, guidance_scale=1.0)
    assert torch.equal(call["hidden_states"], noise(16))
    assert_same(ours, call["controlnet_cond"])


@needs_pipelines
def test_qwen_image_controlnet_condition_is_the_pipelines(posterior: str) -> None:
    pipeline, layout = tiny.qwen_image_controlnet(), base_models.QwenImageControlNetLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout, posterior))
    tokens = pipeline._pack_latents(noise(16), 2, 16, HEIGHT // 8, WIDTH // 8)
    known = torch.ones(2, 4, dtype=torch.int64)
    arguments = {**control_inputs(pipeline, tokens), **text(), "prompt_embeds_mask": known}
    call = tiny.first_call(pipeline.controlnet, **arguments)
    assert torch.equal(call["hidden_states"], pack(noise(16)))
    assert_same(ours, call["controlnet_cond"])


@needs_pipelines
@flux_controlnet_warning
def test_flux_controlnet_condition_is_the_pipelines(posterior: str) -> None:
    pipeline, layout = tiny.flux_controlnet(), base_models.FluxControlNetLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout, posterior))
    arguments = {**inputs(pipeline, noise(16)), **text(pooled=True)}
    grey_hole = torch.where(holes() > 0.5, 0.0, images() * 2 - 1)
    call = tiny.first_call(pipeline.controlnet, **arguments, control_image=grey_hole)
    assert torch.equal(call["hidden_states"], pack(noise(16)))
    assert_same(ours, call["controlnet_cond"])


@needs_pipelines
@flux_controlnet_warning
def test_flux_controlnet_pipeline_keeps_its_mask_for_callbacks() -> None:
    pipeline, layout = tiny.flux_controlnet(), base_models.FluxControlNetLayout()
    latents, seen = encoded(pipeline.vae, layout), {}

    def keep(_: object, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.update(tensors)
        raise tiny.Captured

    arguments = {**inputs(pipeline, noise(16)), **text(pooled=True), "control_image": images() * 2 - 1}
    wanted = ["mask", "masked_image_latents"]
    with pytest.raises(tiny.Captured):
        pipeline_call(**arguments, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=wanted)
    assert_same(pack(layout.cells(latents).expand(-1, 16, -1, -1)), seen["mask"])
    assert_same(pack(latents.samples), seen["masked_image_latents"])


def pipeline_call(pipeline: DiffusionPipeline, **arguments: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    pipeline(num_inference_steps=1, output_type="latent", **arguments)


@needs_pipelines
@pytest.mark.parametrize("variance", [False, True])
def test_z_image_controlnet_condition_is_the_pipelines(variance: bool) -> None:
    pipeline, layout = tiny.z_image_controlnet(), base_models.ZImageControlNetLayout()
    if variance:  # its pipeline takes the mode
        tiny.give_variance(pipeline.vae)
    pose = images().flip(-1)
    hint = InpaintEncoder(pipeline.vae, normalize=True)(pose, torch.zeros(HEIGHT, WIDTH)).samples
    ours = layout(noise(16), encoded(pipeline.vae, layout), hint)
    arguments = inputs(pipeline, noise(16)) | {"image": images() * 2 - 1, "control_image": pose * 2 - 1}
    del arguments["strength"]
    prompt = {"prompt_embeds": list(text()["prompt_embeds"]), "guidance_scale": 0.0}
    call = tiny.first_call(pipeline.controlnet, **arguments, **prompt)
    assert torch.equal(torch.stack(call["input"]), noise(16).unsqueeze(2))
    assert_same(ours, call["positional"][3])


@needs_pipelines
def test_packing_is_the_pipelines() -> None:
    tokens = pack(noise(16))
    assert torch.equal(tokens, tiny.FluxFillPipeline._pack_latents(noise(16), 2, 16, HEIGHT // 8, WIDTH // 8))
    assert torch.equal(unpack(tokens, HEIGHT // 8, WIDTH // 8), noise(16))
    assert torch.equal(tiny.FluxFillPipeline._unpack_latents(tokens, HEIGHT, WIDTH, 8), noise(16))


def test_latent_diffusion_as_its_script_makes_it() -> None:
    """CompVis/latent-diffusion scripts/inpaint.py, `make_batch` and the lines after it; a VQ model of ratio 4."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8,) * 3, "latent_channels": 3, "num_vq_embeddings": 8, "norm_num_groups": 4}
    vae, layout = VQModel(**blocks, **sizes, scaling_factor=1.0), base_models.LatentDiffusionLayout()
    noisy = torch.randn(2, 3, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(2))
    ours = layout(noisy, encoded(vae, layout))
    masked_image = (1 - holes()) * images() * 2 - 1
    c = vae.encode(masked_image).latents
    cc = nn.functional.interpolate(holes() * 2 - 1, size=c.shape[-2:])
    assert_same(ours, torch.cat([noisy, c, cc], dim=1).detach())


def test_brushnet_as_its_pipeline_makes_it() -> None:
    """TencentARC/BrushNet: examples/brushnet/test_brushnet.py blackens the hole, pipeline_brushnet.py does the rest."""
    vae, layout = tiny.autoencoder(4, 0.18215), base_models.BrushNetLayout()
    ours = layout(noise(4), encoded(vae, layout))
    image, mask = images() * (1 - holes()) * 2 - 1, (holes() * 2 - 1).expand(-1, 3, -1, -1)
    original_mask = (mask.sum(1)[:, None] < 0).to(image.dtype)
    conditioning = vae.encode(image).latent_dist.sample() * vae.config.scaling_factor
    mask = nn.functional.interpolate(original_mask, size=conditioning.shape[-2:])
    assert_same(ours, torch.cat([conditioning, mask], 1).detach())


def test_powerpaint_as_its_trainer_makes_it() -> None:
    """open-mmlab/PowerPaint, dev branch, train_ppt1_sd15.py."""
    vae, layout = tiny.autoencoder(4, 0.18215), base_models.PowerPaintLayout()
    ours = layout(noise(4), encoded(vae, layout))
    mask_image = (images() * 2 - 1) * (holes() < 0.5) - holes()
    mask_image_latents = vae.encode(mask_image).latent_dist.sample() * vae.config.scaling_factor
    mask = nn.functional.interpolate(holes(), size=mask_image_latents.shape[-2:])
    assert_same(ours, torch.cat([noise(4), mask, mask_image_latents], dim=1).detach())
