"""InpaintDiffusion: from a batch to a loss."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from inpaint_module.encoder import InpaintEncoder, to_unit_float
from inpaint_module.layouts import Layout
from inpaint_module.metrics import MaskedPSNR
from inpaint_module.morphology import mask_leak, mask_overcover, reduce_mask
from inpaint_module.randomness import Stream, draw, integers, key, normal
from inpaint_module.sampling import InpaintedImages, composite, inpaint_latents, mean_colour_fill
from inpaint_module.surgery import check_input_channels


class InpaintDiffusion(LightningModule):
    """Train a denoiser to inpaint: loss = |denoiser(layout(noisy, latents), t) - what the scheduler predicts|^2.

    Timesteps and noise are functions of (seed, position in the stream) alone, as the masks are.

    Args:
        denoiser: diffusers model that takes (input, timestep).
        encoder: from image and mask to latents; `normalize` should be true.
        layout: what the denoiser eats.
        scheduler: diffusers scheduler, for the noise in training and for sampling in validation.
        optimizer: the optimizer, given the parameters.
        lr_scheduler: learning rate per step, given the optimizer; null for a constant one.
        sampling_steps: denoiser calls per image in validation, test and prediction.
        seed: of noise and timesteps.

    Raises:
        ValueError: the encoder's fill or space is not the layout's, or the denoiser takes other channels than it makes.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        encoder: InpaintEncoder,
        layout: Layout,
        scheduler: SchedulerMixin,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        sampling_steps: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        self.denoiser: Any = denoiser
        self.encoder, self.layout, self.scheduler = encoder, layout, scheduler
        layout.check(encoder)
        check_input_channels(denoiser, layout.in_channels(encoder.vae.channels))
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.sampling_steps, self.seed = sampling_steps, seed
        names = ("inside", "outside", "inside_grey", "inside_mean_colour")
        self.psnr = nn.ModuleDict({name: MaskedPSNR() for name in names})

    def setup(self, stage: str) -> None:
        """Refuse ranks with different VAEs: no strategy broadcasts one that is outside the module tree.

        Raises:
            ValueError: the weights' fingerprints differ, naming the ranks.
        """
        digest = torch.tensor(list(self.encoder.vae.fingerprint()), device=self.trainer.strategy.root_device)
        digests = cast(Tensor, self.all_gather(digest)).reshape(-1, len(digest)).tolist()
        others = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            raise ValueError(
                f"the VAE's weights on rank {', '.join(map(str, others))} are not those on rank 0; load the same VAE "
                "in the same dtype on every rank"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the VAE's fingerprint beside the state dict too, whose extra state FSDP2 does not load."""
        checkpoint["encoder"] = self.encoder.get_extra_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another VAE, whatever the strategy.

        Raises:
            ValueError: the fingerprints differ.
        """
        if "encoder" in checkpoint:
            self.encoder.set_extra_state(checkpoint["encoder"])

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The loss of a batch: `image` uint8 (B, 3, H, W), `mask` bool (B, 1, H, W), `position` int64 (B,)."""
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Encode, add noise, denoise, compare: the mean squared error over the batch, float32 ()."""
        positions = batch["position"]
        posterior_keys = key(self.seed, positions, Stream.POSTERIOR)
        latents = self.encoder(batch["image"], batch["mask"], target=True, generator=posterior_keys)
        noise = normal(key(self.seed, positions, Stream.NOISE), latents.target.shape[1:])
        words = draw(key(self.seed, positions, Stream.TIMESTEP), 1)[:, 0]
        timesteps = integers(words, 0, self.scheduler.config.num_train_timesteps)
        noisy = self.scheduler.add_noise(latents.target, noise, timesteps)
        inputs = self.layout(noisy, latents).to(self.denoiser.dtype)
        prediction = self.denoiser(inputs, timesteps).sample
        return F.mse_loss(prediction.float(), prediction_target(self.scheduler, latents.target, noise, timesteps))

    @torch.no_grad()
    def inpaint(self, batch: dict[str, Any]) -> InpaintedImages:
        """Fill the holes of a batch."""
        keys = key(self.seed, batch["position"], Stream.POSTERIOR)
        latents = self.encoder(batch["image"], batch["mask"], generator=keys)
        noise = normal(key(self.seed, batch["position"], Stream.SAMPLER), latents.samples.shape[1:])
        filled = inpaint_latents(self.denoiser, self.scheduler, self.layout, latents, noise, self.sampling_steps)
        image = self.encoder.crop(to_unit_float(batch["image"]))
        hole = self.encoder.crop(batch["mask"])
        inpainted = self.encoder.decode(filled)
        return InpaintedImages(
            image=image,
            mask=hole,
            noise_mask=latents.noise_mask,
            masked_image=torch.where(hole, self.encoder.fill, image),
            inpainted=inpainted,
            composite=composite(inpainted, image, latents.noise_mask),
        )

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """Inpaint, and log PSNR inside the hole and outside the grown mask, beside that of plain fills."""
        result = self.inpaint(batch)
        weight = batch["position"] >= 0
        kept = 1 - result.noise_mask
        grey = torch.full_like(result.image, 0.5)
        mean_colour = mean_colour_fill(result.image, result.mask)
        self.psnr["inside"](result.inpainted, result.image, result.mask, weight)
        self.psnr["outside"](result.inpainted, result.image, kept, weight)
        self.psnr["inside_grey"](grey, result.image, result.mask, weight)
        self.psnr["inside_mean_colour"](mean_colour, result.image, result.mask, weight)
        stage = "test" if self.trainer.testing else "val"
        for name in self.psnr:
            metric: Any = self.psnr[name]
            shown = name in ("inside", "outside")
            self.log(f"{stage}/psnr_{name}", metric, prog_bar=shown, on_epoch=True, batch_size=len(weight))
        self._log_leak(stage, result.noise_mask)
        return result._asdict()

    def _log_leak(self, stage: str, noise_mask: Tensor) -> None:
        """How much of the mask the latent grid loses, and how much it adds; nothing where every pixel is told."""
        if self.layout.reduce == "space-to-depth":
            return
        cells = reduce_mask(noise_mask, self.encoder.vae.ratio, self.layout.reduce)
        leaks = {"mask_leak": mask_leak(noise_mask, cells), "mask_overcover": mask_overcover(noise_mask, cells)}
        for name, share in leaks.items():
            self.log(f"{stage}/{name}", share.mean(), on_epoch=True, sync_dist=True, batch_size=len(share))

    def test_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """As validation."""
        return self.validation_step(batch, batch_index)

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> InpaintedImages:
        """Inpaint."""
        return self.inpaint(batch)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the learning rate schedule per step."""
        optimizer = self.optimizer(self.denoiser.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}


def prediction_target(scheduler: SchedulerMixin, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a denoiser of this scheduler learns to say, by its `prediction_type`: (B, C, h, w).

    Raises:
        ValueError: another prediction type than epsilon, sample or v_prediction.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    raise ValueError(f"scheduler.prediction_type must be epsilon, sample or v_prediction; got {kind!r}")
