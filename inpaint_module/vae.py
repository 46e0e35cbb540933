"""A frozen autoencoder behind one face: pixels in 0..1 to raw latents and back, and raw latents to model space.

`as_vae` takes a diffusers autoencoder or an object of ComfyUI's duck type. What the classes do not agree on (what
`encode` returns, the number of axes, the ratio, how latents are scaled) is settled here and nowhere else.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

EMBEDDED = "embedded:vae"


class Posterior(NamedTuple):
    """What a VAE says of an image: `mean` and `std` of its latents, float32 (B, C, h, w); `std` None if it has none."""

    mean: Tensor
    std: Tensor | None


class FrozenVAE(ABC):
    """An autoencoder that never trains: always in eval mode, without gradients, in its own dtype, shared by deepcopy.

    It is no `nn.Module` on purpose: held by a module, it stays out of that module's state dict, `.train()`, dtype
    casts, DDP, FSDP and EMA.

    Attributes:
        ratio: pixels per latent cell and side.
        channels: latent channels C.
    """

    ratio: int
    channels: int

    @abstractmethod
    def posterior(self, pixels: Tensor) -> Posterior:
        """Encode float32 (B, 3, H, W) in 0..1, sides multiples of `ratio`, to unscaled (B, C, H/ratio, W/ratio)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode unscaled (B, C, h, w) to float32 (B, 3, h * ratio, w * ratio), about 0..1, not clamped."""

    @abstractmethod
    def normalize(self, latents: Tensor) -> Tensor:
        """Unscaled latents to the space in which the denoiser works, about zero mean and unit variance."""

    @abstractmethod
    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the weights; their dtype stays."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """The sha256 of the weights, 32 bytes, computed once."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenVAE:
        return self


