"""Clean latents made before the training: what the VAE makes of a whole image, so that a step encodes the masked one
alone."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module.batch import LatentsTag
from inpaint_module.encoder import InpaintEncoder, InpaintLatents
from inpaint_module.pixels import centre_crop, to_unit_float


def check_clean(tag: LatentsTag, encoder: InpaintEncoder) -> None:
    """Refuse cached latents that this encoder would not make.

    Raises:
        ValueError: they are another VAE's, or the encoder draws from the posterior.
    """
    _check_posterior(encoder)
    here = encoder.vae.fingerprint().hex()
    if tag.vae_sha256 != here:
        raise ValueError(
            f"the latents in data.train_shards were made by a VAE whose weights have sha256 {tag.vae_sha256[:16]}..., "
            f"but the encoder holds {here[:16]}...; load the same VAE in the same dtype, or make the cache again"
        )


def encode_clean(encoder: InpaintEncoder, images: Tensor) -> Tensor:
    """Whole images, or targets, uint8 (B, 3, H, W), to their unscaled latents, float32 (B, C, h, w): the posterior's
    mode."""
    pixels = centre_crop(to_unit_float(images), encoder.vae.ratio)
    parts = pixels.split(encoder.max_batch or len(pixels))
    return torch.cat([encoder.vae.posterior(part).mean for part in parts])


def encode_beside(encoder: InpaintEncoder, images: Tensor, masks: Tensor, clean: Tensor) -> InpaintLatents:
    """What `encoder(images, masks, target=True)` returns, at half the price.

    Args:
        encoder: with the VAE that made `clean`.
        images: uint8 (B, 3, H, W).
        masks: bool (B, 1, H, W).
        clean: of `encode_clean`, (B, C, h, w), any dtype.

    Raises:
        ValueError: the encoder draws from the posterior, or resizes images where the cached ones were cropped.
    """
    _check_cached(encoder, images)
    latents = encoder(images, masks)
    clean = clean.to(latents.samples)
    return latents._replace(target=encoder.vae.normalize(clean) if encoder.normalize else clean)


def encode_whole(
    encoder: InpaintEncoder,
    images: Tensor,
    masks: Tensor,
    clean: Tensor | None = None,
    generator: Tensor | None = None,
) -> InpaintLatents:
    """Latents of the whole images alone, as `samples` and as `target`, beside the grown mask: of models that never see
    the masked image.

    Args:
        encoder: any.
        images: uint8 (B, 3, H, W); in training of a pair its target.
        masks: bool (B, 1, H, W).
        clean: of `encode_clean`, (B, C, h, w), any dtype; None to encode the images.
        generator: int64 keys (B,), as of the encoder.

    Raises:
        ValueError: as `encode_beside`, with `clean`.
    """
    noise_mask = encoder.fill_hole(images, masks).noise_mask
    if clean is None:
        samples = encoder(images, torch.zeros_like(masks), generator=generator).samples
    else:
        _check_cached(encoder, images)
        samples = clean.to(noise_mask)
        samples = encoder.vae.normalize(samples) if encoder.normalize else samples
    return InpaintLatents(samples, noise_mask, samples)


def _check_cached(encoder: InpaintEncoder, images: Tensor) -> None:
    _check_posterior(encoder)
    if encoder.sizing != "comfyui" and any(side % encoder.vae.ratio for side in images.shape[-2:]):
        raise ValueError(
            f"encoder.sizing: expected comfyui with cached latents of images {images.shape[-2]} x {images.shape[-1]}, "
            f"which were cropped to multiples of {encoder.vae.ratio}; got {encoder.sizing}"
        )


def _check_posterior(encoder: InpaintEncoder) -> None:
    if encoder.posterior != "mode":
        raise ValueError(
            f"encoder.posterior: expected mode with cached latents, which are modes; got {encoder.posterior}"
        )
