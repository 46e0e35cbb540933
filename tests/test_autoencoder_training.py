"""Training the small autoencoder: linear start, a folder at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quiet_trainer import QUIET, quiet_trainer
from recipes.embedded_autoencoder import AutoencoderTraining, start
from tiny_models import tiny_vae
from tiny_vaes import dc_of_patches

from datamodules import WebDatasetDataModule
from inpaint_module.vae import load_vae

pytestmark = QUIET


def test_it_starts_linear_learns_and_writes_a_folder(tmp_path: Path) -> None:
    module = AutoencoderTraining(
        dc_of_patches(), str(tmp_path / "vae"), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5)
    )
    data = WebDatasetDataModule("embedded:train", "embedded:val", batch_size=2, image_size=64, val_batch_size=6)
    start(module.autoencoder, data)
    trainer = quiet_trainer(2, val_check_interval=2, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/psnr"] > 18  # without the start it is about 8
    written = load_vae(str(tmp_path / "vae"))
    assert (written.ratio, written.channels) == (8, 4)
    batch = next(iter(data.val_dataloader()))
    latents = written.normalize(written.posterior(batch["image"] / 255).mean)
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_a_schedule_goes_by_steps() -> None:
    constant = torch.optim.lr_scheduler.ConstantLR
    made = AutoencoderTraining(dc_of_patches(), "out", lr_scheduler=constant).configure_optimizers()
    assert isinstance(made["lr_scheduler"]["scheduler"], constant)
    assert made["lr_scheduler"]["interval"] == "step"


def test_other_autoencoders_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a diffusers AutoencoderDC, got AutoencoderKL"):
        AutoencoderTraining(tiny_vae(), "out")


def test_the_embedded_autoencoder_is_as_good_as_the_readme_says() -> None:
    vae = load_vae("embedded:vae")
    data = WebDatasetDataModule("embedded:train", "embedded:val", batch_size=1, image_size=256, val_batch_size=16)
    images = next(iter(data.val_dataloader()))["image"] / 255
    latents = vae.posterior(images).mean
    error = (vae.decode(latents).clamp(0, 1) - images).square().mean((1, 2, 3))
    assert (-10 * torch.log10(error)).mean() > 28
    assert 0.8 < vae.normalize(latents).std() < 1.25
