"""Layouts against the tensors that diffusers' own pipelines hand their denoisers, and against hand-worked values.

The encoder is made before the pipeline runs: it puts the shared VAE's weights in channels_last, and then both give the
same bits. In another memory format they differ by rounding, about 1e-6.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DiffusionPipeline, VQModel
from torch import Tensor, nn

from inpaint_module import layouts
from inpaint_module.encoder import InpaintEncoder, InpaintLatents
from inpaint_module.layouts import Layout, pack, unpack

HEIGHT, WIDTH = 32, 48
DENOISER_LAYOUTS = {
    layouts.StableDiffusionLayout: 9,
    layouts.PowerPaintLayout: 9,
    layouts.LatentDiffusionLayout: 7,
    layouts.StableDiffusion3Layout: 33,
    layouts.FluxFillLayout: 384,
}
CONTROL_LAYOUTS = {
    layouts.BrushNetLayout: 5,
    layouts.StableDiffusion3ControlNetLayout: 17,
    layouts.ZImageControlNetLayout: 33,
    layouts.FluxControlNetLayout: 64,
    layouts.FluxInpaintControlNetLayout: 68,
    layouts.QwenImageControlNetLayout: 68,
}
LATENT_CHANNELS = {9: 4, 7: 3, 5: 4}  # of the others 16
BLACK = (
    layouts.PowerPaintLayout,
    layouts.LatentDiffusionLayout,
    layouts.BrushNetLayout,
    layouts.StableDiffusion3ControlNetLayout,
    layouts.QwenImageControlNetLayout,
    layouts.FluxInpaintControlNetLayout,
)
needs_pipelines = pytest.mark.skipif(
    find_spec("transformers") is None, reason="diffusers has no pipelines without transformers"
)
flux_controlnet_warning = pytest.mark.filterwarnings(
    "ignore:.FluxPosEmbed. is deprecated:FutureWarning"  # diffusers' own FluxControlNetModel uses it
)


def images() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def holes() -> Tensor:
    """Two masks, of which nearest, max and space-to-depth each make something else."""
    mask = torch.zeros(2, 1, HEIGHT, WIDTH)
    mask[0, :, 5:19, 11:30] = mask[1, :, 0:9, 20:48] = mask[1, :, 26:28, 3:5] = 1
    return mask


def noise(channels: int) -> Tensor:
    return torch.randn(2, channels, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(2))


def text(pooled: bool = False) -> dict[str, Tensor]:
    embeds = torch.randn(2, 4, tiny.TEXT, generator=torch.Generator().manual_seed(3))
    return {"prompt_embeds": embeds, **({"pooled_prompt_embeds": embeds[:, 0]} if pooled else {})}


def encoded(vae: nn.Module, layout: Layout) -> InpaintLatents:
    encoder = InpaintEncoder(vae, grow_mask_by=0, fill=layout.fill, normalize=True)
    layout.check(encoder)
    return encoder(images(), holes())


def inputs(pipeline: DiffusionPipeline, latents: Tensor) -> dict[str, Any]:
    """What most inpaint pipelines are called with."""
    sizes = {"height": HEIGHT, "width": WIDTH, "strength": 1.0}
    return {"pipeline": pipeline, "image": images(), "mask_image": holes(), "latents": latents, **sizes}


def control_inputs(pipeline: DiffusionPipeline, latents: Tensor) -> dict[str, Any]:
    """For the pipelines with a control mask, which take tensors as they are: -1..1, not 0..1."""
    control = {"control_image": images() * 2 - 1, "control_mask": holes()}
    return {"pipeline": pipeline, "latents": latents, "height": HEIGHT, "width": WIDTH, **control}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # shape and dtype too


@needs_pipelines
def test_stable_diffusion_input_is_the_pipelines() -> None:
    pipeline, layout = tiny.stable_diffusion(), layouts.StableDiffusionLayout()
    ours = layout(noise(4), encoded(pipeline.vae, layout))
    call = tiny.first_call(pipeline.unet, **inputs(pipeline, noise(4)), **text(), guidance_scale=1.0)
    assert_same(ours, call["input"])


@needs_pipelines
def test_stable_diffusion_xl_input_is_the_pipelines() -> None:
    pipeline, layout = tiny.stable_diffusion_xl(), layouts.StableDiffusionLayout()
    ours = layout(noise(4), encoded(pipeline.vae, layout))
    call = tiny.first_call(pipeline.unet, **inputs(pipeline, noise(4)), **text(pooled=True), guidance_scale=1.0)
    assert_same(ours, call["input"])


@needs_pipelines
def test_stable_diffusion_3_input_is_the_pipelines() -> None:
    pipeline, layout = tiny.stable_diffusion_3(), layouts.StableDiffusion3Layout()
    ours = layout(noise(16), encoded(pipeline.vae, layout))
    prompt = text(pooled=True)
    call = tiny.first_call(pipeline.transformer, **inputs(pipeline, noise(16)), **prompt, guidance_scale=1.0)
    assert_same(ours, call["hidden_states"])


@needs_pipelines
def test_flux_fill_tokens_are_the_pipelines() -> None:
    pipeline, layout = tiny.flux_fill(), layouts.FluxFillLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout))
    tokens = pipeline._pack_latents(noise(16), 2, 16, HEIGHT // 8, WIDTH // 8)
    call = tiny.first_call(pipeline.transformer, **inputs(pipeline, tokens), **text(pooled=True))
    assert_same(ours, call["hidden_states"])


@needs_pipelines
def test_stable_diffusion_3_controlnet_condition_is_the_pipelines() -> None:
    pipeline, layout = tiny.stable_diffusion_3_controlnet(), layouts.StableDiffusion3ControlNetLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout))
    prompt = text(pooled=True)
    call = tiny.first_call(pipeline.controlnet, **control_inputs(pipeline, noise(16)), **prompt, guidance_scale=1.0)
    assert torch.equal(call["hidden_states"], noise(16))
    assert_same(ours, call["controlnet_cond"])


@needs_pipelines
def test_qwen_image_controlnet_condition_is_the_pipelines() -> None:
    pipeline, layout = tiny.qwen_image_controlnet(), layouts.QwenImageControlNetLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout))
    tokens = pipeline._pack_latents(noise(16), 2, 16, HEIGHT // 8, WIDTH // 8)
    known = torch.ones(2, 4, dtype=torch.int64)
    arguments = {**control_inputs(pipeline, tokens), **text(), "prompt_embeds_mask": known}
    call = tiny.first_call(pipeline.controlnet, **arguments)
    assert torch.equal(call["hidden_states"], pack(noise(16)))
    assert_same(ours, call["controlnet_cond"])


@needs_pipelines
@flux_controlnet_warning
def test_flux_controlnet_condition_is_the_pipelines() -> None:
    pipeline, layout = tiny.flux_controlnet(), layouts.FluxControlNetLayout()
    ours = layout(noise(16), encoded(pipeline.vae, layout))
    arguments = {**inputs(pipeline, noise(16)), **text(pooled=True)}
    grey_hole = torch.where(holes() > 0.5, 0.0, images() * 2 - 1)
    call = tiny.first_call(pipeline.controlnet, **arguments, control_image=grey_hole)
    assert torch.equal(call["hidden_states"], pack(noise(16)))
    assert_same(ours, call["controlnet_cond"])


@needs_pipelines
@flux_controlnet_warning
def test_flux_controlnet_pipeline_keeps_its_mask_for_callbacks() -> None:
    pipeline, layout = tiny.flux_controlnet(), layouts.FluxControlNetLayout()
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
def test_z_image_controlnet_condition_is_the_pipelines() -> None:
    pipeline, layout = tiny.z_image_controlnet(), layouts.ZImageControlNetLayout()
    pose = images().flip(-1)
    hint = InpaintEncoder(pipeline.vae, normalize=True)(pose, torch.zeros(HEIGHT, WIDTH)).samples
    ours = layout(noise(16), encoded(pipeline.vae, layout), hint)
    arguments = inputs(pipeline, noise(16)) | {"image": images() * 2 - 1, "control_image": pose * 2 - 1}
    del arguments["strength"]
    prompt = {"prompt_embeds": list(text()["prompt_embeds"]), "guidance_scale": 0.0}
    call = tiny.first_call(pipeline.controlnet, **arguments, **prompt)
    assert torch.equal(torch.stack(call["input"]), noise(16).unsqueeze(2))
    assert_same(ours, call["positional"][3])


def test_latent_diffusion_as_its_script_makes_it() -> None:
    """CompVis/latent-diffusion scripts/inpaint.py, `make_batch` and the lines after it; a VQ model of ratio 4."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8,) * 3, "latent_channels": 3, "num_vq_embeddings": 8, "norm_num_groups": 4}
    vae, layout = VQModel(**blocks, **sizes, scaling_factor=1.0), layouts.LatentDiffusionLayout()
    noisy = torch.randn(2, 3, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(2))
    ours = layout(noisy, encoded(vae, layout))
    masked_image = (1 - holes()) * images() * 2 - 1
    c = vae.encode(masked_image).latents
    cc = nn.functional.interpolate(holes() * 2 - 1, size=c.shape[-2:])
    assert_same(ours, torch.cat([noisy, c, cc], dim=1).detach())


