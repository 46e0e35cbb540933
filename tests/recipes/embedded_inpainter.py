"""How the small denoiser that ships was made: python -m tests.recipes.embedded_inpainter PHOTOS OUT [MINUTES]

It starts from an earlier one, which filled grey holes, with its last layer set to zero, and learns what is missing in a
smooth fill. Crops of 64 pixels, every eighth batch of 128; masks of five presets and boxes; 19 of 20 samples in pure
noise, as one step is what it is used for; the error counts in the hole, and in each latent channel as much as the
decoder makes of it in pixels. The shipped one had 54 minutes on a share of one busy core, 1,300 steps of 32 crops, and
265 photos: those of CREDITS.csv beside it, none of which is a validation photo or a crop of one. It was made before
this was tidied up, with a smooth fill that was solved less exactly.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inpaint_module.encoder import InpaintLatents
from inpaint_module.masks import Boxes, MaskGenerator, preset
from inpaint_module.randomness import Stream, key
from inpaint_module.trained import load_model
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

PRESETS = ("lama-medium", "lama-thin", "lama-thick", "sd", "outpaint")
LAST, RATE, BATCH, DECAY = 999, 3e-4, 32, 0.997


def crops(photos: Sequence[Image.Image], number: int, side: int, draws: random.Random) -> Tensor:
    """Random squares of random photos, mirrored half the time, of other brightness and tint: (B, 3, side, side)."""
    made = []
    for _ in range(number):
        photo = draws.choice(photos)
        edge = max(min(photo.size) * draws.uniform(0.3, 1) ** 0.5, min(*photo.size, 128))
        left, top = draws.uniform(0, photo.width - edge), draws.uniform(0, photo.height - edge)
        box = (left, top, left + edge, top + edge)
        cut = np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS, box=box))
        made.append(torch.from_numpy(np.array(cut[:, ::-1] if draws.random() < 0.5 else cut)))
    images = torch.stack(made).movedim(-1, 1).float() / 255
    gain = 1 + 0.05 * torch.randn(number, 3, 1, 1) + 0.1 * torch.randn(number, 1, 1, 1)
    return (images * gain).clamp(0, 1)


def holes(generators: Sequence[MaskGenerator], number: int, side: int, draws: random.Random) -> Tensor:
    """Masks of all generators in turn, painted at twice the size: bool (B, 1, side, side)."""
    keys = key(draws.randrange(2**40), torch.arange(number), Stream.MASK)
    parts = [generators[n % len(generators)](keys[n : n + 1], 2 * side, 2 * side) for n in range(number)]
    return F.max_pool2d(torch.cat(parts).float(), 2) > 0


@torch.no_grad()
def channel_weights(module: InpaintDiffusion, images: Tensor) -> Tensor:
    """How much the decoder makes of an error in each latent channel, of mean 1: (1, C, 1, 1)."""
    encoder = module.encoder
    latents = encoder(images, torch.zeros_like(images[:, :1])).samples
    decoded, effects = encoder.decode(latents), []
    for channel in range(latents.shape[1]):
        error = torch.zeros_like(latents)
        error[:, channel] = 0.3 * torch.randn_like(error[:, channel])
        effects.append((encoder.decode(latents + error) - decoded).square().mean() / error.square().mean())
    weights = torch.stack(effects) / torch.stack(effects).mean() + 0.05
    return (weights / weights.mean()).reshape(1, -1, 1, 1)


def loss(module: InpaintDiffusion, images: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """The weighted squared error of the velocity, in the hole."""
    with torch.no_grad():
        latents: InpaintLatents = module.encoder(images, masks, target=True)
        assert latents.target is not None
        clean, noise = latents.target, torch.randn_like(latents.target)
        times = torch.where(torch.rand(len(images)) < 0.95, LAST, torch.randint(0, LAST, (len(images),)))
        share = module.scheduler.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        noisy, velocity = share.sqrt() * clean + (1 - share).sqrt() * noise, share.sqrt() * noise
        velocity -= (1 - share).sqrt() * clean
        cells = module.layout.cells(latents)
        inputs = module.layout(noisy, latents)
        weights = weights * (cells + 0.02) * torch.where(times == LAST, 1, 0.3).reshape(-1, 1, 1, 1)
    size = (noisy.shape[-2], noisy.shape[-1])
    error = (module.call(module.denoiser, inputs, times, {}, size) - velocity).square() * weights
    return error.sum() / (cells.sum() * error.shape[1])


def main(folder: str, out: str, minutes: float = 54) -> None:
    """Train on the photos of a folder, and write the average of the weights."""
    torch.manual_seed(1)
    draws, begin = random.Random(1), time.monotonic()
    photos = [Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("*.jpg"))]
    for photo in photos:
        photo.thumbnail((768, 768), Image.Resampling.LANCZOS)
    module = load_model([], None, None)
    denoiser = module.denoiser.train().requires_grad_(True)
    torch.nn.init.zeros_(denoiser.conv_out.weight)
    torch.nn.init.zeros_(denoiser.conv_out.bias)
    average, generators = copy.deepcopy(denoiser), [*map(preset, PRESETS), Boxes()]
    last, rest = list(denoiser.conv_out.parameters()), set(denoiser.parameters())
    groups = [{"params": list(rest - set(last)), "times": 1}, {"params": last, "times": 3}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.01)
    weights = channel_weights(module, crops(photos, 8, 64, draws))
    step, done = 0, 0.0
    while done < 1:
        side, number = (128, BATCH // 4) if step % 8 == 7 else (64, BATCH)
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * RATE * min(1, (step + 1) / 50) * (0.51 + 0.49 * np.cos(np.pi * done))
        loss(module, crops(photos, number, side, draws), holes(generators, number, side, draws), weights).backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, weight in zip(average.parameters(), denoiser.parameters(), strict=True):
                kept.lerp_(weight, 1 - min(DECAY, (1 + step) / (10 + step)))
        step, done = step + 1, (time.monotonic() - begin) / (60 * minutes)
    average.half().save_pretrained(f"{out}/unet")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
