"""Train a small autoencoder, such as the one that ships with the package."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from inpaint_module.autoencoder.pca_start import pca_start
from inpaint_module.fingerprints import check_weights
from inpaint_module.metrics.masked import MaskedPSNR
from inpaint_module.pixels import to_unit_float
from inpaint_module.schedules import ScheduledModule


class AutoencoderTraining(ScheduledModule):
    """Reconstruct images: loss = |e| + squared_weight * e^2 + power_weight * z^2, e the error in -1..1, z the latents.

    Training starts from the principal components of patches, adds a little noise to the latents, and at the end of
    `fit` writes the autoencoder as a diffusers folder with float16 weights, its `scaling_factor` set so that latents
    of the validation images have unit variance.

    Args:
        autoencoder: AutoencoderDC as `inpaint_module.autoencoder.pca_start.pca_start` wants it.
        out: folder to write.
        squared_weight: of the squared error, beside the absolute one.
        power_weight: of the latents' mean square, which keeps their scale.
        latent_noise: standard deviation of the noise added to the latents.
        optimizer: the optimizer, given the parameters.
        lr_scheduler: learning rate per step, given the optimizer; null for a constant one.
        stretch_schedule: stretch a schedule that has a length of its own, such as OneCycleLR, to trainer.max_steps;
            false keeps the learning rate of its last step after its end.
    """

    power: Tensor

    def __init__(
        self,
        autoencoder: nn.Module,
        out: str,
        *,
        squared_weight: float = 2.0,
        power_weight: float = 1e-3,
        latent_noise: float = 0.02,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        stretch_schedule: bool = False,
    ):
        super().__init__()
        if not isinstance(autoencoder, AutoencoderDC):
            raise ValueError(f"autoencoder must be a diffusers AutoencoderDC, got {type(autoencoder).__name__}")
        self.autoencoder: Any = autoencoder.to(memory_format=torch.channels_last)  # several times faster on a CPU
        self.optimizer, self.lr_scheduler, self.stretch_schedule = optimizer, lr_scheduler, stretch_schedule
        self.out = out
        self.squared_weight, self.power_weight, self.latent_noise = squared_weight, power_weight, latent_noise
        self.psnr = MaskedPSNR()
        self.register_buffer("power", torch.zeros(2, dtype=torch.float64), persistent=False)

    def on_fit_start(self) -> None:
        """The linear start, from some batches of training images."""
        if self.global_step == 0:
            trainer: Any = self.trainer
            batches = islice(trainer.datamodule.train_dataloader(), 16)
            images = torch.cat([to_unit_float(batch["image"]) * 2 - 1 for batch in batches])
            pca_start(self.autoencoder.cpu(), images)
            self.autoencoder.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another autoencoder."""
        if checkpoint.get("state_dict"):
            check_weights(checkpoint["state_dict"], self.state_dict())

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of a batch whose `image` is uint8 (B, 3, H, W)."""
        images = (to_unit_float(batch["image"]) * 2 - 1).contiguous(memory_format=torch.channels_last)
        latents = self.autoencoder.encode(images).latent
        noisy = latents + self.latent_noise * torch.randn_like(latents)
        error = self.autoencoder.decode(noisy).sample.float() - images
        power = latents.float().square().mean()
        loss = error.abs().mean() + self.squared_weight * error.square().mean() + self.power_weight * power
        self.log_dict({"train/loss": loss, "train/latent_power": power}, prog_bar=True, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the latents' power."""
        self.power.zero_()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """PSNR of the reconstruction, and the latents' power."""
        images, weight = to_unit_float(batch["image"]), batch["position"] >= 0
        latents = self.autoencoder.encode(images * 2 - 1).latent.float()
        decoded = (self.autoencoder.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
        self.power += torch.stack([latents.double().square().mean((1, 2, 3))[weight].sum(), weight.double().sum()])
        self.psnr(decoded, images, torch.ones_like(images[:, :1]), weight)
        self.log("val/psnr", self.psnr, prog_bar=True, batch_size=len(images))
        self.log("val/latent_rms", (self.power[0] / self.power[1]).sqrt(), batch_size=len(images))

    def on_fit_end(self) -> None:
        """Write the diffusers folder."""
        if not self.trainer.is_global_zero or not self.power[1]:
            return
        scale = float((self.power[1] / self.power[0]).sqrt())
        autoencoder = copy.deepcopy(self.autoencoder).half()
        autoencoder.register_to_config(scaling_factor=round(scale, 5))
        autoencoder.save_pretrained(self.out)
        rank_zero_info(f"autoencoder written to {Path(self.out).resolve()}, scaling_factor {scale:.5f}")

    def optimized(self) -> list[Tensor]:
        """The autoencoder's parameters."""
        return list(self.autoencoder.parameters())