def test_brushnet_as_its_pipeline_makes_it() -> None:
    """TencentARC/BrushNet: examples/brushnet/test_brushnet.py blackens the hole, pipeline_brushnet.py does the rest."""
    vae, layout = tiny.autoencoder(4, 0.18215), layouts.BrushNetLayout()
    ours = layout(noise(4), encoded(vae, layout))
    image, mask = images() * (1 - holes()) * 2 - 1, (holes() * 2 - 1).expand(-1, 3, -1, -1)
    original_mask = (mask.sum(1)[:, None] < 0).to(image.dtype)
    conditioning = vae.encode(image).latent_dist.sample() * vae.config.scaling_factor
    mask = nn.functional.interpolate(original_mask, size=conditioning.shape[-2:])
    assert_same(ours, torch.cat([conditioning, mask], 1).detach())


def test_powerpaint_as_its_trainer_makes_it() -> None:
    """open-mmlab/PowerPaint, dev branch, train_ppt1_sd15.py."""
    vae, layout = tiny.autoencoder(4, 0.18215), layouts.PowerPaintLayout()
    ours = layout(noise(4), encoded(vae, layout))
    mask_image = (images() * 2 - 1) * (holes() < 0.5) - holes()
    mask_image_latents = vae.encode(mask_image).latent_dist.sample() * vae.config.scaling_factor
    mask = nn.functional.interpolate(holes(), size=mask_image_latents.shape[-2:])
    assert_same(ours, torch.cat([noise(4), mask, mask_image_latents], dim=1).detach())


