"""What is trained in the step benchmark: a VAE, a denoiser and the sizes of a batch, the same for all ways to train."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DModel
from torch import nn

from inpaint_module.weights import local_folder
from tests.benchmarks.sd_sized_vae import SD_CHANNELS, sd_sized_vae

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


class Setting(NamedTuple):
    """One comparison.

    Attributes:
        title: what it is, in a few words.
        load_vae: makes a fresh autoencoder of diffusers, as loaded.
        denoiser: arguments of UNet2DModel.
        image_size: side of a square, pixels.
        batch: images in a step.
        steps: that are timed in one turn.
        vae_channels: argument of `load_vae`, if it is not empty.
    """

    title: str
    load_vae: Callable[..., nn.Module]
    denoiser: dict[str, Any]
    image_size: int
    batch: int
    steps: int
    vae_channels: tuple[int, ...] = ()

    def new_vae(self) -> nn.Module:
        """An autoencoder in float32, in torch's default memory format."""
        return self.load_vae(*([self.vae_channels] if self.vae_channels else []))

    def new_denoiser(self) -> UNet2DModel:
        """The same weights at every call."""
        torch.manual_seed(0)
        return UNet2DModel(**self.denoiser)

    def scheduler(self) -> DDIMScheduler:
        """That of the quickstart."""
        return made(quickstart("model")["base"]["init_args"]["scheduler"])


def quickstart(part: str) -> dict[str, Any]:
    """Arguments of the quickstart's model or data, as they are in the file."""
    return yaml.safe_load(CONFIG.read_text())[part]["init_args"]


def made(value: Any) -> Any:
    """An object of a config's class_path and init_args, and of all such in them; anything else as it is.

    LightningCLI's parser does the same and checks it, in seconds for each time that a row is built.
    """
    if isinstance(value, list):
        return [made(each) for each in value]
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    options = {key: made(each) for key, each in value.get("init_args", {}).items()}
    return getattr(importlib.import_module(module), name)(**options)


def embedded_vae() -> nn.Module:
    """The small autoencoder that ships with the package, by diffusers' own loading."""
    return AutoencoderDC.from_pretrained(local_folder("embedded:vae"), low_cpu_mem_usage=False)


def unet_config(channels: tuple[int, ...], cells: int) -> dict[str, Any]:
    """A UNet2DModel over a VAE of 4 latent channels, attention at its two lowest levels."""
    plain, levels = len(channels) - 2, len(channels)
    return {
        "sample_size": cells,
        "in_channels": 9,
        "out_channels": 4,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D",) * plain + ("AttnDownBlock2D",) * (levels - plain),
        "up_block_types": ("AttnUpBlock2D",) * (levels - plain) + ("UpBlock2D",) * plain,
        "attention_head_dim": 32,
    }


def settings(device: str, *, quick: bool) -> list[Setting]:
    """The quickstart's model, and one with a VAE of Stable Diffusion's sizes; small ones if `quick`."""
    small = quickstart("model")["base"]["init_args"]["denoiser"]["init_args"]["config"]
    titles = ("Quickstart", "Stable Diffusion's VAE sizes")
    if quick:
        large = unet_config((32, 32, 32), 8)
        narrow = (32, 32, 32, 32)
        return [
            Setting(titles[0], embedded_vae, small | {"block_out_channels": (32, 32, 32)}, 64, 2, 1),
            Setting(titles[1], sd_sized_vae, large, 64, 2, 1, narrow),
        ]
    side, batch, steps = (512, 16, 6) if device == "cuda" else (256, 2, 2)
    large = unet_config((128, 256, 384, 512), side // 8)
    return [
        Setting(titles[0], embedded_vae, small, 128, 16, 20 if device == "cuda" else 10),
        Setting(titles[1], sd_sized_vae, large, side, batch, steps, SD_CHANNELS),
    ]
