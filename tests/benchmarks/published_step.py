"""The training step of published inpainting examples: float photos, masks drawn one by one, two VAE passes.

Written for the benchmark after the ways of diffusers' inpainting and text-to-image examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision import transforms

from datamodules.shards.shard_specs import open_shards
from tests.benchmarks.training_step import ENCODE, PREPARE, REST, TrainingStep


def draw_mask(side: int) -> Image.Image:
    """A white box or ellipse of random size and place on black, of `side` x `side` pixels."""
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    width, height = (random.randint(side // 8, side // 2) for _ in range(2))
    left, top = random.randint(0, side - width), random.randint(0, side - height)
    shape = random.choice([draw.rectangle, draw.ellipse])
    shape((left, top, left + width, top + height), fill=255)
    return mask


def prepare_sample(image: Tensor) -> dict[str, Tensor]:
    """A photo (3, H, W) in -1..1 with a mask (1, H, W) of 0 and 1, and what the mask leaves of it."""
    mask = np.asarray(draw_mask(image.shape[-1]), dtype=np.float32)[None] / 255
    mask = torch.from_numpy((mask >= 0.5).astype(np.float32))
    return {"pixel_values": image, "masks": mask, "masked_images": image * (mask < 0.5)}


def collate(photos: list[tuple[Tensor]]) -> dict[str, Tensor]:
    """Stack what `prepare_sample` makes of each photo."""
    samples = [prepare_sample(image) for (image,) in photos]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class PublishedStep(TrainingStep):
    """Batches of PIL photos by webdataset's own recipe, the VAE as it is loaded, scheduler and loss by hand."""

    def assemble(self) -> None:
        """No more than moving the VAE."""
        self.vae.to(self.place.device)
        self.scheduler = self.setting.scheduler()

    def batches(self) -> Iterator[dict[str, Any]]:
        """Normalised float32 photos, masks and masked photos, all made by the workers."""
        side = self.setting.image_size
        transform = transforms.Compose(
            [
                transforms.Resize(side, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.RandomCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )
        shards = [shard.path for shard in open_shards("embedded:train").shards]
        photos = wds.WebDataset(shards, shardshuffle=False, resampled=True).decode("pil")
        photos = photos.to_tuple("jpg;jpeg;png;webp").map_tuple(transform)
        options = {"batch_size": self.setting.batch, "num_workers": self.place.workers}
        return iter(wds.WebLoader(photos, collate_fn=collate, **options))

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """To the device."""
        return {name: value.to(self.place.device) for name, value in batch.items()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents, of a draw from the posterior where the VAE has one."""
        encoded = self.vae.encode(images.to(self.vae.dtype))
        latents = encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latent
        return (latents * self.vae.config.scaling_factor).float()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Two passes of the VAE, then the scheduler's v-prediction."""
        self.clock.enter(ENCODE)
        latents, masked = self.encode(batch["pixel_values"]), self.encode(batch["masked_images"])
        self.clock.enter(PREPARE)
        cells = F.interpolate(batch["masks"], size=latents.shape[-2:])
        self.clock.enter(REST)
        noise, steps = torch.randn_like(latents), self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        inputs = torch.cat([noisy, cells, masked], dim=1)
        with self.autocast(), self.compiled.within(self.denoiser):
            prediction = self.denoiser(inputs, timesteps).sample
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        return F.mse_loss(prediction.float(), target)
