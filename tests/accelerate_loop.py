"""A training loop of accelerate's, not Lightning's: `train` goes on, to the bit, from the state in its folder."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tiny_models import tiny_denoiser

from datamodules import WebDatasetDataModule
from inpaint_module import InpaintEncoder
from inpaint_module.base_models import StableDiffusionLayout
from inpaint_module.masks import Boxes
from inpaint_module.randomness import Stream, key, normal


def train(folder: Path, steps: int, vae: Any) -> list[float]:
    """The losses of the steps to `steps`, by flow matching at one half of the way; the state is left in the folder."""
    accelerator, encoder, layout = Accelerator(cpu=True), InpaintEncoder(vae, normalize=True), StableDiffusionLayout()
    model = torch.nn.ModuleDict({"denoiser": tiny_denoiser(), "encoder": encoder})  # the VAE is in no state of it
    data = WebDatasetDataModule("embedded:train", batch_size=2, image_size=32, mask_generator=Boxes())
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model["denoiser"].parameters()))
    accelerator.register_for_checkpointing(data)  # its state is the position in the stream
    if folder.exists():
        accelerator.load_state(str(folder))
    losses = []
    for batch in islice(data.train_dataloader(), steps - data.position() // 2):
        batch = data.on_after_batch_transfer(batch, 0)  # paints the masks
        latents = encoder(batch["image"], batch["mask"], target=True)
        noise = normal(key(0, batch["position"], Stream.NOISE), latents.target.shape[1:])
        prediction = model["denoiser"](layout((latents.target + noise) / 2, latents), 500).sample
        loss = (prediction - (noise - latents.target)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        data.advance(2)
    accelerator.save_state(str(folder))
    return losses
