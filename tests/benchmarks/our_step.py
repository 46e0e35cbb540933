"""This project's training step: its data module, its encoder, its loss."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules import DecoderOptions
from datamodules.cache_latents import cache_latents
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.base_models import ModelParts, StableDiffusionLayout
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.masks import CudaGraphed
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from tests.benchmarks.step_settings import made, quickstart
from tests.benchmarks.training_step import ENCODE, REST, TrainingStep


@cache
def latent_cache(title: str, dtype: str) -> Path:
    """An empty folder, the same one for all turns of a setting and a dtype of its VAE; it goes with the process."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    return Path(_FOLDERS[-1].name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


class OurStep(TrainingStep):
    """`WebDatasetDataModule` and `InpaintDiffusion.loss` with the quickstart's options, called as Lightning does."""

    def assemble(self) -> None:
        """The encoder lays out the VAE and moves it with the module."""
        encoder = InpaintEncoder(self.vae, grow_mask_by=6, normalize=True)
        layout = StableDiffusionLayout(reduce="max")
        self.module = InpaintDiffusion(ModelParts(self.denoiser, encoder, layout, self.setting.scheduler())).to(
            self.place.device
        )
        self.module.compiled = self.compiled  # the very one, so that the models alone run what the step ran
        if self.compiled.mode is not None:
            self.vae.encode = torch.compile(self.vae.encode)
        encoder.register_forward_pre_hook(lambda *_: self.clock.enter(ENCODE))
        encoder.register_forward_hook(lambda *_: self.clock.enter(REST))
        self.data = self.new_data(self.place.workers)
        if self.cached:
            folder = latent_cache(self.setting.title, str(self.vae.dtype))
            if not any(folder.iterdir()):
                cache_latents(self.new_data(0, train_shards="embedded:val"), encoder, folder)
            self.data = self.new_data(self.place.workers, train_shards=str(folder))

    def new_data(self, workers: int, **options: Any) -> WebDatasetDataModule:
        """The quickstart's, in this setting's sizes."""
        sizes = {"image_size": self.setting.image_size, "batch_size": self.setting.batch, "num_workers": workers}
        options = quickstart("data") | sizes | options
        made_options = {name: made(value) for name, value in options.items()}
        made_options["decoder"] = DecoderOptions(**made_options["decoder"])
        if self.compiled.mode is not None:
            made_options["mask_generator"] = CudaGraphed(made_options["mask_generator"])
        return WebDatasetDataModule(**made_options)

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
