"""What is watched while a model trains: the loss at fixed noise on the validation photos, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from inpaint_module.batch import Batch, DescribedData
from inpaint_module.encoder import InpaintLatents
from inpaint_module.morphology import reduce_mask
from inpaint_module.randomness import Stream, fork, key, normal, uniform
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

    Sums are kept in float64 and added up over ranks. It costs an encoding and four calls of the denoiser per batch,
    twice with `EMA`, and draws from no random stream. Samples without a target do not count where a model needs one.

    Args:
        seed: of noise and timesteps.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._sums: dict[str, Tensor] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        empty = torch.zeros(QUARTERS, len(_REGIONS), 2, dtype=torch.float64, device=pl_module.device)
        self._sums = {"": empty} | ({"_raw": empty} if self._average(trainer) else {})

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Add a batch."""
        if trainer.sanity_checking or not isinstance(pl_module, InpaintDiffusion) or lacks_target(pl_module, batch):
            return
        with trainer.precision_plugin.val_step_context():
            known = shown(pl_module, batch)
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
    on_test_batch_end = on_validation_batch_end


@torch.no_grad()
def shown(module: InpaintDiffusion, batch: Batch) -> tuple[InpaintLatents, dict[str, Any]]:
    """What of a batch no training changes: its latents, and what the denoiser is told."""
    latents = module.encode(batch)
    return latents, module.conditions(batch, latents)


def error_sums(
    module: InpaintDiffusion, positions: Tensor, latents: InpaintLatents, told: dict[str, Any], seed: int
) -> Tensor:
    """Squared errors of a batch at fixed draws: sums and numbers of values, to be added up over batches and ranks.

    Args:
        module: in eval mode.
        positions: int64 (B,); samples at positions under 0 do not count.
        latents: of `shown`, with targets.
        told: of `shown`.
        seed: of the draws.

    Returns:
        float64 (4, 2, 2): by quarter of the timesteps; hole and known cells; sum and number.
    """
    assert latents.target is not None
    sums = torch.zeros(QUARTERS, len(_REGIONS), 2, dtype=torch.float64, device=positions.device)
    hole = reduce_mask(latents.noise_mask, module.encoder.vae.ratio, "max") > 0
    regions = torch.stack([hole, ~hole]) & (positions >= 0).view(-1, 1, 1, 1)  # (2, B, 1, h, w)
    for quarter in range(QUARTERS):
        keys = fork(key(seed, positions, Stream.VALIDATION), quarter)
        times = (quarter + uniform(fork(keys, 0), 1)[:, 0].double()) / QUARTERS
        example = module.objective.at(latents.target, normal(fork(keys, 1), tuple(latents.target.shape[1:])), times)
        error = (module.predicted(example, latents, told).float() - example.target).square().double()
        chosen = regions.expand(-1, -1, error.shape[1], -1, -1)
        sums[quarter, :, 0] = torch.where(chosen, error, 0).sum((1, 2, 3, 4))
        sums[quarter, :, 1] = chosen.sum((1, 2, 3, 4))
    return sums


def lacks_target(module: InpaintDiffusion, batch: Batch) -> bool:
    """Whether a model that is shown the whole image learns from targets of which some in this batch are missing."""
    return module.layout.reference == "image" and ("target" not in batch or "has_target" in batch)


def losses_of(sums: Tensor) -> dict[str, float]:
    """Means of what `error_sums` gives, added up, by name; without those of which there is no value."""
    parts = {"loss": sums.sum((0, 1))}
    parts |= {f"loss_q{number + 1}": part for number, part in enumerate(sums.sum(1))}
    parts |= {f"loss_{name}": part for name, part in zip(_REGIONS, sums.sum(0), strict=True)}
    return {name: total / count for name, (total, count) in ((n, part.tolist()) for n, part in parts.items()) if count}


Mark = Callable[[], Any]  # makes a point in time
SHARES = ("waiting", "preparing", "encoder", "denoiser", "optimizer")


