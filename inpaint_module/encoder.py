"""The layer: an image and its hole become latents and a noise mask, as ComfyUI's VAEEncodeForInpaint makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from inpaint_module import morphology, randomness
from inpaint_module.fills import smooth_fill
from inpaint_module.pixels import SIZINGS, checked_mask, checked_pixels, to_unit_float
from inpaint_module.vae import FrozenVAE, as_vae

KERNELS: dict[str, Callable[[int], Tensor]] = {
    "square": morphology.square,
    "disk": morphology.disk,
    "diamond": morphology.diamond,
}

Fill = float | Literal["smooth"]


class InpaintLatents(NamedTuple):
    """What the encoder returns.

    Attributes:
        samples: float32 (B, C, h, w), latents of the image with its hole filled.
        noise_mask: float32 (B, 1, H', W') of 0 and 1, the grown mask on the cropped image; its batch is the mask's.
        target: float32 (B, C, h, w), latents of the whole image or of the picture that it should become, or None.
    """

    samples: Tensor
    noise_mask: Tensor
    target: Tensor | None = None


class FilledImages(NamedTuple):
    """What the VAE is given, and the mask beside it.

    Attributes:
        image: float32 (B, 3, H', W') in 0..1, sides multiples of the VAE's ratio.
        masked_image: the image with its hole filled; its batch is the larger of image and mask.
        noise_mask: float32 (B, 1, H', W') of 0 and 1, the grown mask; its batch is the mask's.
    """

    image: Tensor
    masked_image: Tensor
    noise_mask: Tensor


class InpaintEncoder(nn.Module):
    """Resize the mask to the image, crop both to the VAE's ratio, grow the mask, fill the hole, encode.

    With default arguments `samples` and `noise_mask` equal those of ComfyUI's `VAEEncodeForInpaint`. The VAE stays
    outside the module tree: frozen, in its own dtype, following `.to(device)`, absent from every state dict. Only the
    sha256 of its weights is saved, and loading a state that was trained with another VAE is refused.

    Args:
        vae: a diffusers autoencoder, an object of ComfyUI's duck type, or a `FrozenVAE`.
        grow_mask_by: side of the structuring element in pixels, 0..1024; 0 and 1 leave the mask as it is. A side is
            no radius: 6 grows 2 pixels up and left, 3 down and right, as the reference does.
        kernel: "square" (the reference's), "disk", "diamond", or a (kh, kw) tensor whose non-zero elements are the
            structuring element; a tensor is taken as it is and `grow_mask_by` is not used.
        radius: grow by this many pixels in every direction instead: a kernel of side 2 * radius + 1.
        cells: grow by this many latent cells in every direction instead: a radius of cells * ratio.
        fill: what the hole is filled with, 0..1 in pixel space; 0.5 is grey, 0 black. "smooth" for what meets the known
            pixels smoothly, see `smooth_fill`: for models of your own, as no published one was trained with it.
        posterior: "mode" (the reference's) or "sample", which needs `generator` at each call.
        sizing: "comfyui" (the reference's) crops images and masks, centred, to multiples of the VAE's ratio, resizes
            masks of another size bilinearly, and takes over 0.5 for the hole. "diffusers" resizes both to the multiples
            below, by Lanczos in bytes on the CPU, and takes 0.5 and over, as its pipelines do with PIL images. Of sizes
            that are multiples and masks without grey both make the same.
        normalize: scale latents to the denoiser's space, as the VAE's config says; the reference does not.
        max_batch: encode at most this many images at once; None for the batch: the masked images in one pass and the
            whole ones in another, so that the peak is that of any training. Twice the batch takes both in one, which a
            GPU does in 5 % less time and twice the memory.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> from inpaint_module import load_vae
        >>> encoder = InpaintEncoder(load_vae("embedded:vae"))
        >>> image, hole = torch.zeros(1, 3, 67, 64, dtype=torch.uint8), torch.ones(67, 64)
        >>> latents = encoder(image, hole, target=True)
        >>> latents.samples.shape, latents.noise_mask.shape, latents.target.shape
        (torch.Size([1, 16, 8, 8]), torch.Size([1, 1, 64, 64]), torch.Size([1, 16, 8, 8]))
    """

    vae: FrozenVAE
    kernel: Tensor

    def __init__(
        self,
        vae: FrozenVAE | nn.Module,
        grow_mask_by: int = 6,
        *,
        kernel: str | Tensor = "square",
        radius: int | None = None,
        cells: int | None = None,
        fill: Fill = 0.5,
        posterior: str = "mode",
        sizing: str = "comfyui",
        normalize: bool = False,
        max_batch: int | None = None,
    ):
        super().__init__()
        if fill != "smooth" and (not isinstance(fill, int | float) or not 0 <= fill <= 1):
            raise ValueError(f"fill must be a number in 0..1 (pixel space), or smooth; got {fill!r}")
        if posterior not in ("mode", "sample"):
            raise ValueError(f"posterior must be 'mode' or 'sample', got {posterior!r}")
        if sizing not in SIZINGS:
            raise ValueError(f"sizing must be one of {', '.join(SIZINGS)}; got {sizing!r}")
        if max_batch is not None and (not isinstance(max_batch, int) or max_batch < 1):
            raise ValueError(f"max_batch must be a whole number, at least 1, or None; got {max_batch!r}")
        self.__dict__["vae"] = as_vae(vae)  # past nn.Module's registration: see the class docstring
        self.fill, self.posterior, self.normalize, self.max_batch = fill, posterior, normalize, max_batch
        self.sizing, self._sizing = sizing, SIZINGS[sizing]
        element = _structuring_element(kernel, grow_mask_by, radius, cells, self.vae.ratio)
        self._kept = element  # outlives a stay on the meta device
        self.register_buffer("kernel", element, persistent=False)
        self._plan = morphology.plan_dilation(element)
        self._planned = self._kernel_state()
        if normalize:
            self.vae.normalize(torch.zeros(1, self.vae.channels, 1, 1))  # a VAE that cannot says so now

    def forward(
        self,
        pixels: Tensor,
        mask: Tensor,
        target: bool | Tensor = False,
        generator: torch.Generator | Tensor | None = None,
    ) -> InpaintLatents:
        """Encode a batch.

        Args:
            pixels: (B, 3 or 4, H, W), uint8 or float in 0..1; a fourth channel (alpha) is dropped.
            mask: (H, W), (B, H, W) or (B, 1, H, W), any dtype, in 0..1; over 0.5 = inpaint. Another size than the
                image's is resized, see `sizing`. Either batch may be 1.
            target: also encode the whole image; or what it should become, a tensor as `pixels`.
            generator: for posterior="sample": int64 keys (B,), which give the same noise on every device and in any
                batch, or a `torch.Generator`; "mode" needs none.

        Raises:
            ValueError: a generator of another kind, no tensors, an empty batch, shapes, dtypes or ranges other than
                these, NaN, or an image smaller than the VAE's ratio.
                Ranges of float pixels and of masks that are not bool are read back, which waits for a GPU; uint8
                pixels and bool masks never are, nor anything under `torch.compile`.
        """
        image, masked_image, noise_mask = self.fill_hole(pixels, mask)
        if isinstance(target, Tensor):
            image = self._checked_target(target, pixels)
        elif not target:
            (samples,) = self._encode([masked_image], generator)
            return InpaintLatents(samples, noise_mask)
        samples, whole = self._encode([masked_image, image], generator)
        return InpaintLatents(samples, noise_mask, whole.expand_as(samples))

    def _checked_target(self, target: Tensor, pixels: Tensor) -> Tensor:
        """A target as the VAE is given it.

        Raises:
            ValueError: another size or batch than the pixels'.
        """
        if target.ndim != 4 or (len(target), *target.shape[-2:]) != (len(pixels), *pixels.shape[-2:]):
            raise ValueError(
                f"target must be true, false or a picture for each of pixels, of their size {tuple(pixels.shape)}; "
                f"got {tuple(target.shape)}"
            )
        return self.crop(to_unit_float(checked_pixels(target, self.vae.ratio)))

    def fill_hole(self, pixels: Tensor, mask: Tensor) -> FilledImages:
        """All that `forward` does before the VAE; arguments and errors are those of `forward`."""
        pixels, mask = checked_pixels(pixels, self.vae.ratio), checked_mask(mask)
        if pixels.shape[0] != mask.shape[0] and 1 not in (pixels.shape[0], mask.shape[0]):
            raise ValueError(
                f"pixels and mask must have the same batch, or one of them 1; got {len(pixels)} and {len(mask)}"
            )
        hole = self._sizing.masks(mask.to(pixels.device), pixels.shape[-2:], self.vae.ratio)
        image = self.crop(to_unit_float(pixels))
        noise_mask = morphology.dilate(hole, self._current_plan()).float()
        return FilledImages(image, self.filled(image, hole), noise_mask)

    def filled(self, image: Tensor, hole: Tensor) -> Tensor:
        """An image float (B, 3, H, W) with a hole, bool (B, 1, H, W), filled as `fill` says."""
        if self.fill == "smooth":
            return smooth_fill(image.expand(max(len(image), len(hole)), -1, -1, -1), hole)
        # on a CPU 5 times faster than torch.where, and as exact: weights of 0 and 1 give either end to the bit
        return torch.lerp(image, image.new_full((), self.fill), hole.float())

    def crop(self, images: Tensor) -> Tensor:
        """Float pixels in 0..1, or bool masks, (..., H, W) at the sizes that `forward` gives them; see `sizing`."""
        sized = self._sizing.images(images, self.vae.ratio)
        return sized >= 0.5 if images.dtype == torch.bool and sized.dtype != torch.bool else sized

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of this encoder's space (B, C, h, w) to float32 pixels (B, 3, h * ratio, w * ratio) in 0..1."""
        return self.vae.decode(self.vae.denormalize(latents) if self.normalize else latents).clamp(0, 1)

    def _encode(self, groups: list[Tensor], generator: torch.Generator | Tensor | None) -> tuple[Tensor, ...]:
        """Latents of each group of images, each in a VAE pass of its own unless `max_batch` says otherwise."""
        _check_generator(generator, max(map(len, groups)))
        passes = groups if self.max_batch is None else torch.cat(groups).split(self.max_batch)
        parts = [self.vae.posterior(part) for part in passes]
        latents = torch.cat([part.mean for part in parts])
        if self.posterior == "sample":
            stds = [part.std for part in parts if part.std is not None]
            if not stds:
                raise ValueError(
                    "posterior='sample' needs a VAE with a Gaussian posterior; this one has none: use 'mode'"
                )
            latents = latents + torch.cat(stds) * _posterior_noise(groups, latents.shape, generator).to(latents)
        if self.normalize:
            latents = self.vae.normalize(latents)
        return latents.split([len(group) for group in groups])

    def _current_plan(self) -> morphology.DilationPlan:
        """The plan of the kernel buffer, made anew if someone has assigned or edited the buffer."""
        if not torch.compiler.is_compiling() and self._planned != self._kernel_state():
            self._plan, self._planned = morphology.plan_dilation(self.kernel), self._kernel_state()
        return self._plan

    def _kernel_state(self) -> tuple[int, int]:
        # a tensor made under inference_mode, as in a ComfyUI node, counts no versions
        return id(self.kernel), 0 if self.kernel.is_inference() else self.kernel._version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InpaintEncoder:
        self._kept = self._kept if self.kernel.is_meta else self.kernel
        super()._apply(fn, recurse)
        if not self.kernel.is_meta:
            self.kernel = self._kept.to(self.kernel.device)  # also after to_empty, which leaves no values
            self.vae.to(self.kernel.device)
        self._planned = self._kernel_state()  # a move changes no element
        return self

    def get_extra_state(self) -> Tensor:
        """The VAE's fingerprint, uint8 (32,), all that is saved of it; a tensor, since safetensors takes no other."""
        return torch.tensor(list(self.vae.fingerprint()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor | Mapping[str, str]) -> None:
        """Refuse a state that was trained with another VAE; older checkpoints have `{"vae_sha256": hex}`.

        Raises:
            ValueError: the fingerprints differ.
        """
        saved = bytes(state.tolist()).hex() if isinstance(state, Tensor) else state["vae_sha256"]
        here = self.vae.fingerprint().hex()
        if saved != here:
            raise ValueError(
                f"this state was trained with a VAE whose weights have sha256 {saved[:16]}..., but the encoder holds "
                f"{here[:16]}...; load the same VAE in the same dtype"
            )


def _structuring_element(kernel: str | Tensor, size: int, radius: int | None, cells: int | None, ratio: int) -> Tensor:
    if isinstance(kernel, Tensor):
        if kernel.is_meta:
            raise ValueError("kernel must hold values, got a tensor on the meta device, which holds none")
        if kernel.is_floating_point() and not kernel.isfinite().all():
            raise ValueError("kernel must hold finite values, of which those other than 0 count; got NaN or infinity")
        return kernel.detach().clone() != 0
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be a tensor or one of {', '.join(KERNELS)}; got {kernel!r}")
    if radius is not None and cells is not None:
        raise ValueError("give radius (pixels) or cells (latent cells), not both")
    if cells is not None:
        radius = cells * ratio
    if radius is not None and radius < 0:
        raise ValueError(f"radius and cells must not be negative, got {radius if cells is None else cells}")
    default = torch.get_default_device()
    with torch.device("cpu" if default.type == "meta" else default):  # the dilation is planned from its elements
        return KERNELS[kernel](size if radius is None else 2 * radius + 1)


def _check_generator(generator: object, batch: int) -> None:
    """Refuse what is no generator, also where the posterior's mode needs none."""
    if isinstance(generator, Tensor):  # asked first: of a tensor torch.compile cannot ask whether it is a Generator
        if generator.shape != (batch,) or generator.dtype != torch.int64:
            raise ValueError(f"generator keys must be int64 ({batch},), got {generator.dtype} {tuple(generator.shape)}")
    elif generator is not None and not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise ValueError(f"generator: expected int64 keys ({batch},), a torch.Generator or None, got {kind}")


def _posterior_noise(groups: list[Tensor], shape: torch.Size, generator: torch.Generator | Tensor | None) -> Tensor:
    """Standard normal noise for the stacked groups; the n-th group draws its own from each sample's key."""
    if generator is None:
        raise ValueError("posterior='sample' needs a generator: int64 keys (B,), or a torch.Generator")
    if not isinstance(generator, Tensor):  # in this form it compiles
        return torch.randn(shape, generator=generator, device=generator.device)
    size = 2 * math.ceil(shape[1:].numel() / 2)
    noise = [
        randomness.normal(generator[: len(group)], shape[1:], offset=index * size) for index, group in enumerate(groups)
    ]
    return torch.cat(noise)
