"""Start a small autoencoder from what is linear in its task: the principal components of 8 x 8 patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor

_CONSTANT = 3.0  # held in the decoder's spare channels, so that its last norm hardly sees the image
_LIFT = 1.25  # added before the decoder's last ReLU and taken off after it, so that all passes


@torch.no_grad()
def pca_start(autoencoder: AutoencoderDC, images: Tensor) -> None:
    """Set the weights so that encoder and decoder are the linear PCA of the images' 8 x 8 patches.

    Convolutions beside lossless shortcuts become zero, and residual blocks silent; all of them can still learn. Each
    latent channel is a component divided by the fourth root of its variance, half way to whitening.

    Args:
        autoencoder: AutoencoderDC of ratio 8 whose encoder is [12, 12, 48, 192] wide and whose decoder is [c, c, 4 c,
            16 c] wide with c > 12, no block at full resolution, and no shortcut at the latents.
        images: float (N, 3, H, W) in -1..1.

    Raises:
        ValueError: other widths.
    """
    config = autoencoder.config
    wide = config.decoder_block_out_channels[0]
    if list(config.encoder_block_out_channels) != [12, 12, 48, 192] or (
        wide <= 12 or list(config.decoder_block_out_channels) != [wide, wide, 4 * wide, 16 * wide]
    ):
        raise ValueError(
            "pca_start needs encoder_block_out_channels [12, 12, 48, 192] and decoder_block_out_channels "
            f"[c, c, 4 c, 16 c] with c > 12; got {list(config.encoder_block_out_channels)} and "
            f"{list(config.decoder_block_out_channels)}"
        )
    mean, variances, components = _patch_components(images, config.latent_channels)
    spread = variances**0.25
    _silence(autoencoder)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    encoder.conv_in.conv.weight[range(3), range(3), 1, 1] = 1
    encoder.conv_out.weight[..., 1, 1] = (components / spread).T
    encoder.conv_out.bias.copy_(-mean @ (components / spread))
    decoder.conv_in.weight[..., 1, 1] = _decoder_features((components * spread).T, wide, 0.0).T
    decoder.conv_in.bias.copy_(_decoder_features(mean[None], wide, _CONSTANT)[0])
    decoder.norm_out.weight.fill_(_CONSTANT * (1 - 12 / wide) ** 0.5)
    decoder.norm_out.bias.fill_(_LIFT)
    decoder.conv_out.conv.weight[range(12), range(12), 1, 1] = 1
    decoder.conv_out.conv.bias.fill_(-_LIFT)


def _patch_components(images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (192,), the `count` greatest variances and their components (192, count), in the encoder's channel order."""
    patches = _fold(images, 3).movedim(1, -1).reshape(-1, 192)
    variances, components = torch.linalg.eigh(torch.cov(patches.T))
    return patches.mean(0), variances[-count:], components[:, -count:]


def _fold(images: Tensor, times: int) -> Tensor:
    for _ in range(times):
        images = F.pixel_unshuffle(images, 2)
    return images


def _silence(autoencoder: AutoencoderDC) -> None:
    """Leave nothing but the shortcuts."""
    for name, parameter in autoencoder.named_parameters():
        if name.endswith("norm.weight") or ".conv.weight" in name or ".conv.bias" in name:
            parameter.zero_()
    autoencoder.encoder.conv_out.weight.zero_()
    autoencoder.decoder.conv_in.weight.zero_()


def _decoder_features(patches: Tensor, wide: int, constant: float) -> Tensor:
    """What the decoder's shortcuts turn into these patches: (n, 192) in the encoder's order to (n, 16 * wide)."""
    half = F.pixel_shuffle(F.pixel_shuffle(patches[..., None, None], 2), 2)  # (n, 12, 4, 4)
    spare = torch.full((len(half), wide - 12, 4, 4), constant)
    return _fold(torch.cat([half, spare], 1), 2)[..., 0, 0]
