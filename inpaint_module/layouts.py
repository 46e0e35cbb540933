"""How each base model wants its conditioning: one class per layout, from the encoder's result to the model's input.

There are two kinds: a `DenoiserLayout` is all that a denoiser eats, noisy latents included; a `ControlNetCondition` is
what a second network beside it is told, which eats the noisy latents apart.

Defaults are those of the pipeline that the layout matches: with `grow_mask_by=0`, `normalize=True` and the layout's
`fill` in the encoder, what comes out equals tensor for tensor what that pipeline hands its denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.encoder import InpaintEncoder, InpaintLatents
from inpaint_module.morphology import REDUCTIONS, reduce_mask

GREY, BLACK = 0.5, 0.0


def pack(latents: Tensor) -> Tensor:
    """Fold 2 x 2 latents into a token, row by row: (B, C, h, w) -> (B, h/2 * w/2, 4 C), as Flux and Qwen-Image do.

    Raises:
        ValueError: an odd h or w.
    """
    if latents.shape[-2] % 2 or latents.shape[-1] % 2:
        raise ValueError(
            f"packing needs an even number of latent rows and columns, got {latents.shape[-2]} x {latents.shape[-1]}; "
            "image sides must be multiples of twice the VAE's ratio"
        )
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for latents of h = `height`, w = `width`: (B, h/2 * w/2, 4 C) -> (B, C, h, w)."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


class Layout(ABC):
    """What the two kinds have in common.

    Args:
        reduce: how the mask comes to the latent grid: max, area, bilinear, comfyui, nearest or nearest-exact. The
            pipelines take "nearest", which forgets strokes that miss the top-left pixel of a cell; ComfyUI looks at the
            middle four, rounded ("comfyui"); "max" forgets nothing.

    Attributes:
        fill: what the encoder must fill holes with, in pixel space 0..1.
        multiple: latent rows and columns must be multiples of it, for models that take latents in patches.

    Raises:
        ValueError: an unknown reduction.
    """

    fill = GREY
    multiple = 1

    def __init__(self, reduce: str = "nearest"):
        known = [name for name in REDUCTIONS if name != "space-to-depth"]
        if reduce not in known:
            raise ValueError(f"reduce must be one of {', '.join(known)}; got {reduce!r}")
        self.reduce = reduce

    @abstractmethod
    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """From noisy latents (B, C, h, w) and the encoder's result to what a model eats."""

    @abstractmethod
    def in_channels(self, channels: int) -> int:
        """Channels of what comes out, over latents of C = `channels`."""

    def cells(self, latents: InpaintLatents) -> Tensor:
        """The noise mask on the latent grid: (B, 1, h, w), the batch that of the latents."""
        mask, samples = latents.noise_mask, latents.samples
        cells = reduce_mask(mask, mask.shape[-1] // samples.shape[-1], self.reduce)
        return cells.expand(len(samples), -1, -1, -1)

    def check(self, encoder: InpaintEncoder) -> None:
        """Refuse an encoder whose latents are not what this layout's models know.

        Raises:
            ValueError: another fill, or latents that are not in the denoiser's space.
        """
        name = type(self).__name__
        if encoder.fill != self.fill:
            raise ValueError(f"{name} expects an encoder with fill={self.fill}, got fill={encoder.fill}")
        if not encoder.normalize:
            raise ValueError(f"{name} expects an encoder with normalize=True, got normalize=False")

    def _parts(self, noisy: Tensor, latents: InpaintLatents) -> tuple[Tensor, Tensor]:
        """Mask cells and masked image, with the dtype and device of the noisy latents."""
        (height, width), multiple = latents.samples.shape[-2:], self.multiple
        if height % multiple or width % multiple:
            pixels = multiple * (latents.noise_mask.shape[-1] // width)
            raise ValueError(
                f"{type(self).__name__} expects latent rows and columns that are multiples of {multiple}, got "
                f"{height} x {width}; image sides must be multiples of {pixels} pixels"
            )
        return self.cells(latents).to(noisy), latents.samples.to(noisy)


class DenoiserLayout(Layout):
    """All that a denoiser eats, which starts with the noisy latents: `denoisers.surgery` relies on that."""

    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """The denoiser's input, from noisy latents (B, C, h, w) and the encoder's result."""
        return self.assemble(noisy, *self._parts(noisy, latents))

    @abstractmethod
    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """The input from noisy latents and masked image (B, C, h, w) and mask cells (B, 1, h, w), 1 = inpaint."""


class ControlNetCondition(Layout):
    """What a ControlNet, or a network like it, is told beside a denoiser; it gets the noisy latents apart from this."""

    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """The condition, from the encoder's result; of the noisy latents (B, C, h, w) it takes dtype and device."""
        return self.assemble(*self._parts(noisy, latents))

    @abstractmethod
    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """The condition from mask cells (B, 1, h, w), 1 = inpaint, and masked image (B, C, h, w)."""


class StableDiffusionLayout(DenoiserLayout):
    """Stable Diffusion 1.5, 2 and XL inpainting, 9 channels: noisy, mask (1 = inpaint), masked image.

    Matches `StableDiffusionInpaintPipeline` and `StableDiffusionXLInpaintPipeline` of diffusers.
    """

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, 2 C + 1, h, w)."""
        return torch.cat([noisy, cells, masked], dim=1)

    def in_channels(self, channels: int) -> int:
        """2 C + 1."""
        return 2 * channels + 1


class StableDiffusion3Layout(StableDiffusionLayout):
    """Stable Diffusion 3 inpainting, 33 channels: noisy, mask (1 = inpaint), masked image.

    Matches `StableDiffusion3InpaintPipeline` of diffusers with a 33-channel transformer.
    """

    multiple = 2  # patches of 2 x 2


class PowerPaintLayout(StableDiffusionLayout):
    """PowerPaint v1, 9 channels: as Stable Diffusion inpainting, but the hole is black.

    Follows open-mmlab/PowerPaint `train_ppt1_sd15.py` of its dev branch. The pipeline of its main branch fills with
    grey; for weights that it serves, take `StableDiffusionLayout`.
    """

    fill = BLACK


class LatentDiffusionLayout(StableDiffusionLayout):
    """LDM inpainting, 7 channels: noisy, masked image with a black hole, mask as -1 (keep) and +1 (inpaint).

    Follows CompVis/latent-diffusion `scripts/inpaint.py` (Rombach et al. 2022).
    """

    fill = BLACK

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, 2 C + 1, h, w)."""
        return torch.cat([noisy, masked, 2 * cells - 1], dim=1)


class FluxFillLayout(DenoiserLayout):
    """Flux.1 Fill, 384 channels a token: noisy 64, masked image 64, all 8 x 8 mask pixels of its 2 x 2 cells 256.

    Matches `FluxFillPipeline` of diffusers. No mask pixel is lost, so there is no reduction to choose.
    """

    RATIO = 8
    multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.reduce = "space-to-depth"

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 (2 C + 64)); `cells` are (B, 64, h, w)."""
        return pack(torch.cat([noisy, masked, cells], dim=1))

    def in_channels(self, channels: int) -> int:
        """4 (2 C + 64)."""
        return 4 * (2 * channels + self.RATIO**2)

    def check(self, encoder: InpaintEncoder) -> None:
        """As `Layout.check`; 384 channels need a VAE of ratio 8 too."""
        super().check(encoder)
        if encoder.vae.ratio != self.RATIO:
            raise ValueError(f"FluxFillLayout expects a VAE of ratio {self.RATIO}, got ratio {encoder.vae.ratio}")


class StableDiffusion3ControlNetLayout(ControlNetCondition):
    """Condition of the Stable Diffusion 3 inpaint ControlNet, 17 channels: masked image, mask (1 = keep), hole black.

    Matches `StableDiffusion3ControlNetInpaintingPipeline` of diffusers (`controlnet_cond`).
    """

    fill = BLACK
    multiple = 2

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, C + 1, h, w)."""
        return torch.cat([masked, 1 - cells], dim=1)

    def in_channels(self, channels: int) -> int:
        """C + 1."""
        return channels + 1


