"""Measures of what a config's model makes of its data: latents, round trip, the mask on the latent grid; times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from datamodules.doctor.data_measures import Sizes
from inpaint_module.batch import Batch
from inpaint_module.cli.parser import make_parts, read_config, read_parts
from inpaint_module.morphology import REDUCTIONS, mask_leak, mask_overcover, reduce_mask
from inpaint_module.pixels import to_unit_float
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

T = TypeVar("T")


class Encoded(NamedTuple):
    """A batch through the encoder, all on the CPU: pixels are float (B, 3, H, W) in 0..1, masks (B, 1, H, W).

    `decoded` is the round trip of the whole picture through the VAE, which is `image`; of a pair the target.
    """

    keys: list[str]
    image: Tensor
    hole: Tensor
    grown: Tensor
    masked: Tensor
    latents: Tensor
    decoded: Tensor


class Latents(NamedTuple):
    """Of latents in the denoiser's space: mean, std, the least and greatest std of a channel; PSNR of the round trip.

    `lost` are the keys of samples with NaN or infinity, which the figures leave out.
    """

    total: int
    dtype: str
    mean: float
    std: float
    channel_stds: tuple[float, float]
    psnr: list[float]
    lost: list[str]


class Grid(NamedTuple):
    """Of a reduction of the grown mask: mean shares of the hole that is lost, and of the rest that is masked."""

    leak: float
    overcover: float


class Speeds(NamedTuple):
    """Images per second of each stage: None if it was not measured.

    `masks` is infinite if none was painted; `decode` is of one process, `loader` of the config's own, whose first batch
    does not count.
    """

    masks: float
    loader: float | None = None
    decode: float | None = None
    encode: float | None = None
    step: float | None = None


def timed(action: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What an action returns, and its seconds, the device's work included."""
    begin = _now(device)
    result = action()
    return result, _now(device) - begin


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def encode(module: InpaintDiffusion, batch: Batch) -> tuple[Encoded, float]:
    """A batch as training encodes it and back to pixels; and the seconds of encoding."""
    encoder = module.encoder
    latents, seconds = timed(lambda: module.encode(batch), encoder.kernel.device)
    assert latents.target is not None
    image, hole = encoder.crop(to_unit_float(batch["image"][:, :3])), encoder.crop(batch["mask"]) > 0.5
    masked = encoder.filled(image, hole)
    whole = encoder.crop(to_unit_float(batch["target"])) if "target" in batch else image
    parts = (whole, hole, latents.noise_mask, masked, latents.target, encoder.decode(latents.target))
    return Encoded(batch["__key__"], *(part.cpu() for part in parts)), seconds


def measure_latents(encoded: Sequence[Encoded], dtype: str) -> Latents:
    """Statistics over all samples whose latents and decoded pictures are finite."""
    keys, figures, kept, lost = [key for each in encoded for key in each.keys], [], [], []
    whole = [_finite(each.latents) & _finite(each.decoded) for each in encoded]
    for each, good in zip(encoded, whole, strict=True):
        error = (each.image[good] - each.decoded[good]).square().flatten(1).mean(1)
        figures += (-10 * error.clamp_min(1e-10).log10()).tolist()
        kept.append(each.latents[good].transpose(0, 1).flatten(1))
    lost = [key for key, good in zip(keys, torch.cat(whole).tolist(), strict=True) if not good]
    values = torch.cat(kept, dim=1)  # (C, all latents)
    if not values.numel():
        return Latents(len(keys), dtype, 0, 0, (0, 0), [], lost)
    stds = values.std(1)
    spread = (stds.min().item(), stds.max().item())
    return Latents(len(keys), dtype, values.mean().item(), values.std().item(), spread, figures, lost)


def _finite(x: Tensor) -> Tensor:
    return x.isfinite().flatten(1).all(1)


