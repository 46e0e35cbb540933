"""What is said of a pipeline that serves otherwise than training was, against that pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import tiny_pipelines as tiny
import tiny_vaes
import torch
from layout_inputs import HEIGHT, WIDTH, holes, images, noise
from tiny_models import tiny_module

from inpaint_module.base_models import FluxFillLayout, StableDiffusionLayout, families
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.report.validation_report import decode_notes


def encoder(vae: torch.nn.Module, **options: object) -> InpaintEncoder:
    return InpaintEncoder(vae, 0, normalize=True, **options)


def test_sd3s_pipeline_decodes_without_the_shift_and_this_is_said() -> None:
    pipeline = tiny.stable_diffusion_3()
    pipeline.set_progress_bar_config(disable=True)
    embeds = torch.randn(2, 4, tiny.TEXT, generator=torch.Generator().manual_seed(3))
    arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": embeds[:, 0], "guidance_scale": 1.0}
    arguments |= {"image": images(), "mask_image": holes(), "height": HEIGHT, "width": WIDTH, "strength": 1.0}

    def made(output_type: str) -> torch.Tensor:
        return pipeline(latents=noise(16), num_inference_steps=1, output_type=output_type, **arguments).images

    ours, latents, config = encoder(pipeline.vae), made("latent"), pipeline.vae.config
    with torch.no_grad():
        theirs = pipeline.vae.decode(latents / config.scaling_factor).sample / 2 + 0.5
        recipe = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample / 2 + 0.5
    torch.testing.assert_close(made("pt"), theirs.clamp(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.decode(latents), recipe.clamp(0, 1), rtol=0, atol=1e-5)
    assert not torch.allclose(theirs, recipe, atol=1e-3)
    said = families.decode_difference(ours, type(pipeline))
    assert said is not None
    assert (
        "StableDiffusion3InpaintPipeline of the installed diffusers decodes without the VAE's shift_factor (0.0609)"
        in said
    )


def test_the_report_says_which_decode_it_shows() -> None:
    base = SimpleNamespace(pipeline="StableDiffusion3InpaintPipeline")
    told = SimpleNamespace(base=base, encoder=encoder(tiny.sd3_autoencoder()))
    (note,) = decode_notes(told)  # type: ignore[arg-type]
    assert note.startswith("These pictures are decoded as the VAE's config says. StableDiffusion3InpaintPipeline of")
    told.encoder = encoder(tiny.autoencoder(16, 1.5305))
    assert decode_notes(told) == []  # type: ignore[arg-type]
    assert decode_notes(tiny_module()) == []


def test_pipelines_that_decode_as_the_vae_says() -> None:
    assert families.decode_difference(encoder(tiny.flux_autoencoder()), diffusers.FluxFillPipeline) is None
    plain = encoder(tiny.autoencoder(4, 0.18215))
    for name in ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"):
        assert families.decode_difference(plain, getattr(diffusers, name)) is None


def test_xls_pipeline_encodes_without_playgrounds_statistics_and_this_is_said() -> None:
    pipeline = tiny.stable_diffusion_xl()
    vae = pipeline.vae
    assert families.scaling_difference(encoder(vae), type(pipeline)) is None
    vae.register_to_config(latents_mean=tiny_vaes.MEAN_4, latents_std=tiny_vaes.STD_4)
    with torch.no_grad():
        theirs = pipeline._encode_vae_image(images() * 2 - 1, None)
    assert not torch.allclose(theirs, encoder(vae)(images(), holes() * 0).samples, atol=1e-2)
    assert "by scaling_factor alone" in (families.scaling_difference(encoder(vae), type(pipeline)) or "")


def test_posterior() -> None:
    said = families.posterior_difference(encoder(tiny_vaes.build("sd")))
    assert said is not None
    assert "trained with the mode of the VAE's posterior" in said
    assert families.posterior_difference(encoder(tiny_vaes.build("sd"), posterior="sample")) is None
    assert families.posterior_difference(encoder(tiny_vaes.dc_of_patches())) is None  # it has no variance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(dtype: torch.dtype) -> None:
    assert f"load the pipeline with torch_dtype={dtype}," in families.dtype_difference(
        encoder(tiny_vaes.build("sd").to(dtype))
    )


def test_masks() -> None:
    vae = tiny_vaes.build("sd")
    assert families.mask_differences(encoder(vae), StableDiffusionLayout()) == []
    assert families.mask_differences(encoder(vae), FluxFillLayout()) == []
    found = families.mask_differences(InpaintEncoder(vae, 6), StableDiffusionLayout("max"))
    assert [each.split(",")[0] for each in found] == [
        "trained with a grown mask (grow_mask_by over 1)",
        "trained with reduce: max",
    ]