class BrushNetLayout(StableDiffusion3ControlNetLayout):
    """Condition of BrushNet over Stable Diffusion 1.5 or XL, 5 channels: masked image, mask (1 = keep), hole black.

    Follows TencentARC/BrushNet `pipeline_brushnet.py` (`brushnet_cond`), and so does PowerPaint v2.
    """

    multiple = 1


class QwenImageControlNetLayout(StableDiffusion3ControlNetLayout):
    """Condition of the Qwen-Image inpaint ControlNet, 68 channels a token: masked image, mask (1 = keep), hole black.

    Matches `QwenImageControlNetInpaintPipeline` of diffusers (`controlnet_cond`).
    """

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 (C + 1))."""
        return pack(super().assemble(cells, masked))

    def in_channels(self, channels: int) -> int:
        """4 (C + 1)."""
        return 4 * super().in_channels(channels)


class FluxInpaintControlNetLayout(QwenImageControlNetLayout):
    """Condition of alimama's Flux inpaint ControlNet, 68 channels a token: masked image, mask (1 = keep), hole black.

    Follows alimama-creative/FLUX-Controlnet-Inpainting; diffusers has no Flux ControlNet with room for a mask.
    """


class FluxControlNetLayout(ControlNetCondition):
    """Condition of a Flux ControlNet in diffusers, 64 channels a token: the masked image alone.

    Matches `FluxControlNetInpaintPipeline` of diffusers when its `control_image` is the image with a grey hole. That
    pipeline also packs the mask, but for blending and callbacks: its ControlNet is never told.
    """

    multiple = 2

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 C)."""
        return pack(masked)

    def in_channels(self, channels: int) -> int:
        """4 C."""
        return 4 * channels


class ZImageControlNetLayout(ControlNetCondition):
    """Condition of the Z-Image inpaint ControlNet, 33 channels, one frame: control, mask (1 = keep), masked image.

    Matches `ZImageControlNetInpaintPipeline` of diffusers (`control_context`), which always has a control image;
    without one the control is zero, as in aigc-apps/VideoX-Fun `pipeline_z_image_control.py`.
    """

    multiple = 2

    def __call__(self, noisy: Tensor, latents: InpaintLatents, control: Tensor | None = None) -> Tensor:
        """As `ControlNetCondition`; `control` are normalized latents (B, C, h, w), such as of a pose, or None."""
        condition = super().__call__(noisy, latents)
        control = torch.zeros_like(noisy) if control is None else control.to(noisy)
        return torch.cat([control, condition], dim=1).unsqueeze(2)

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """The part after the control: (B, C + 1, h, w)."""
        return torch.cat([1 - cells, masked], dim=1)

    def in_channels(self, channels: int) -> int:
        """2 C + 1."""
        return 2 * channels + 1