def measure_grid(encoded: Sequence[Encoded], ratio: int) -> dict[str, Grid]:
    """Leak and overcover of each reduction of the grown masks."""
    found = {}
    for name in REDUCTIONS:
        if name != "space-to-depth":  # loses nothing
            pairs = [(each.grown, reduce_mask(each.grown, ratio, name)) for each in encoded]
            leak, over = (torch.cat([f(*pair) for pair in pairs]).mean() for f in (mask_leak, mask_overcover))
            found[name] = Grid(leak.item(), over.item())
    return found


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which Lightning trains with this `trainer.precision`."""
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)


def denoiser_factor(denoiser: nn.Module) -> int:
    """Along a side, latents per pixel of a U-Net's coarsest features, or per patch of a transformer."""
    config: Any = getattr(denoiser, "config", {})
    blocks, patch = config.get("down_block_types"), config.get("patch_size")
    if blocks:
        return 2 ** (len(blocks) - 1)
    return patch if isinstance(patch, int) else 1


def measure_step(module: InpaintDiffusion, batch: Batch) -> tuple[float, float]:
    """The loss of a training step, and its seconds without the encoder, whose latents are made before.

    It changes the module's weights. The first of two steps warms up.
    """
    with torch.no_grad():
        latents = module.encode(batch)
    made: Any = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    module.__dict__["encode"] = lambda _: latents  # the encoder has a line of its own
    module.train()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    try:
        step()
        loss, seconds = timed(step, module.encoder.kernel.device)
    finally:
        del module.__dict__["encode"]
    return loss.item(), seconds


def faster(speeds: Speeds, sizes: Sizes, *, workers: int, cores: int, cached: bool, gpu: bool) -> str:
    """One sentence on what limits a training step, and what would help."""
    if not speeds.encode or not speeds.step:
        return ""
    step = 1 / speeds.masks + 1 / speeds.encode + 1 / speeds.step  # seconds per image
    if speeds.decode and speeds.decode * max(workers, 1) * step < 1:
        return _more_data(speeds.decode, step, workers, cores)
    if speeds.decode and not workers and (share := 1 / (1 + speeds.decode * step)) > 0.05:
        return f"decoding takes {share:.0%} of the time of the training process: set data.num_workers: 1 to hide it"
    if gpu and (share := 1 / speeds.masks / step) > 0.05:
        advice = "leave data.masks.cuda_graphs null, for --speed auto or exact, or set it"
        return f"painting masks takes {share:.0%} of a step, most of it the CPU's: {advice}"
    compiling = ", --model.compile=true compiles for a GPU" if gpu else ""
    if (share := 1 / speeds.encode / step) > 0.3 and not cached:
        advice = "inpaint shards cache-latents halves that, configs/bf16.yaml helps where bfloat16 is native"
        return f"the VAE takes {share:.0%} of a step: {advice}{compiling}"
    largest = max(sizes.seen, default=(0, 0))
    share = 1 / speeds.step / step
    what = f"the denoiser and its optimizer take {share:.0%} of a step at {largest[0]} x {largest[1]}"
    return f"{what}; the data keeps up{compiling}"


def _more_data(decode: float, step: float, workers: int, cores: int) -> str:
    need = math.ceil(1 / (decode * step))
    have = f"{decode * max(workers, 1):.0f} images/s are read and decoded, a step could take {1 / step:.0f}"
    if need <= cores:
        return f"{have}: set data.num_workers: {need}"
    shrink = "store smaller images (inpaint shards make --short-side)"
    return f"{have}, for which {need} workers were needed on {cores} cores: {shrink}"


def data_from_configs(configs: Sequence[Path], overrides: Sequence[str] = ()) -> LightningDataModule:
    """The data module of config files, the later over the earlier, and of options such as `--data.batch_size=2`.

    Raises:
        ValueError: no data in them.
    """
    values = read_parts(configs, overrides, data=LightningDataModule)
    return make_parts(values, data=LightningDataModule).data


def precision_of(configs: Sequence[Path]) -> str:
    """`trainer.precision` of config files, of which the last that names one counts."""
    trainers = [read_config(path).get("trainer") or {} for path in configs]
    return str(next((each["precision"] for each in reversed(trainers) if each.get("precision")), "32-true"))
