"""Layouts by hand: channel orders, packing, and the encoders that they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DDIMScheduler
from layout_inputs import HEIGHT, WIDTH, holes, noise
from tiny_models import tiny_denoiser
from torch import Tensor

from inpaint_module import base_models
from inpaint_module.base_models import ControlNetCondition, DenoiserLayout, Layout, ModelParts, pack, unpack
from inpaint_module.encoder import InpaintEncoder, InpaintLatents
from inpaint_module.sampling import inpaint_latents
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

DENOISER_LAYOUTS = {
    base_models.StableDiffusionLayout: 9,
    base_models.SmoothFillLayout: 9,
    base_models.WholeImageLayout: 9,
    base_models.PowerPaintLayout: 9,
    base_models.LatentDiffusionLayout: 7,
    base_models.StableDiffusion3Layout: 33,
    base_models.FluxFillLayout: 384,
}
CONTROL_LAYOUTS = {
    base_models.BrushNetLayout: 5,
    base_models.StableDiffusion3ControlNetLayout: 17,
    base_models.ZImageControlNetLayout: 33,
    base_models.FluxControlNetLayout: 64,
    base_models.FluxInpaintControlNetLayout: 68,
    base_models.QwenImageControlNetLayout: 68,
}
LATENT_CHANNELS = {9: 4, 7: 3, 5: 4}  # of the others 16
BLACK = (
    base_models.PowerPaintLayout,
    base_models.LatentDiffusionLayout,
    base_models.BrushNetLayout,
    base_models.StableDiffusion3ControlNetLayout,
    base_models.QwenImageControlNetLayout,
    base_models.FluxInpaintControlNetLayout,
)


def hand_made() -> tuple[Tensor, InpaintLatents]:
    """One channel, 2 x 2 cells of 8 x 8; masked are a cell's first pixel, a whole cell and a cell's last pixel."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 0, 8] = mask[..., 8:, :8] = mask[..., 15, 15] = 1
    return torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), InpaintLatents(torch.tensor([[[[5.0, 6.0], [7.0, 8.0]]]]), mask)


def test_channel_orders_by_hand() -> None:
    noisy, masked = [[1, 2], [3, 4]], [[5, 6], [7, 8]]
    hole, keep, signs = [[0, 1], [1, 0]], [[1, 0], [0, 1]], [[-1, 1], [1, -1]]
    assert base_models.StableDiffusionLayout()(*hand_made()).tolist() == [[noisy, hole, masked]]
    assert base_models.StableDiffusionLayout("max")(*hand_made()).tolist() == [[noisy, [[0, 1], [1, 1]], masked]]
    assert base_models.LatentDiffusionLayout()(*hand_made()).tolist() == [[noisy, masked, signs]]
    assert base_models.BrushNetLayout()(*hand_made()).tolist() == [[masked, keep]]
    assert base_models.FluxInpaintControlNetLayout()(*hand_made()).tolist() == [[[5, 6, 7, 8, 1, 0, 0, 1]]]
    assert base_models.ZImageControlNetLayout()(*hand_made()).tolist() == [[[[[0, 0], [0, 0]]], [keep], [masked]]]


def test_flux_fill_keeps_every_mask_pixel() -> None:
    tokens = base_models.FluxFillLayout()(*hand_made())
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


@pytest.mark.parametrize("kind", DENOISER_LAYOUTS | CONTROL_LAYOUTS)
def test_a_condition_does_not_know_the_noise_and_a_denoiser_does(kind: type[Layout]) -> None:
    latents = InpaintLatents(noise(4) + 1, holes())
    first, second = (kind()(noisy, latents) for noisy in (noise(4), noise(4).flip(0)))
    assert torch.equal(first, second) == (kind in CONTROL_LAYOUTS)
    wanted = ControlNetCondition if kind in CONTROL_LAYOUTS else DenoiserLayout
    assert [base for base in (DenoiserLayout, ControlNetCondition) if issubclass(kind, base)] == [wanted]


@pytest.mark.parametrize("kind", CONTROL_LAYOUTS)
def test_a_module_is_not_built_with_a_condition(kind: type[Layout]) -> None:
    encoder = InpaintEncoder(tiny.autoencoder(4, 0.18215), fill=kind.fill, normalize=True)
    denoiser = tiny_denoiser(in_channels=kind().in_channels(4))
    message = (
        "layout: expected a DenoiserLayout, such as .*StableDiffusion3Layout or FluxFillLayout, "
        f"got {kind.__name__}, the condition of a ControlNet: .* never sees the noisy latents"
    )
    with pytest.raises(ValueError, match=message):
        InpaintDiffusion(ModelParts(denoiser, encoder, kind(), DDIMScheduler()))
    latents = InpaintLatents(noise(4), holes())
    with pytest.raises(ValueError, match=message):
        inpaint_latents(denoiser, DDIMScheduler(), kind(), latents, noise(4), 1)  # type: ignore[arg-type]


