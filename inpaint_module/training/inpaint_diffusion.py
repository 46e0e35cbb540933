"""InpaintDiffusion: from a batch to a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from inpaint_module.base_models import (
    CONDITION,
    CompiledForward,
    Conditioning,
    DenoiserCall,
    ModelParts,
    ReferenceLayout,
    check_captions,
    check_image_sizes,
    drop_mask,
    offload_frozen,
    shard,
)
from inpaint_module.batch import Batch, DescribedData, of_all_samples, without_sizes
from inpaint_module.clean_latents import check_clean, encode_beside, encode_whole
from inpaint_module.encoder import InpaintLatents
from inpaint_module.metrics.scores import FillMetrics, LatentMaskMetrics
from inpaint_module.objectives.loss import LossWeights, product, weighted_loss
from inpaint_module.objectives.objectives import Example, ObjectiveCallable, objective_for
from inpaint_module.pixels import resized_sizes, to_unit_float
from inpaint_module.randomness import Stream, key, normal
from inpaint_module.sampling import InpaintedImages, composite, inpaint_latents
from inpaint_module.training.checks import check_masks, check_ranks, check_saved, check_weights
from inpaint_module.training.optimization import ScheduledModule


class InpaintDiffusion(ScheduledModule):
    """Train a denoiser to inpaint: loss = |denoiser(layout(noisy, latents), t, captions) - target|^2.

    Timesteps, noise and which captions are dropped are functions of (seed, position in the stream) alone, as the
    masks are.

    Args:
        base: the model: denoiser, encoder, layout, scheduler and text encoders; a `BaseModel` of a folder, or
            `ModelParts`.
        objective: noising and target, given the scheduler; null for what fits it, with the base's timesteps.
        loss_weights: where on the picture an error counts; null for everywhere alike.
        compile: true compiles the denoiser and the VAE's encode for the training steps, by torch.compile; or how the
            denoiser is: default, reduce-overhead (CUDA graphs: for small models on a GPU), max-autotune. The first
            step of each shape waits for it, and needs a C compiler.
        offload: true keeps VAE and text encoders on the CPU between uses; blocks also the frozen weights of the
            denoiser's blocks, which then needs its gradient_checkpointing. Each use waits for them.
        caption_dropout: share of samples that train without their caption, 0..1; 0.1 is usual.
        optimizer: the optimizer, given the parameters that train.
        lr_scheduler: learning rate per step, given the optimizer; null for a constant one.
        stretch_schedule: stretch a schedule that has a length of its own, such as OneCycleLR, to trainer.max_steps;
            false keeps the learning rate of its last step after its end.
        sampling_steps: denoiser calls per image in validation, test and prediction.
        guidance_scale: classifier-free guidance there; 1 for none.
        seed: of noise, timesteps and dropped captions.

    Raises:
        ValueError: captions are dropped or guided without text encoders, or, when training, a sharded denoiser is to
            be compiled, or images have sizes that the denoiser does not take.
    """

    conditioning: Conditioning
    encoded: tuple[Batch, InpaintLatents] | None = None  # a batch that a callback has encoded, as without `target`

    def __init__(
        self,
        base: ModelParts,
        *,
        objective: ObjectiveCallable | None = None,
        loss_weights: LossWeights | None = None,
        compile: bool | str = False,
        offload: bool | str = False,
        caption_dropout: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        stretch_schedule: bool = False,
        sampling_steps: int = 10,
        guidance_scale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        self.denoiser: Any = base.denoiser
        self.encoder, self.layout, self.scheduler = base.encoder, base.layout, base.scheduler
        self.conditioning, self.call, self.base, self.control = base.conditioning, base.call, base, base.control
        check_captions(base.conditioning, caption_dropout, guidance_scale)
        self.objective = objective(base.scheduler) if objective else objective_for(base.scheduler, base.timesteps)
        self.loss_weights, self.caption_dropout = loss_weights, caption_dropout
        self.compiled = CompiledForward("default" if compile is True else compile or None)
        self.compiled_vae = CompiledForward(self.compiled.mode and "default", "encode")
        offload_frozen(base, offload, compiled=bool(compile))
        self.optimizer, self.lr_scheduler, self.stretch_schedule = optimizer, lr_scheduler, stretch_schedule
        self.sampling_steps, self.guidance_scale, self.seed = sampling_steps, guidance_scale, seed
        self.metrics = FillMetrics()
        self.latent_mask_metrics = LatentMaskMetrics(base.encoder.vae.ratio, base.layout.reduce)

    def setup(self, stage: str) -> None:
        """Refuse ranks with different frozen models, cached latents of another VAE, and sizes that do not fit."""
        for name, frozen in self._frozen():
            digest = torch.tensor(list(frozen.fingerprint()), device=self.trainer.strategy.root_device)
            check_ranks(name, cast(Tensor, self.all_gather(digest)).reshape(-1, len(digest)).tolist())
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, DescribedData):
            check_masks(data)
            if stage == "fit" and data.latents is not None:
                check_clean(data.latents, self.encoder)
            sized = self.denoiser if self.control is None else self.control.base.model  # which is frozen beside one
            check_image_sizes(sized, self.layout, self.encoder.vae.ratio, data.image_sizes(stage))

    def _frozen(self) -> list[tuple[str, Any]]:
        """All that has a fingerprint, by name."""
        found = [("VAE", self.encoder.vae), ("conditioning", self.conditioning)]
        return found if self.control is None else [*found, ("base model", self.control.base)]

    def configure_model(self) -> None:
        """Under a sharding strategy, split the denoiser's weights over the ranks."""
        if self.device_mesh is not None:
            if self.compiled.mode is not None:
                raise ValueError(f"compile: expected false under a sharding strategy, got {self.compiled.mode!r}")
            shard(self.denoiser, self.device_mesh["data_parallel"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InpaintDiffusion:
        super()._apply(fn, recurse)
        device = self.encoder.kernel.device
        if device.type != "meta":
            self.conditioning.to(device)
            if self.control is not None:
                self.control.base.to(device)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen models' fingerprints; beside the state dict, whose extra state FSDP2 does not load."""
        checkpoint["encoder"] = self.encoder.get_extra_state()
        checkpoint["conditioning_sha256"] = self.conditioning.fingerprint().hex()
        if self.control is not None:
            checkpoint["base_sha256"] = self.control.base.fingerprint().hex()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another VAE, other text encoders or another denoiser, whatever the strategy."""
        super().on_load_checkpoint(checkpoint)
        if "encoder" in checkpoint:
            self.encoder.set_extra_state(checkpoint["encoder"])
        here = self.conditioning.fingerprint().hex()
        check_saved("conditioning", checkpoint.get("conditioning_sha256", here), here)
        if self.control is not None:
            here = self.control.base.fingerprint().hex()
            check_saved("base model", checkpoint.get("base_sha256", here), here)
        if checkpoint.get("state_dict"):
            check_weights(checkpoint["state_dict"], self.state_dict())

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of a batch."""
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Encode, add noise, denoise, compare: the mean squared error over the batch, float32 ()."""
        positions = batch["position"]
        if self.control is not None:
            batch = {**batch, "mask": self.control.masks(batch["mask"], self.seed, positions)}
        with self.compiled_vae.within(*self.encoder.vae.models()):
            latents = self.encode(batch)
        assert latents.target is not None
        noise = normal(key(self.seed, positions, Stream.NOISE), latents.target.shape[1:])
        example = self.objective(latents.target, noise, key(self.seed, positions, Stream.TIMESTEP))
        dropped = drop_mask(self.seed, positions, self.caption_dropout) if self.caption_dropout else None
        conditions = self.conditions(batch, latents, dropped)
        with self.compiled.within(self.denoiser):
            prediction = self.predicted(example, latents, conditions)
        weigh = self.loss_weights
        cells = None if weigh is None else weigh(latents.noise_mask, self.encoder.vae.ratio)
        huber = self.objective.thresholds(example.timesteps)
        samples = product(example.weight, batch.get("loss_weight"))
        return weighted_loss(prediction, example.target, cells, samples, huber)

    def conditions(self, batch: Batch, latents: InpaintLatents, dropped: Tensor | None = None) -> dict[str, Any]:
        """The denoiser's conditions for a batch in training; of samples in `dropped` (B,) no captions."""
        sized = resized_sizes(batch, self.encoder.vae.ratio) if self.encoder.sizing == "diffusers" else batch
        return {**self.conditioning(self._with_reference(sized), dropped), **self._controlled(batch, latents)}

    def predicted(self, example: Example, latents: InpaintLatents, conditions: dict[str, Any]) -> Tensor:
        """What the denoiser says of a noisy batch: (B, C, h, w), to be compared with the example's target."""
        size = (example.noisy.shape[-2], example.noisy.shape[-1])
        return self.call(self.denoiser, self.layout(example.noisy, latents), example.timesteps, conditions, size)

    def encode(self, batch: Batch, target: bool = True) -> InpaintLatents:
        """Latents of the masked images of a batch; with `target`, or where a layout blends, of the whole ones too.

        With `target` these are of the batch's targets if it has such. They may be in the batch as `latents`, which
        only a `target` is taken from.
        """
        if not target and self.encoded is not None and self.encoded[0] is batch:
            return self.encoded[1]
        images, masks, clean = batch["image"], batch["mask"], batch.get("latents") if target else None
        wanted = batch.get("target") if target else None
        keys = key(self.seed, batch["position"], Stream.POSTERIOR) if clean is None else None
        if not (self.layout.eats_masked or (self.control and self.control.condition.eats_masked)):
            return encode_whole(self.encoder, images if wanted is None else wanted, masks, clean, keys)
        if self.layout.reference in ("image", "picture"):
            return self._encode_reference(batch, target, keys)
        if clean is not None:
            return encode_beside(self.encoder, images, masks, clean)
        whole = target or self.layout.blends if wanted is None else wanted
        return self.encoder(images, masks, target=whole, generator=keys)

    def _encode_reference(self, batch: Batch, target: bool, keys: Tensor | None) -> InpaintLatents:
        """Latents of an edit model's references, beside the grown masks and the whole images, or their targets."""
        images, masks, wanted = batch["image"], batch["mask"], batch["image"]
        reference = images
        if self.layout.reference == "picture":
            reference = of_all_samples(batch, "reference", "picture, which shows it")
        if target:
            whole = self.layout.reference == "image"
            wanted = (
                of_all_samples(batch, "target", "image, which shows the whole image")
                if whole
                else batch.get("target", images)
            )
        unmasked, clean = torch.zeros_like(masks), batch.get("latents") if target else None
        if clean is None:
            latents = self.encoder(reference, unmasked, target=wanted, generator=keys)
        else:
            latents = encode_beside(self.encoder, reference, unmasked, clean)
        return latents._replace(noise_mask=self.encoder.fill_hole(images, masks).noise_mask)

    def _with_reference(self, batch: Batch) -> Batch:
        """The batch with the reference pictures, where text encoders see them."""
        if not (isinstance(self.layout, ReferenceLayout) and self.conditioning.sees):
            return batch
        return {**batch, "reference": self.layout.reference_pictures(self.encoder, batch["image"], batch["mask"])}

    def _controlled(self, batch: Batch, latents: InpaintLatents) -> dict[str, Tensor]:
        """The ControlNet's condition for a batch; nothing without one."""
        if self.control is None:
            return {}
        with torch.no_grad():
            condition = self.control.condition.from_batch(self.encoder, batch["image"], batch["mask"], latents)
        return {CONDITION: condition}

    @torch.no_grad()
    def inpaint(self, batch: Batch, call: DenoiserCall | None = None) -> InpaintedImages:
        """Fill the holes of a batch; `call` is how the denoiser is called, such as in tiles, if not as in training."""
        positions, guided = batch["position"], self.guidance_scale != 1
        served = self._with_reference(without_sizes(batch))  # as a pipeline, to which a picture is whole
        latents = self.encode(batch, target=False)
        control = self._controlled(batch, latents)
        free = self.conditioning(served, torch.ones_like(positions, dtype=torch.bool)) if guided else None
        filled = inpaint_latents(
            self.denoiser,
            self.scheduler,
            self.layout,
            latents,
            normal(key(self.seed, positions, Stream.SAMPLER), latents.samples.shape[1:]),
            self.sampling_steps,
            call=call or self.call,
            conditions={**self.conditioning(served), **control},
            unconditional=None if free is None else {**free, **control},
            guidance_scale=self.guidance_scale,
        )
        given = batch["image"], batch.get("target", batch["image"])
        image, truth = (self.encoder.crop(to_unit_float(each)) for each in given)
        hole = self.encoder.crop(batch["mask"])
        inpainted = self.encoder.decode(filled)
        return InpaintedImages(
            image=truth,
            mask=hole,
            noise_mask=latents.noise_mask,
            masked_image=self.encoder.filled(image, hole),
            inpainted=inpainted,
            composite=composite(inpainted, image, latents.noise_mask),
        )

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Inpaint, and log PSNR inside the hole and outside the grown mask, beside that of plain fills."""
        result = self.inpaint(batch)
        stage, counted = "test" if self.trainer.testing else "val", batch["position"] >= 0
        for name, metric in self.metrics.add(result, counted).items():
            in_bar = name in ("psnr_inside", "psnr_outside")
            self.log(f"{stage}/{name}", metric, prog_bar=in_bar, on_epoch=True, batch_size=len(counted))
        for name, share in self.latent_mask_metrics.add(result.noise_mask, counted).items():
            self.log(f"{stage}/{name}", share, on_epoch=True, batch_size=len(counted))
        return result._asdict()

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """As validation."""
        return self.validation_step(batch, batch_index)

    def predict_step(self, batch: Batch, batch_index: int) -> InpaintedImages:
        """Inpaint."""
        return self.inpaint(batch)

    def optimized(self) -> list[Tensor]:
        """The denoiser's parameters that train."""
        return [weight for weight in self.denoiser.parameters() if weight.requires_grad]