class DiffusersVAE(FrozenVAE):
    """Any 2-D diffusers autoencoder, and the video ones frame by frame.

    Args:
        module: AutoencoderKL, AutoencoderTiny, AutoencoderDC, AutoencoderKLFlux2, AutoencoderKLQwenImage,
            AutoencoderKLWan, AutoencoderKLHunyuanImage, VQModel, AsymmetricAutoencoderKL or alike. It is frozen in
            place: eval mode, no gradients, channels_last weights (four times faster on a CPU, same values to rounding).

    Raises:
        ValueError: float16 weights of a VAE that overflows in float16 (`force_upcast`), or an `encode` that does not
            shrink a small test image by a whole ratio.
    """

    def __init__(self, module: nn.Module):
        self.module = module.eval().requires_grad_(False)
        if self.module.config.get("force_upcast") and self.dtype == torch.float16:
            raise ValueError(
                "this VAE overflows in float16 (its config says force_upcast); load it with torch_dtype=torch.float32 "
                "or torch.bfloat16"
            )
        self._digest: bytes | None = None
        self.is_video, self.patch = self._is_video(), self._patch()
        guess = self._claimed_ratio()
        if not self.is_video:
            self.module.to(memory_format=torch.channels_last)
        probe = self.posterior(torch.full((1, 3, 2 * guess, 2 * guess), 0.5, device=self.device)).mean
        if probe.ndim != 4 or not probe.shape[-1] or 2 * guess % probe.shape[-1]:
            raise ValueError(
                f"{type(module).__name__} claims ratio {guess} but encodes {2 * guess} x {2 * guess} pixels to latents "
                f"of shape {tuple(probe.shape)}"
            )
        self.ratio = 2 * guess // probe.shape[-1]
        self.channels = probe.shape[1]
        self._shift, self._scale = self._statistics()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which everything inside is computed."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> Posterior:
        """See `FrozenVAE.posterior`."""
        images = (pixels * 2 - 1).to(self.dtype)
        with self._own_rules(pixels.device):
            out = self.module.encode(self._enter(images))
            if hasattr(out, "latent_dist"):
                mean, std = out.latent_dist.mean, out.latent_dist.std
            else:
                mean, std = (out.latents if hasattr(out, "latents") else out.latent), None
            return Posterior(self._leave(mean), None if std is None else self._leave(std))

    def decode(self, latents: Tensor) -> Tensor:
        """See `FrozenVAE.decode`."""
        if self.patch > 1:
            latents = _unpatchify(latents, self.patch)
        with self._own_rules(latents.device):
            images = self.module.decode(self._enter(latents.to(self.dtype))).sample
            return (images[:, :, 0] if self.is_video else images).float() / 2 + 0.5

    def normalize(self, latents: Tensor) -> Tensor:
        """(z - shift) * scale, with the statistics of the module's config (or of its batch norm, Flux.2)."""
        return (latents - self._shift.to(latents)) * self._scale.to(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """z / scale + shift."""
        return latents / self._scale.to(latents) + self._shift.to(latents)

    def to(self, device: torch.device) -> None:
        """See `FrozenVAE.to`."""
        if device != self.device:
            self.module.to(device)
            self._shift, self._scale = self._shift.to(device), self._scale.to(device)

    def fingerprint(self) -> bytes:
        """The sha256 over names, dtypes, shapes and bytes of the state dict."""
        if self._digest is None:
            digest = hashlib.sha256()
            for name, value in sorted(self.module.state_dict().items()):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._digest = digest.digest()
        return self._digest

    def _own_rules(self, device: torch.device) -> torch.autocast:
        """Eval mode and the module's own dtype, whatever the caller's autocast and `.train()` say."""
        if self.module.training:
            self.module.eval()
        return torch.autocast(device.type, enabled=False)

    def _enter(self, x: Tensor) -> Tensor:
        if self.is_video:
            return x.unsqueeze(2)
        return x.contiguous(memory_format=torch.channels_last)

    def _leave(self, latents: Tensor) -> Tensor:
        latents = (latents[:, :, 0] if self.is_video else latents).float().contiguous()
        return _patchify(latents, self.patch) if self.patch > 1 else latents

    def _is_video(self) -> bool:
        first = next(m for m in self.module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
        return isinstance(first, nn.Conv3d)

    def _patch(self) -> int:
        """Flux.2 folds 2 x 2 latents into channels before its batch norm; elsewhere 1."""
        return self.module.config.patch_size[0] if hasattr(self.module, "bn") else 1

    def _claimed_ratio(self) -> int:
        config = self.module.config
        ratio = getattr(self.module, "spatial_compression_ratio", None) or config.get("spatial_compression_ratio")
        ratio = ratio or config.get("scale_factor_spatial")
        if not ratio:
            blocks = next(config[k] for k in ("block_out_channels", "encoder_block_out_channels") if config.get(k))
            ratio = 2 ** (len(blocks) - 1)
        return int(ratio) * self.patch

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, float32 (C, 1, 1) each, on the module's device."""
        config, shape = self.module.config, (self.channels, 1, 1)
        if hasattr(self.module, "bn"):
            bn = self.module.bn
            shift, std, factor = bn.running_mean, (bn.running_var + config.batch_norm_eps).sqrt(), 1.0
        else:
            shift = config.get("latents_mean") or config.get("shift_factor") or 0.0
            std = config.get("latents_std") or 1.0
            factor = config.get("scaling_factor") or 1.0
        return _column(shift, self.device).expand(shape), (factor / _column(std, self.device)).expand(shape)


class ComfyVAE(FrozenVAE):
    """An object of ComfyUI's duck type: `encode(pixels (B, H, W, 3) in 0..1)` returns unscaled latents, `decode` back.

    ComfyUI places the weights itself, and keeps the scaling of latents in the diffusion model, not in the VAE.

    Args:
        vae: has `encode`, and `spacial_compression_encode()` (since 2026, spelt so) or `downscale_ratio`.
    """

    def __init__(self, vae: Any):
        self.vae = vae
        spacial = getattr(vae, "spacial_compression_encode", None)
        self.ratio = int(spacial() if spacial else vae.downscale_ratio)
        self.channels = self.posterior(torch.full((1, 3, 2 * self.ratio, 2 * self.ratio), 0.5)).mean.shape[1]

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> Posterior:
        """See `FrozenVAE.posterior`; `std` is None, since ComfyUI gives the mode only."""
        with torch.autocast(pixels.device.type, enabled=False):
            return Posterior(self.vae.encode(pixels.movedim(1, -1)).to(pixels.device, torch.float32), None)

    def decode(self, latents: Tensor) -> Tensor:
        """See `FrozenVAE.decode`."""
        return self.vae.decode(latents).to(latents.device, torch.float32).movedim(-1, 1)

    def normalize(self, latents: Tensor) -> Tensor:
        """Not known to ComfyUI's VAE objects.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "normalize needs a diffusers autoencoder: ComfyUI keeps the scaling of latents in the diffusion model"
        )

    denormalize = normalize

    def to(self, device: torch.device) -> None:
        """Nothing: ComfyUI moves its weights itself."""

    def fingerprint(self) -> bytes:
        """The sha256 of the latents of a fixed gradient image, since the weights may not be at hand."""
        ramp = torch.linspace(0, 1, 4 * self.ratio)
        image = torch.stack([ramp.expand(len(ramp), -1), ramp[:, None].expand(-1, len(ramp)), ramp.flip(0).outer(ramp)])
        return hashlib.sha256(self.posterior(image[None]).mean.cpu().contiguous().numpy().tobytes()).digest()


def as_vae(vae: Any) -> FrozenVAE:
    """Put a VAE behind `FrozenVAE`; one that is already there is returned as it is.

    Raises:
        ValueError: neither a diffusers autoencoder nor ComfyUI's duck type.
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


def load_vae(path: str = EMBEDDED, subfolder: str | None = None, dtype: str = "float32") -> FrozenVAE:
    """Load a diffusers autoencoder of any class from a folder or a hub name.

    Args:
        path: local folder, hub name, or "embedded:vae" for the small one that ships with this package.
        subfolder: folder inside `path`; "vae" for a whole pipeline's folder.
        dtype: float32 or bfloat16, kept whatever precision the trainer uses; float16 where the VAE bears it.

    Raises:
        ValueError: an unknown dtype, or a folder without an autoencoder.
    """
    from diffusers import AutoModel

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"vae dtype must be float32, bfloat16 or float16; got {dtype!r}")
    if path == EMBEDDED:
        path = str(Path(__file__).parents[1] / "datamodules" / "embedded" / "vae")
    if Path(path).is_dir() and not (Path(path) / (subfolder or "") / "config.json").is_file():
        raise ValueError(f"no config.json in {Path(path) / (subfolder or '')}: expected a diffusers autoencoder folder")
    return as_vae(AutoModel.from_pretrained(path, subfolder=subfolder, torch_dtype=getattr(torch, dtype)))


def _column(values: Any, device: torch.device) -> Tensor:
    """A number or C of them as float32 (1 or C, 1, 1)."""
    return torch.as_tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)


def _patchify(x: Tensor, p: int) -> Tensor:
    """(B, C, h, w) to (B, C * p * p, h / p, w / p)."""
    return torch.nn.functional.pixel_unshuffle(x, p)


def _unpatchify(x: Tensor, p: int) -> Tensor:
    return torch.nn.functional.pixel_shuffle(x, p)