class HostTimer:
    """Points in time and the seconds between them, by the host's clock."""

    def mark(self) -> float:
        """Now, in seconds."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """From `start` to `end`."""
        return end - start


class CudaTimer:
    """Points in the device's queue of work, by CUDA events: neither marking nor reading a past one stops the queue."""

    def mark(self) -> torch.cuda.Event:
        """The point that the queue has been filled up to."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """From `start` to `end`, waiting for `end` if the device has not reached it."""
        end.synchronize()
        return start.elapsed_time(end) / 1000


class Stopwatch:
    """Sums up named spans; they are read only when somebody asks.

    Args:
        timer: makes and subtracts points in time.
    """

    def __init__(self, timer: HostTimer | CudaTimer) -> None:
        self.timer = timer
        self._open: dict[str, Any] = {}
        self._spans: list[tuple[str, Any, Any]] = []

    def start(self, name: str, at: Any = None) -> None:
        """Begin a span, now or at a past mark; one that was begun before and not ended is forgotten."""
        self._open[name] = self.timer.mark() if at is None else at

    def stop(self, name: str, at: Any = None) -> None:
        """End the span, if it was begun, now or at a past mark."""
        if name in self._open:
            self._spans.append((name, self._open.pop(name), self.timer.mark() if at is None else at))

    def forget(self, name: str) -> None:
        """As if the span had never begun."""
        self._open.pop(name, None)

    def take(self) -> dict[str, float]:
        """Seconds per name since the last call."""
        spans, self._spans = self._spans, []
        totals: dict[str, float] = {}
        for name, start, end in spans:
            totals[name] = totals.get(name, 0.0) + self.timer.seconds(start, end)
        return totals


class Throughput(Callback):
    """Logs `throughput/images_per_s` over all ranks and the shares of the time, every `log_every_n_steps`.

    `waiting` is the host's time for the loader's next batch, `preparing` that for its copy to the device and the
    painting of masks. `encoder` is the VAE with what is around it, `denoiser` its forward and backward pass,
    `optimizer` the step; `other` is the rest of the time. On a GPU these are the device's, measured by events, without
    a synchronisation in the step. With a data module that is no `DescribedData`, which says when the loader handed
    over, `waiting` holds both.
    """

    def __init__(self) -> None:
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._images = 0
        self._host, self._device = Stopwatch(HostTimer()), Stopwatch(HostTimer())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the encoder and the denoiser."""
        if trainer.strategy.root_device.type == "cuda":
            self._device = Stopwatch(CudaTimer())
        for name in ("encoder", "denoiser"):
            part = getattr(pl_module, name, None)
            if isinstance(part, nn.Module):
                self._hooks.append(part.register_forward_pre_hook(partial(self._enter, name)))
                self._hooks.append(part.register_forward_hook(partial(self._leave, name)))
        self._host.start("all")

    def _enter(self, name: str, *_: Any) -> None:
        self._device.start(name)

    def _leave(self, name: str, *_: Any) -> None:
        self._device.stop(name)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """The batch is there, on its device and with its masks."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        arrived = data.batch_arrived if isinstance(data, DescribedData) else None
        self._host.stop("waiting", at=arrived)
        if arrived is not None:
            self._host.start("preparing", at=arrived)
            self._host.stop("preparing")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The backward pass is the denoiser's: nothing else has gradients."""
        self._device.start("denoiser")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there."""
        self._device.stop("denoiser")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Clipping and the step begin."""
        self._device.start("optimizer")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log, and wait for the next batch."""
        self._device.stop("optimizer")
        self._images += len(batch["image"]) * trainer.world_size
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if every and (trainer.fit_loop.total_batch_idx + 1) % every == 0:
            self._log(pl_module)
        self._host.start("waiting")

    def _log(self, pl_module: LightningModule) -> None:
        self._host.stop("all")
        host, device = self._host.take(), self._device.take()
        total, images, self._images = host.pop("all", 0.0), self._images, 0
        self._host.start("all")
        if not total:
            return
        shares = {name: (host | device).get(name, 0.0) / total for name in SHARES}
        pl_module.log("throughput/images_per_s", images / total, prog_bar=True)
        pl_module.log("throughput/waiting", shares.pop("waiting"), prog_bar=True)
        for name, share in shares.items():
            pl_module.log(f"throughput/{name}", share)
        pl_module.log("throughput/other", max(0.0, 1 - sum((host | device).values()) / total))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What a validation takes is no part of the steps."""
        self._host.forget("waiting")
        self._host.forget("all")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._host.take(), self._device.take()
        self._images = 0
        self._host.start("all")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
