"""Train a small autoencoder, such as the one that ships with the package."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from inpaint_module.encoder import to_unit_float
from inpaint_module.metrics import MaskedPSNR


class AutoencoderTraining(LightningModule):
    """Reconstruct images: loss = |e| + e^2 / 2 + kl_weight * KL, e the error in -1..1.

    At the end of `fit` the autoencoder is written as a diffusers folder with float16 weights, its `scaling_factor` set
    so that latents of the validation images have unit variance.

    Args:
        autoencoder: diffusers AutoencoderKL.
        out: folder to write.
        kl_weight: of the mean KL divergence per latent number.
        optimizer: the optimizer, given the parameters.
        lr_scheduler: learning rate per step, given the optimizer.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        out: str,
        *,
        kl_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__()
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)  # on a CPU several times faster
        self.out, self.kl_weight, self.optimizer, self.lr_scheduler = out, kl_weight, optimizer, lr_scheduler
        self.psnr = MaskedPSNR()
        self.register_buffer("power", torch.zeros(2, dtype=torch.float64), persistent=False)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of a batch whose `image` is uint8 (B, 3, H, W)."""
        images = (to_unit_float(batch["image"]) * 2 - 1).contiguous(memory_format=torch.channels_last)
        posterior = self.autoencoder.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        error = self.autoencoder.decode(latents).sample.float() - images
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = error.abs().mean() + 0.5 * error.square().mean() + self.kl_weight * divergence
        self.log_dict({"train/loss": loss, "train/kl": divergence}, prog_bar=True, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the latents' power."""
        self.power.zero_()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """PSNR of the reconstruction from the posterior mode, and the latents' power."""
        images, weight = to_unit_float(batch["image"]), batch["position"] >= 0
        latents = self.autoencoder.encode(images * 2 - 1).latent_dist.mode().float()
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
        self.autoencoder.register_to_config(scaling_factor=round(scale, 5))
        copy.deepcopy(self.autoencoder).half().save_pretrained(self.out)
        rank_zero_info(f"autoencoder written to {Path(self.out).resolve()}, scaling_factor {scale:.5f}")

    def configure_optimizers(self) -> Any:
        """The optimizer, and the learning rate schedule per step."""
        optimizer = self.optimizer(self.autoencoder.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}
