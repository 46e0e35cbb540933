"""How the autoencoder of inpaint_module/assets/vae was made, in about a quarter of an hour on a CPU:

python -m tests.recipes.embedded_autoencoder runs/autoencoder

A recipe, not a part of the package: it starts from what is linear in the task, the principal components of 8 x 8
patches, and learns the rest. OUT/vae is the autoencoder, for `inpaint_module.load_vae`.
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from datamodules import WebDatasetDataModule
from inpaint_module.metrics.scores import MaskedPSNR
from inpaint_module.pixels import to_unit_float
from inpaint_module.training.checks import check_weights
from inpaint_module.training.optimization import ScheduledModule

STEPS, RATE = 4000, 5e-4
SHAPE: dict[str, Any] = {  # 2.8 M parameters, 8 x 8 pixels to 16 numbers
    "latent_channels": 16,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [12, 12, 48, 192],
    "decoder_block_out_channels": [16, 16, 64, 256],
    "encoder_layers_per_block": [0, 1, 1, 1],
    "decoder_layers_per_block": [0, 1, 2, 1],
    "encoder_qkv_multiscales": [[]] * 4,
    "decoder_qkv_multiscales": [[]] * 4,
    "encoder_out_shortcut": False,
    "decoder_in_shortcut": False,
}
_CONSTANT = 3.0  # held in the decoder's spare channels, so that its last norm hardly sees the image
_LIFT = 1.25  # added before the decoder's last ReLU and taken off after it, so that all passes


class AutoencoderTraining(ScheduledModule):
    """Reconstruct images: loss = |e| + squared_weight * e^2 + power_weight * z^2, e the error in -1..1, z the latents.

    Training adds a little noise to the latents, and at the end of `fit` writes the autoencoder as a diffusers folder
    with float16 weights, its `scaling_factor` set so that latents of the validation images have unit variance.

    Args:
        autoencoder: AutoencoderDC.
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


@torch.no_grad()
def pca_start(autoencoder: AutoencoderDC, images: Tensor) -> None:
    """Set the weights so that encoder and decoder are the linear PCA of the images' 8 x 8 patches.

    Convolutions beside lossless shortcuts become zero, and residual blocks silent; all of them can still learn. Each
    latent channel is a component divided by the fourth root of its variance, half way to whitening.

    Args:
        autoencoder: AutoencoderDC of ratio 8 whose encoder is [12, 12, 48, 192] wide and whose decoder is [c, c, 4 c,
            16 c] wide with c > 12, no block at full resolution, and no shortcut at the latents.
        images: float (N, 3, H, W) in -1..1.

    Raises:
        ValueError: other widths.
    """
    config = autoencoder.config
    wide = config.decoder_block_out_channels[0]
    if list(config.encoder_block_out_channels) != [12, 12, 48, 192] or (
        wide <= 12 or list(config.decoder_block_out_channels) != [wide, wide, 4 * wide, 16 * wide]
    ):
        raise ValueError(
            "pca_start needs encoder_block_out_channels [12, 12, 48, 192] and decoder_block_out_channels "
            f"[c, c, 4 c, 16 c] with c > 12; got {list(config.encoder_block_out_channels)} and "
            f"{list(config.decoder_block_out_channels)}"
        )
    mean, variances, components = _patch_components(images, config.latent_channels)
    spread = variances**0.25
    _silence(autoencoder)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    encoder.conv_in.conv.weight[range(3), range(3), 1, 1] = 1
    encoder.conv_out.weight[..., 1, 1] = (components / spread).T
    encoder.conv_out.bias.copy_(-mean @ (components / spread))
    decoder.conv_in.weight[..., 1, 1] = _decoder_features((components * spread).T, wide, 0.0).T
    decoder.conv_in.bias.copy_(_decoder_features(mean[None], wide, _CONSTANT)[0])
    decoder.norm_out.weight.fill_(_CONSTANT * (1 - 12 / wide) ** 0.5)
    decoder.norm_out.bias.fill_(_LIFT)
    decoder.conv_out.conv.weight[range(12), range(12), 1, 1] = 1
    decoder.conv_out.conv.bias.fill_(-_LIFT)


def _patch_components(images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (192,), the `count` greatest variances and their components (192, count), in the encoder's channel order."""
    patches = _fold(images, 3).movedim(1, -1).reshape(-1, 192)
    variances, components = torch.linalg.eigh(torch.cov(patches.T))
    return patches.mean(0), variances[-count:], components[:, -count:]


def _fold(images: Tensor, times: int) -> Tensor:
    for _ in range(times):
        images = F.pixel_unshuffle(images, 2)
    return images


def _silence(autoencoder: AutoencoderDC) -> None:
    """Leave nothing but the shortcuts."""
    for name, parameter in autoencoder.named_parameters():
        if name.endswith("norm.weight") or ".conv.weight" in name or ".conv.bias" in name:
            parameter.zero_()
    autoencoder.encoder.conv_out.weight.zero_()
    autoencoder.decoder.conv_in.weight.zero_()


def _decoder_features(patches: Tensor, wide: int, constant: float) -> Tensor:
    """What the decoder's shortcuts turn into these patches: (n, 192) in the encoder's order to (n, 16 * wide)."""
    half = F.pixel_shuffle(F.pixel_shuffle(patches[..., None, None], 2), 2)  # (n, 12, 4, 4)
    spare = torch.full((len(half), wide - 12, 4, 4), constant)
    return _fold(torch.cat([half, spare], 1), 2)[..., 0, 0]


def start(autoencoder: AutoencoderDC, data: WebDatasetDataModule) -> None:
    """The linear start, from sixteen batches of training images."""
    batches = islice(data.train_dataloader(), 16)
    pca_start(autoencoder, torch.cat([to_unit_float(batch["image"]) * 2 - 1 for batch in batches]))


def main(out: str) -> None:
    """Make it."""
    seed_everything(0)
    shards = {"train_shards": "embedded:train", "val_shards": "embedded:val"}
    data = WebDatasetDataModule(**shards, batch_size=8, image_size=128)
    autoencoder = AutoencoderDC(**SHAPE)
    start(autoencoder, data)
    schedule = partial(OneCycleLR, max_lr=RATE, total_steps=STEPS, pct_start=0.05, cycle_momentum=False)
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.01)
    module = AutoencoderTraining(autoencoder, f"{out}/vae", optimizer=optimizer, lr_scheduler=schedule)
    limits: dict[str, Any] = {"limit_train_batches": 250, "val_check_interval": 250, "num_sanity_val_steps": 0}
    limits |= {"gradient_clip_val": 1.0, "use_distributed_sampler": False, "default_root_dir": out}
    Trainer(precision="bf16-mixed", devices=1, max_steps=STEPS, max_epochs=-1, **limits).fit(module, data)


if __name__ == "__main__":
    main(sys.argv[1])