def hand_made() -> tuple[Tensor, InpaintLatents]:
    """One channel, 2 x 2 cells of 8 x 8; masked are a cell's first pixel, a whole cell and a cell's last pixel."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 0, 8] = mask[..., 8:, :8] = mask[..., 15, 15] = 1
    return torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), InpaintLatents(torch.tensor([[[[5.0, 6.0], [7.0, 8.0]]]]), mask)


def test_channel_orders_by_hand() -> None:
    noisy, masked = [[1, 2], [3, 4]], [[5, 6], [7, 8]]
    hole, keep, signs = [[0, 1], [1, 0]], [[1, 0], [0, 1]], [[-1, 1], [1, -1]]
    assert layouts.StableDiffusionLayout()(*hand_made()).tolist() == [[noisy, hole, masked]]
    assert layouts.StableDiffusionLayout("max")(*hand_made()).tolist() == [[noisy, [[0, 1], [1, 1]], masked]]
    assert layouts.LatentDiffusionLayout()(*hand_made()).tolist() == [[noisy, masked, signs]]
    assert layouts.BrushNetLayout()(*hand_made()).tolist() == [[masked, keep]]
    assert layouts.FluxInpaintControlNetLayout()(*hand_made()).tolist() == [[[5, 6, 7, 8, 1, 0, 0, 1]]]
    assert layouts.ZImageControlNetLayout()(*hand_made()).tolist() == [[[[[0, 0], [0, 0]]], [keep], [masked]]]


def test_flux_fill_keeps_every_mask_pixel() -> None:
    tokens = layouts.FluxFillLayout()(*hand_made())
    mask = tokens[0, 0, 8:].reshape(8, 8, 2, 2)  # row and column in the cell, row and column of the cell
    assert tokens[0, 0, :8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert mask[0, 0].tolist() == [[0, 1], [1, 0]]
    assert mask[7, 7].tolist() == [[0, 0], [1, 1]]
    assert mask.sum() == hand_made()[1].noise_mask.sum()


@pytest.mark.parametrize(("kind", "count"), (DENOISER_LAYOUTS | CONTROL_LAYOUTS).items())
def test_in_channels_and_dtype_are_those_of_the_input(kind: type[Layout], count: int) -> None:
    channels = LATENT_CHANNELS.get(count, 16)
    latents = InpaintLatents(noise(channels), holes()[:1])  # one mask for two images
    made = kind()(noise(channels).bfloat16(), latents)
    assert made.dtype == torch.bfloat16
    assert len(made) == 2
    assert made.shape[2 if made.ndim == 3 else 1] == kind().in_channels(channels) == count


@pytest.mark.parametrize("kind", DENOISER_LAYOUTS)
def test_noisy_latents_come_first(kind: type[Layout]) -> None:
    made = kind()(noise(4), InpaintLatents(noise(4) + 1, holes()))
    if made.ndim == 3:
        made = unpack(made, HEIGHT // 8, WIDTH // 8)
    assert torch.equal(made[:, :4], noise(4))


@needs_pipelines
def test_packing_is_the_pipelines() -> None:
    tokens = pack(noise(16))
    assert torch.equal(tokens, tiny.FluxFillPipeline._pack_latents(noise(16), 2, 16, HEIGHT // 8, WIDTH // 8))
    assert torch.equal(unpack(tokens, HEIGHT // 8, WIDTH // 8), noise(16))
    assert torch.equal(tiny.FluxFillPipeline._unpack_latents(tokens, HEIGHT, WIDTH, 8), noise(16))


def test_packing_by_hand() -> None:
    tokens = pack(torch.arange(16).reshape(1, 2, 2, 4))
    assert tokens.tolist() == [[[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]]
    assert torch.equal(unpack(tokens, 2, 4), torch.arange(16).reshape(1, 2, 2, 4))


def test_odd_latents_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="even number of latent rows and columns, got 3 x 4"):
        pack(torch.zeros(1, 16, 3, 4))


@pytest.mark.parametrize("how", ["median", "space-to-depth"])
def test_unknown_reduction_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match=f"reduce must be one of max, .*nearest-exact; got '{how}'"):
        layouts.StableDiffusionLayout(how)


@pytest.mark.parametrize("kind", DENOISER_LAYOUTS | CONTROL_LAYOUTS)
def test_an_encoder_with_another_fill_is_refused(kind: type[Layout]) -> None:
    right, wrong = (0.0, 0.5) if kind in BLACK else (0.5, 0.0)
    vae = tiny.autoencoder(4, 0.18215)
    kind().check(InpaintEncoder(vae, fill=right, normalize=True))
    with pytest.raises(ValueError, match=f"{kind.__name__} expects .* fill={right}, got fill={wrong}"):
        kind().check(InpaintEncoder(vae, fill=wrong, normalize=True))


def test_an_encoder_with_raw_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"StableDiffusionLayout expects .* normalize=True, got normalize=False"):
        layouts.StableDiffusionLayout().check(InpaintEncoder(tiny.autoencoder(4, 0.18215)))


def test_flux_fill_refuses_another_ratio() -> None:
    vae = tiny.autoencoder(4, 0.18215, blocks=3)
    with pytest.raises(ValueError, match="FluxFillLayout expects a VAE of ratio 8, got ratio 4"):
        layouts.FluxFillLayout().check(InpaintEncoder(vae, normalize=True))
