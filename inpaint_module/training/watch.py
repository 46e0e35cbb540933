"""ValidationLoss: the loss at fixed noise and timesteps on the validation photos."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from inpaint_module.batch import Batch
from inpaint_module.encoder import InpaintLatents
from inpaint_module.morphology import reduce_mask
from inpaint_module.randomness import Stream, fold_in, key, normal, uniform
from inpaint_module.training.averages import EMA
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

QUARTERS = 4
_REGIONS = ("hole", "known")


class ValidationLoss(Callback):
    """Logs the loss of all validation samples at the same noise and timesteps in every validation.

    Each sample is made noisy four times, once in each quarter of the timesteps, with draws that are functions of (seed,
    quarter, the sample's position) alone. The plain squared error is logged, every latent value alike, without any
    weights, so that runs with other weights or timestep densities compare:

    - `val/loss` over all; `val/loss_q1` .. `val/loss_q4` by quarter, from little noise to nothing but noise;
    - `val/loss_hole` in latent cells that the grown mask touches, `val/loss_known` in the others;
    - `val/loss_raw` with the weights as they are trained, where the others are those of the average (`EMA`).

    Sums are kept in float64 and added up over ranks. It costs an encoding of the whole images and four calls of the
    denoiser per batch, twice with `EMA`, and draws from no random stream. Samples without a target do not count where a
    model needs one.

    Args:
        seed: of noise and timesteps.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._sums: dict[str, Tensor] = {}
        self._known: tuple[InpaintLatents, dict[str, Any]] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        empty = torch.zeros(QUARTERS, len(_REGIONS), 2, dtype=torch.float64, device=pl_module.device)
        self._sums = {"": empty} | ({"_raw": empty} if self._average(trainer) else {})

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Encode a batch, for the validation step too."""
        self._known = None
        if trainer.sanity_checking or not isinstance(pl_module, InpaintDiffusion) or lacks_target(pl_module, batch):
            return
        with trainer.precision_plugin.val_step_context():
            self._known = encoded(pl_module, batch)
        if _encodes_alike(pl_module, batch):
            pl_module.encoded = batch, _as_to_paint(pl_module, self._known[0])

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Add a batch."""
        if self._known is None or not isinstance(pl_module, InpaintDiffusion):
            return
        known, self._known, pl_module.encoded = self._known, None, None
        average = self._average(trainer)
        for name in self._sums:
            trained = average.trained_weights(pl_module) if average and name else nullcontext()
            with torch.no_grad(), trained, trainer.precision_plugin.val_step_context():
                found = error_sums(pl_module, batch["position"], *known, self.seed)
            self._sums[name] = self._sums[name] + found

    def _average(self, trainer: Trainer) -> EMA | None:
        """What holds the average, if the weights of validation are one."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return next((each for each in callbacks if isinstance(each, EMA) and each.holds_both), None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up over ranks, and log."""
        stage = "test" if trainer.testing else "val"
        for name, sums in self._sums.items():
            losses = losses_of(trainer.strategy.reduce(sums, reduce_op="sum"))
            for part, value in losses.items() if not name else [(f"loss{name}", losses.get("loss"))]:
                if value is not None:
                    pl_module.log(f"{stage}/{part}", value, sync_dist=True)

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end
    on_test_batch_start, on_test_batch_end = on_validation_batch_start, on_validation_batch_end


def _encodes_alike(module: InpaintDiffusion, batch: Batch) -> bool:
    """Whether the latents to paint from are to the bit among those with a target: encoded in passes of their own."""
    apart = module.encoder.max_batch is None and module.layout.reference is None
    return apart and "target" not in batch and "latents" not in batch


def _as_to_paint(module: InpaintDiffusion, latents: InpaintLatents) -> InpaintLatents:
    whole = module.layout.blends or latents.target is latents.samples
    return latents if whole else latents._replace(target=None)


@torch.no_grad()
def encoded(module: InpaintDiffusion, batch: Batch) -> tuple[InpaintLatents, dict[str, Any]]:
    """What of a batch no training changes: its latents and its conditions."""
    latents = module.encode(batch)
    return latents, module.conditions(batch, latents)


def error_sums(
    module: InpaintDiffusion, positions: Tensor, latents: InpaintLatents, conditions: dict[str, Any], seed: int
) -> Tensor:
    """Squared errors of a batch at fixed draws: sums and numbers of values, to be added up over batches and ranks.

    Args:
        module: in eval mode.
        positions: int64 (B,); samples at positions under 0 do not count.
        latents: of `encoded`, with targets.
        conditions: of `encoded`.
        seed: of the draws.

    Returns:
        float64 (4, 2, 2): by quarter of the timesteps; hole and known cells; sum and number.
    """
    assert latents.target is not None
    sums = torch.zeros(QUARTERS, len(_REGIONS), 2, dtype=torch.float64, device=positions.device)
    hole = reduce_mask(latents.noise_mask, module.encoder.vae.ratio, "max") > 0
    regions = torch.stack([hole, ~hole]) & (positions >= 0).view(-1, 1, 1, 1)  # (2, B, 1, h, w)
    for quarter in range(QUARTERS):
        keys = fold_in(key(seed, positions, Stream.VALIDATION), quarter)
        times = (quarter + uniform(fold_in(keys, 0), 1)[:, 0].double()) / QUARTERS
        example = module.objective.at(latents.target, normal(fold_in(keys, 1), tuple(latents.target.shape[1:])), times)
        error = (module.predicted(example, latents, conditions).float() - example.target).square().double()
        chosen = regions.expand(-1, -1, error.shape[1], -1, -1)
        sums[quarter, :, 0] = torch.where(chosen, error, 0).sum((1, 2, 3, 4))
        sums[quarter, :, 1] = chosen.sum((1, 2, 3, 4))
    return sums


def lacks_target(module: InpaintDiffusion, batch: Batch) -> bool:
    """Whether a model whose reference is the whole image lacks the targets of some samples of this batch."""
    return module.layout.reference == "image" and ("target" not in batch or "has_target" in batch)


def losses_of(sums: Tensor) -> dict[str, float]:
    """Means of what `error_sums` gives, added up, by name; without those of which there is no value."""
    parts = {"loss": sums.sum((0, 1))}
    parts |= {f"loss_q{number + 1}": part for number, part in enumerate(sums.sum(1))}
    parts |= {f"loss_{name}": part for name, part in zip(_REGIONS, sums.sum(0), strict=True)}
    return {name: total / count for name, (total, count) in ((n, part.tolist()) for n, part in parts.items()) if count}