def test_power_paint_is_for_a_loop_of_your_own() -> None:
    layout = base_models.PowerPaintLayout()
    encoder = InpaintEncoder(tiny.autoencoder(4, 0.18215), fill=layout.fill, normalize=True)
    with pytest.raises(ValueError, match="layout: PowerPaintLayout is for a loop of your own"):
        ModelParts(tiny_denoiser(), encoder, layout, DDIMScheduler())


def test_what_is_no_layout_is_not_built_either() -> None:
    encoder: Any = InpaintEncoder(tiny.autoencoder(4, 0.18215), normalize=True)
    with pytest.raises(ValueError, match=r"expected a DenoiserLayout, .* or FluxFillLayout, got str$"):
        InpaintDiffusion(ModelParts(tiny_denoiser(), encoder, "sd", DDIMScheduler()))  # type: ignore[arg-type]


def test_a_denoiser_that_says_nothing_gives_the_smooth_fill() -> None:
    encoder = InpaintEncoder(tiny.autoencoder(4, 0.18215), fill="smooth", normalize=True)
    denoiser = tiny_denoiser()
    torch.nn.init.zeros_(denoiser.conv_out.weight)
    torch.nn.init.zeros_(denoiser.conv_out.bias)
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    layout = base_models.SmoothFillLayout("max")
    latents = encoder(torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32))
    draw = torch.randn_like(latents.samples)
    made = inpaint_latents(denoiser, scheduler, layout, latents, draw, 1, call=base_models.FromFill())
    assert torch.allclose(made, latents.samples, atol=1e-5)


IN_PATCHES = (
    base_models.StableDiffusion3Layout,
    base_models.FluxFillLayout,
    base_models.StableDiffusion3ControlNetLayout,
    base_models.ZImageControlNetLayout,
    base_models.FluxControlNetLayout,
    base_models.FluxInpaintControlNetLayout,
    base_models.QwenImageControlNetLayout,
)


@pytest.mark.parametrize("kind", DENOISER_LAYOUTS | CONTROL_LAYOUTS)
def test_odd_latents_are_refused_where_models_take_patches(kind: type[Layout]) -> None:
    """72 x 64 pixels: 9 rows of latents."""
    latents = InpaintLatents(torch.zeros(1, 4, 9, 8), torch.zeros(1, 1, 72, 64))
    if kind in IN_PATCHES:
        message = f"{kind.__name__} expects latent .* of 2, got 9 x 8; image sides must be multiples of 16 pixels"
        with pytest.raises(ValueError, match=message):
            kind()(latents.samples, latents)
    else:
        assert kind()(latents.samples, latents).shape[-2:] == (9, 8)


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
        base_models.StableDiffusionLayout(how)


@pytest.mark.parametrize("kind", DENOISER_LAYOUTS | CONTROL_LAYOUTS)
def test_an_encoder_with_another_fill_is_refused(kind: type[Layout]) -> None:
    right: Any = kind.fill
    wrong = 0.0 if right == 0.5 else 0.5
    assert right == ("smooth" if kind is base_models.SmoothFillLayout else 0.0 if kind in BLACK else 0.5)
    vae = tiny.autoencoder(4, 0.18215)
    kind().check(InpaintEncoder(vae, fill=right, normalize=True))
    with pytest.raises(ValueError, match=f"{kind.__name__} expects .* fill={right}, got fill={wrong}"):
        kind().check(InpaintEncoder(vae, fill=wrong, normalize=True))


def test_an_encoder_with_raw_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"StableDiffusionLayout expects .* normalize=True, got normalize=False"):
        base_models.StableDiffusionLayout().check(InpaintEncoder(tiny.autoencoder(4, 0.18215)))


def test_flux_fill_refuses_another_ratio() -> None:
    vae = tiny.autoencoder(4, 0.18215, blocks=3)
    with pytest.raises(ValueError, match="FluxFillLayout expects a VAE of ratio 8, got ratio 4"):
        base_models.FluxFillLayout().check(InpaintEncoder(vae, normalize=True))
