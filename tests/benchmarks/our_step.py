"""This project's training step: its data module, its encoder, its loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.layouts import StableDiffusionLayout
from inpaint_module.lightning_module import InpaintDiffusion
from tests.benchmarks.step_settings import made, quickstart
from tests.benchmarks.training_step import ENCODE, REST, TrainingStep


class OurStep(TrainingStep):
    """`WebDatasetDataModule` and `InpaintDiffusion.loss` with the quickstart's options, called as Lightning does."""

    def assemble(self) -> None:
        """The encoder puts the VAE into channels_last and moves it with the module."""
        encoder = InpaintEncoder(self.vae, grow_mask_by=6, normalize=True)
        layout = StableDiffusionLayout(reduce="max")
        self.module = InpaintDiffusion(self.denoiser, encoder, layout, self.setting.scheduler()).to(self.place.device)
        encoder.register_forward_pre_hook(lambda *_: self.clock.enter(ENCODE))
        encoder.register_forward_hook(lambda *_: self.clock.enter(REST))
        sizes = {"image_size": self.setting.image_size, "batch_size": self.setting.batch}
        options = quickstart("data") | {**sizes, "num_workers": self.place.workers}
        self.data = WebDatasetDataModule(**{name: made(value) for name, value in options.items()})

    def batches(self) -> Iterator[dict[str, Any]]:
        """Bytes: uint8 images."""
        return iter(self.data.train_dataloader())

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The three hooks that a trainer calls."""
        batch = self.data.on_before_batch_transfer(batch, 0)
        batch = self.data.transfer_batch_to_device(batch, torch.device(self.place.device), 0)
        return self.data.on_after_batch_transfer(batch, 0)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Under autocast as a whole, as Lightning's bf16-mixed does; the encoder keeps its VAE out of it."""
        with self.autocast():
            return self.module.loss(batch)
