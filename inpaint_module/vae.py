"""Autoencoders of diffusers, each called as its own pipelines call it: from a folder, or around an object."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_module.frozen_vae import ComfyVAE, FrozenVAE, Posterior, VAEOverflowError, sha256_of_weights
from inpaint_module.weights import (
    brought_to,
    cast_without_content,
    config_model,
    frozen,
    kept_on_cpu,
    loading_options,
    local_folder,
    runnable,
    weightless,
)

__all__ = ["ComfyVAE", "DiffusersVAE", "FrozenVAE", "Posterior", "as_vae", "load_vae"]
EMBEDDED = "embedded:vae"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DiffusersVAE(FrozenVAE):
    """Any 2-D diffusers autoencoder, and the video ones with one frame per sample.

    Tiling and slicing that are enabled on `module`, before or after, are kept.

    Args:
        module: AutoencoderKL, AutoencoderTiny, AutoencoderDC, AutoencoderKLFlux2, AutoencoderKLQwenImage,
            AutoencoderKLWan, AutoencoderKLHunyuanImage, VQModel, AsymmetricAutoencoderKL or alike. It is frozen in
            place: eval mode, no gradients, on a CPU channels_last weights (faster, same values to rounding; on a GPU
            slower, since the group norm between the convolutions knows no such layout: 1.4 times on an H100).

    Raises:
        ValueError: float16 weights of a VAE that overflows in float16 (`force_upcast`), a ratio that is not in its
            config or that one test encode contradicts, or latent statistics of another number of channels.
    """

    def __init__(self, module: nn.Module):
        self.module = cast(Any, module.eval().requires_grad_(False))
        config = self.module.config
        if config.get("force_upcast") and self.dtype == torch.float16:
            raise ValueError(
                "this VAE overflows in float16 (its config says force_upcast); load it in float32 or bfloat16, or set "
                "force_upcast to False in the config of one that was made for float16"
            )
        self.is_video = _is_video(module)
        self._move(self.device)
        # Flux.2 folds 2 x 2 latents into channels before its batch norm
        self._patch: int = config.patch_size[0] if hasattr(module, "bn") else 1
        # Kandinsky's MoVQ: its pipelines neither scale latents nor quantize them
        self._is_movq = config.get("norm_type") == "spatial"
        self.ratio = _claimed_ratio(self.module) * self._patch
        self.channels = self._dry_encode(type(module).__name__, self.device)
        self._shift, self._scale = self._statistics()

    @property
    def name(self) -> str:
        """The class of the module and its dtype."""
        return f"{type(self.module).__name__} ({str(self.dtype).removeprefix('torch.')})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which everything inside is computed."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def models(self) -> list[nn.Module]:
        """See `FrozenVAE.models`."""
        return [self.module]

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> Posterior:
        """See `FrozenVAE.posterior`; `std` is None for AutoencoderTiny, AutoencoderDC and VQModel.

        In float16, which holds numbers to 65504, the latents are looked at, and the host waits for the device.

        Raises:
            VAEOverflowError: naming the class, if latents in float16 are infinite or NaN.
        """
        images = (pixels * 2 - 1).to(self.dtype)
        with self._undisturbed(pixels.device), self._here(pixels.device):
            out = self.module.encode(self._enter(images), return_dict=False)[0]
        std = None if isinstance(out, Tensor) else getattr(out, "std", None)  # some distributions have a mode only
        mean = self._leave(out if isinstance(out, Tensor) else out.mode())
        if self.dtype == torch.float16 and not torch.compiler.is_compiling() and not mean.isfinite().all():
            raise VAEOverflowError(
                f"{self.name}: expected finite latents, got infinite or NaN ones: it "
                "overflows there; load it with dtype bfloat16 or float32"
            )
        return Posterior(mean, None if std is None else self._leave(std))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `FrozenVAE.encode`."""
        if not self.is_video:
            return self.posterior(pixels).mean
        frames = (pixels * 2 - 1).to(self.dtype).movedim(0, 1).unsqueeze(0)
        with self._undisturbed(pixels.device), self._here(pixels.device):
            return self.module.encode(frames, return_dict=False)[0].mode().float()

    def decode(self, latents: Tensor) -> Tensor:
        """See `FrozenVAE.decode`; VQModel quantizes first, Kandinsky's does not."""
        if self._patch > 1:
            latents = F.pixel_shuffle(latents, self._patch)
        options = {"force_not_quantize": True} if self._is_movq else {}
        with self._undisturbed(latents.device), self._here(latents.device):
            images = self.module.decode(self._enter(latents.to(self.dtype)), return_dict=False, **options)[0]
        return self._one_frame(images).float().contiguous() / 2 + 0.5

    def normalize(self, latents: Tensor) -> Tensor:
        """(z - shift) * scale, with the statistics of the module's config (or of its batch norm, Flux.2)."""
        return (latents - self._shift.to(latents)) * self._scale.to(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """z / scale + shift."""
        return latents / self._scale.to(latents) + self._shift.to(latents)

    def to(self, device: torch.device) -> None:
        """See `FrozenVAE.to`."""
        self._move(device)
        self._shift, self._scale = self._shift.to(device), self._scale.to(device)

    def compute_in(self, dtype: torch.dtype) -> bool:
        """See `FrozenVAE.compute_in`."""
        if not self.free_dtype or getattr(self.module, "_keep_in_fp32_modules", None):
            return False
        if weightless():
            cast_without_content(self.module, dtype)
        else:
            self.fingerprint()  # of the weights as they were loaded
            nn.Module.to(self.module, dtype)  # past a warning of diffusers' own
        return True

    def fingerprint(self) -> bytes:
        """See `FrozenVAE.fingerprint`."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return sha256_of_weights(self.module.state_dict())

    def _undisturbed(self, device: torch.device) -> torch.autocast:
        """Eval mode in every submodule, and no autocast: whatever the caller's `.train()` and precision say."""
        if any(part.training for part in self.module.modules()):
            self.module.eval()
        return torch.autocast(device.type, enabled=False)

    def _here(self, device: torch.device) -> AbstractContextManager[None]:
        return brought_to(self.module, device) if self.offloaded else nullcontext()

    def _move(self, device: torch.device) -> None:
        """In one step with the memory format, which the weights of 3-D convolutions keep."""
        where = torch.device("cpu") if self.offloaded else device
        self.module.to(where, **({} if self.is_video else {"memory_format": _memory_format(device)}))
        if self.offloaded:
            kept_on_cpu(frozen(self.module), device)

    def _enter(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) if self.is_video else x.contiguous(memory_format=_memory_format(x.device))

    def _one_frame(self, x: Tensor) -> Tensor:
        return x[:, :, 0] if self.is_video else x

    def _leave(self, latents: Tensor) -> Tensor:
        latents = self._one_frame(latents).float().contiguous()
        return F.pixel_unshuffle(latents, self._patch) if self._patch > 1 else latents

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, float32 (C, 1, 1) each, on the module's device."""
        config = self.module.config
        if self._is_movq:
            shift, std, factor = 0.0, 1.0, 1.0
        elif hasattr(self.module, "bn"):
            bn = self.module.bn
            shift, std, factor = bn.running_mean, (bn.running_var.float() + config.batch_norm_eps).sqrt(), 1.0
        elif config.get("latents_mean") and config.get("latents_std"):
            shift, std, factor = config.latents_mean, config.latents_std, config.get("scaling_factor") or 1.0
        else:
            shift, std, factor = config.get("shift_factor") or 0.0, 1.0, config.get("scaling_factor") or 1.0
        return self._per_channel("mean", shift), factor / self._per_channel("std", std)

    def _per_channel(self, what: str, values: Any) -> Tensor:
        """A number, or C of them, as float32 (C, 1, 1)."""
        column = torch.as_tensor(values, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)
        if len(column) not in (1, self.channels):
            raise ValueError(
                f"the VAE's config gives the {what} of {len(column)} latent channels, but it encodes to {self.channels}"
            )
        return column.expand(self.channels, 1, 1)


def _memory_format(device: torch.device) -> torch.memory_format:
    """The one in which convolutions and group norms together are fastest."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def _is_video(module: nn.Module) -> bool:
    """Whether the first convolution is 3-D, so that `encode` wants (B, 3, T, H, W)."""
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
    return isinstance(next(convolutions, None), nn.Conv3d)


def _claimed_ratio(module: Any) -> int:
    """The ratio by the config or the module; their values may be None."""
    config, name = module.config, "spatial_compression_ratio"
    # diffusers warns when an attribute is asked for that lives in the config
    ratio = config[name] if name in config else getattr(module, name, None)
    ratio = ratio or config.get("scale_factor_spatial")
    blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
    if not ratio and not blocks:
        raise ValueError(
            f"{type(module).__name__} has no ratio: expected spatial_compression_ratio, "
            "scale_factor_spatial or block_out_channels in its config"
        )
    return int(ratio or 2 ** (len(blocks) - 1))


def as_vae(vae: Any) -> FrozenVAE:
    """Wrap a VAE in a `FrozenVAE`; one that is a `FrozenVAE` already is returned as it is.

    Args:
        vae: a diffusers autoencoder, an object of ComfyUI's duck type, or a `FrozenVAE`.

    Raises:
        ValueError: none of these, or one that `DiffusersVAE` or `ComfyVAE` refuses.
    """
    if isinstance(vae, FrozenVAE):
        return vae
    if isinstance(vae, nn.Module) and hasattr(vae, "encode") and hasattr(vae, "config"):
        return DiffusersVAE(vae)
    if hasattr(vae, "encode") and (hasattr(vae, "downscale_ratio") or hasattr(vae, "spacial_compression_encode")):
        return ComfyVAE(vae)
    raise ValueError(
        "vae must be a diffusers autoencoder, or have encode() and downscale_ratio or spacial_compression_encode() as "
        f"ComfyUI's VAE objects do; got {type(vae).__name__}"
    )


def load_vae(
    path: str = EMBEDDED, subfolder: str | None = None, dtype: str | None = None, compiled: bool = False
) -> FrozenVAE:
    """Load a diffusers autoencoder of any class from a folder or a hub name.

    Args:
        path: local folder, hub name, or "embedded:vae" for the small one that ships with this package.
        subfolder: folder inside `path`; "vae" for a whole pipeline's folder.
        dtype: float32 or bfloat16, kept whatever precision the trainer uses; float16 where the VAE bears it. The
            precision of the file does not matter. None for float32, unless the run's `speed` chooses bfloat16.
        compiled: compile its encode, which the first batch of each shape waits for; latents move by rounding.

    Raises:
        ValueError: an unknown dtype, or no autoencoder there.
    """
    from diffusers import AutoModel

    free, dtype = dtype is None, dtype or "float32"
    if dtype not in _DTYPES:
        raise ValueError(f"vae dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    path = local_folder(path)
    options = loading_options(path, "VAE")
    if weightless():
        vae = as_vae(runnable(config_model(path, subfolder, _DTYPES[dtype], **options)))
        vae.free_dtype = free
        return vae
    try:
        # low_cpu_mem_usage needs accelerate, which a VAE does not
        module = AutoModel.from_pretrained(
            path, subfolder=subfolder, torch_dtype=_DTYPES[dtype], low_cpu_mem_usage=False, **options
        )
    except OSError as error:
        raise ValueError(
            f"no diffusers autoencoder at {str(Path(path) / (subfolder or ''))!r}: expected a folder with config.json "
            f"and weights, or a hub name ({error})"
        ) from error
    vae = as_vae(module)
    vae.free_dtype = free
    if compiled:
        module.encode = torch.compile(module.encode)
    return vae
