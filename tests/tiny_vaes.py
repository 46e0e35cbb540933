"""Tiny random autoencoders of the real diffusers classes, and objects of ComfyUI's duck type, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    VQModel,
)
from torch import nn

MEAN_4, STD_4 = [0.3, -0.2, 0.05, -0.6], [1.5, 0.8, 2.5, 1.1]
MEAN_6, STD_6 = [0.3, -0.2, 0.05, -0.6, 0.1, 0.9], [1.5, 0.8, 2.5, 1.1, 0.4, 3.0]


class Family(NamedTuple):
    """How one family of VAEs is built small, and what is expected of it."""

    build: Callable[[], nn.Module]
    ratio: int
    channels: int
    gaussian: bool = True


def kl(channels: int = 4, blocks: int = 4, kind: type[AutoencoderKL] = AutoencoderKL, **config: Any) -> AutoencoderKL:
    """AutoencoderKL of f = 2**(blocks - 1), or of a class made from it."""
    return kind(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )


def tiny() -> AutoencoderTiny:
    """AutoencoderTiny as TAESD."""
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    return AutoencoderTiny(**widths, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4)


def dc() -> AutoencoderDC:
    """AutoencoderDC as SANA's, residual and linear-attention stages."""
    kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    multiscales = ((),) * 3 + ((5,),) * 3
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=multiscales,
        decoder_qkv_multiscales=multiscales,
        scaling_factor=0.41407,
    )


def dc_of_patches(**config: object) -> AutoencoderDC:
    """AutoencoderDC that can start as principal components of 8 x 8 pixels, seeded."""
    torch.manual_seed(0)
    options: dict[str, object] = {
        "latent_channels": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (12, 12, 48, 192),
        "decoder_block_out_channels": (16, 16, 64, 256),
        "encoder_layers_per_block": (0, 1, 1, 1),
        "decoder_layers_per_block": (0, 1, 1, 1),
        "encoder_qkv_multiscales": ((),) * 4,
        "decoder_qkv_multiscales": ((),) * 4,
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
    }
    return AutoencoderDC(**options | config)


def flux2() -> AutoencoderKLFlux2:
    """AutoencoderKLFlux2 with batch statistics as a trained one has them."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 4)
    return vae


def qwen(**config: Any) -> AutoencoderKLQwenImage:
    """AutoencoderKLQwenImage."""
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return AutoencoderKLQwenImage(**sizes | config, latents_mean=MEAN_4, latents_std=STD_4)


def wan21() -> AutoencoderKLWan:
    """AutoencoderKLWan of Wan 2.1."""
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=MEAN_4, latents_std=STD_4
    )


def wan22(scale_factor_spatial: int | None = 16) -> AutoencoderKLWan:
    """AutoencoderKLWan of Wan 2.2: patches of 2 x 2 pixels go in."""
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=6,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=MEAN_6,
        latents_std=STD_6,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=scale_factor_spatial,
    )


def hunyuan() -> AutoencoderKLHunyuanImage:
    """AutoencoderKLHunyuanImage of HunyuanImage 2.1."""
    return AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(32,) * 6,
        layers_per_block=1,
        spatial_compression_ratio=32,
        sample_size=64,
        scaling_factor=0.75289,
    )


def vq(**config: Any) -> VQModel:
    """VQModel of LDM's f4."""
    return VQModel(
        block_out_channels=(8,) * 3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        num_vq_embeddings=16,
        norm_num_groups=4,
        scaling_factor=0.7,
        **config,
    )


def movq() -> VQModel:
    """VQModel of Kandinsky 2, whose decoder is conditioned on the latents (its norms want 32 channels)."""
    return VQModel(
        block_out_channels=(32,) * 3,
        down_block_types=("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        norm_type="spatial",
    )


def asymmetric() -> AsymmetricAutoencoderKL:
    """AsymmetricAutoencoderKL: a wider decoder, which may also take the masked image."""
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(8,) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(12,) * 4,
        norm_num_groups=4,
    )


FAMILIES: dict[str, Family] = {
    "sd": Family(lambda: kl(force_upcast=False), 8, 4),
    "sdxl": Family(lambda: kl(scaling_factor=0.13025, force_upcast=True), 8, 4),
    "sd3": Family(
        lambda: kl(
            16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        8,
        16,
    ),
    "flux": Family(lambda: kl(16, scaling_factor=0.3611, shift_factor=0.1159), 8, 16),
    "playground": Family(lambda: kl(scaling_factor=0.5, latents_mean=MEAN_4, latents_std=STD_4), 8, 4),
    "taesd": Family(tiny, 8, 4, gaussian=False),
    "dc": Family(dc, 32, 8, gaussian=False),
    "flux2": Family(flux2, 16, 16),
    "qwen": Family(qwen, 8, 4),
    "wan21": Family(wan21, 8, 4),
    "wan22": Family(wan22, 16, 6),
    "hunyuan": Family(hunyuan, 32, 8),
    "vq": Family(vq, 4, 3, gaussian=False),
    "movq": Family(movq, 4, 4, gaussian=False),
    "asymmetric": Family(asymmetric, 8, 4),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The named family's VAE with seeded weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[name].build().eval()
