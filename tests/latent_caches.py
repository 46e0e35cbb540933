"""Latent caches of the embedded validation photos, for the tests in latent_cache/."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from data_fixtures import Halves, in_parts

from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module import InpaintEncoder, load_vae
from inpaint_module.clean_latents import LatentsTag

CONFIGS = Path(__file__).parents[1] / "configs"
SIDE = 64
COUNT = 16  # photos in embedded:val
SMALL = ["--data.train_shards=embedded:val", f"--data.image_size={SIDE}", "--data.batch_size=4"]
TRAIN = [
    "--trainer.accelerator=cpu",
    "--trainer.limit_train_batches=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--samples=null",
    "--data.batch_size=2",
    "--data.val_batch_size=2",
    f"--data.image_size={SIDE}",
]


def data_module(shards: str | Path | list[str], **options: Any) -> WebDatasetDataModule:
    shards = shards if isinstance(shards, list) else str(shards)
    chosen = {"batch_size": 4, "image_size": SIDE, "mask_generator": Halves(), "min_scale": 0.6} | options
    return WebDatasetDataModule(shards, **in_parts(**chosen))


def batches(data: WebDatasetDataModule, count: int) -> list[dict[str, Any]]:
    """As training gets them."""
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(data.train_dataloader(), count)]


def encoder(**options: Any) -> InpaintEncoder:
    return InpaintEncoder(load_vae(), normalize=True, **options)


def tags(**changes: Any) -> LatentsTag:
    return LatentsTag("ab" * 32, (16, 24), (4, 2, 3), "float32")._replace(**changes)
