"""A training loop of accelerate's, not Lightning's: `train` goes on, to the bit, from the state in its folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tiny_models import tiny_denoiser
from torch import Tensor, nn

from datamodules import WebDatasetDataModule
from inpaint_module import InpaintEncoder
from inpaint_module.layouts import StableDiffusionLayout
from inpaint_module.masks import Boxes
from inpaint_module.randomness import Stream, key, normal


class Inpainter(nn.Module):
    """A batch to its loss: flow matching, at one half of the way."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.denoiser, self.encoder = tiny_denoiser(), InpaintEncoder(vae, normalize=True)

    def forward(self, batch: Any) -> Tensor:
        latents = self.encoder(batch["image"], batch["mask"], target=True)
        noise = normal(key(0, batch["position"], Stream.NOISE), latents.target.shape[1:])
        inputs = StableDiffusionLayout()((latents.target + noise) / 2, latents)
        return (self.denoiser(inputs, 500).sample - (noise - latents.target)).square().mean()


def train(folder: Path, steps: int, vae: Any) -> list[float]:
    """The losses of the steps to `steps`; the state is left in the folder."""
    accelerator, model = Accelerator(cpu=True), Inpainter(vae)
    data = WebDatasetDataModule("embedded:train", batch_size=2, image_size=32, mask_generator=Boxes())
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.denoiser.parameters()))
    accelerator.register_for_checkpointing(place := Place(data))
    if folder.exists():
        accelerator.load_state(str(folder))
    losses = []
    for batch in islice(data.train_dataloader(), steps - place.position // 2):
        loss = model(data.on_after_batch_transfer(batch, 0))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        place.position += 2
    accelerator.save_state(str(folder))
    return losses


class Place:
    """Where the stream goes on: the data module's own state, at this loop's position."""

    def __init__(self, data: WebDatasetDataModule) -> None:
        self.data, self.position = data, 0

    def state_dict(self) -> dict[str, Any]:
        return {**self.data.state_dict(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state)
        self.position = state["position"]
