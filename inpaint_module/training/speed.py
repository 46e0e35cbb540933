"""Speed: `speed`, what is chosen for a device where the user has said nothing; Throughput: where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from torch import nn

from inpaint_module.batch import DescribedData
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.optimization import fuse

SPEEDS = ("auto", "exact", "off")
_HALF = ("bf16", "bf16-mixed", "bf16-true")
_PLAIN_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_spawn", "ddp_fork", "ddp_notebook")


class Speed(NamedTuple):
    """What is chosen for one run.

    Attributes:
        precision: of the trainer; None for the user's, or Lightning's default.
        vae: compute the VAE in bfloat16, if no dtype is named for it. Its fingerprint stays that of its file.
        graphs: paint masks by CUDA graphs, if they are by our own generators alone.
        fused: the optimizer's fused kernels, if it has such and the user has not said.
        tf32: float32 products on a GPU in TF32, if nobody has said how.
    """

    precision: str | None = None
    vae: bool = False
    graphs: bool = False
    fused: bool = False
    tf32: bool = False

    def apply(self, model: Any, data: Any) -> list[str]:
        """Put it into a model and its data, before they are moved to their device; the words of what was done."""
        done = [self.precision] if self.precision else []
        if not isinstance(model, InpaintDiffusion):
            return done
        if self.vae and model.encoder.vae.compute_in(torch.bfloat16):
            done.append("VAE in bfloat16")
        if self.graphs and isinstance(data, DescribedData) and data.paint_by_graphs():
            done.append("masks by CUDA graphs")
        model.fuses = self.fused
        if self.fused and fuse(optimizer := model.optimizer(model.optimized())):
            done.append(f"fused {type(optimizer).__name__}")
        if self.tf32 and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision("high")
            done.append("TF32")
        return done


def choose(setting: str, model: object, device: torch.device, trainer: Mapping[str, Any]) -> Speed:
    """What a setting comes to.

    Args:
        setting: auto: all of `Speed` that the device has; float32 that was asked for stays. exact: what changes no
            bit, which is masks by CUDA graphs. off: nothing.
        model: only an InpaintDiffusion is sped up.
        device: that trains.
        trainer: its arguments: precision, plugins and strategy of the user stay.

    Raises:
        ValueError: another setting.
    """
    if setting not in SPEEDS:
        raise ValueError(f"speed: expected one of {', '.join(SPEEDS)}; got {setting!r}")
    gpu = device.type == "cuda"
    if setting == "off" or not isinstance(model, InpaintDiffusion):
        return Speed()
    if setting == "exact":
        return Speed(graphs=gpu)
    native, named, plain = native_bfloat16(device), trainer.get("precision"), _is_plain(trainer)
    precision = "bf16-mixed" if native and named is None and plain else None
    return Speed(
        precision=precision,
        vae=(precision or named) in _HALF,
        graphs=gpu,
        fused=(gpu or native) and plain and not str(named).startswith("16"),
        tf32=gpu,
    )


def _is_plain(trainer: Mapping[str, Any]) -> bool:
    """Whether no object of the user decides how numbers are computed or weights are split."""
    plugins = trainer.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    strategy = trainer.get("strategy") or "auto"
    known = strategy in _PLAIN_STRATEGIES if isinstance(strategy, str) else type(strategy).__name__ == "DDPStrategy"
    return known and not any(isinstance(each, Precision | str) for each in plugins)


def native_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself; others emulate it, and take longer."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16"))


def device_of(accelerator: Any) -> torch.device:
    """Where a trainer with this accelerator trains, "auto" or a name."""
    wants_gpu = accelerator in (None, "auto", "gpu", "cuda") or type(accelerator).__name__ == "CUDAAccelerator"
    if wants_gpu and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in (None, "auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def speed_line(setting: str, device: torch.device, done: list[str]) -> str:
    """What the start of a run says of it."""
    where = "this CPU" if device.type == "cpu" else f"this {device.type} device"
    if done:
        ends = "--speed off for none of it" if setting == "exact" else "--speed off or exact for none of it"
        return f"speed: {setting} on {where}: {', '.join(done)}; {ends}"
    lacks = ", which has no bfloat16 of its own" if setting == "auto" and not native_bfloat16(device) else ""
    return f"speed: {setting} on {where}{lacks}: nothing is changed"


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
