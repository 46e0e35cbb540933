"""`speed`: what makes a run fast and changes no sample, where the user has said nothing, told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import Precision

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
