"""What a denoiser or a ControlNet is fed: two types of layouts, and those that several base models share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.encoder import Fill, InpaintEncoder, InpaintLatents
from inpaint_module.morphology import REDUCTIONS, reduce_mask

GREY, BLACK = 0.5, 0.0


class Condition(ABC):
    """The condition of a ControlNet, or a network like it, which gets the noisy latents apart from this.

    Attributes:
        fill: what the encoder fills holes with, in pixel space 0..1.
        eats_masked: whether it is made of the masked image's latents.
        multiple: latent rows and columns must be multiples of it.
        call_with: how a pipeline is called that makes the same condition, of an image and a mask in 0..1.
    """

    fill: Fill = GREY
    eats_masked = True
    multiple = 1
    call_with = ""

    @abstractmethod
    def from_batch(self, encoder: InpaintEncoder, images: Tensor, masks: Tensor, latents: InpaintLatents) -> Tensor:
        """The condition of a batch.

        Args:
            encoder: what made `latents`.
            images: (B, 3, H, W), uint8 or float in 0..1.
            masks: (B, 1, H, W), bool.
            latents: of the images and masks.
        """

    @abstractmethod
    def in_channels(self, channels: int) -> int:
        """Channels of what comes out, over latents of C = `channels`."""

    @abstractmethod
    def check(self, encoder: InpaintEncoder) -> None:
        """Refuse an encoder whose latents are not what this condition's models know.

        Raises:
            ValueError: another fill, or latents that are not in the denoiser's space.
        """


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
        fill: what the encoder must fill holes with, in pixel space 0..1, or "smooth".
        multiple: latent rows and columns must be multiples of it, for models that take latents in patches.
        eats_masked: whether the masked image's latents are in it.
        served_reduce: the reduction of its pipelines.

    Raises:
        ValueError: an unknown reduction.
    """

    fill: Fill = GREY
    multiple = 1
    eats_masked = True
    served_reduce = "nearest"

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
        if self.eats_masked and encoder.fill != self.fill:
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
    """All of a denoiser's input, which starts with the noisy latents: `expand_input` relies on that.

    Attributes:
        blends: whether the pipelines put the known latents back after every step, as nothing tells the denoiser of
            them.
        reference: of edit models, what they are shown: masked, image for the whole one, or picture for one of the
            sample's own; None for others.
        own_loop: whether it is for a loop of your own alone, as its model learns more than `InpaintDiffusion` trains.
    """

    blends = False
    own_loop = False
    reference: str | None = None

    def known(self, latents: InpaintLatents) -> Tensor | None:
        """The known latents (B, C, h, w), where `blends`: those of the whole images."""
        return latents.target

    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """The denoiser's input, from noisy latents (B, C, h, w) and the encoder's result."""
        return self.assemble(noisy, *self._parts(noisy, latents))

    @abstractmethod
    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """The input from noisy latents and masked image (B, C, h, w) and mask cells (B, 1, h, w), 1 = inpaint."""


class PlainLayout(DenoiserLayout):
    """The noisy latents alone, for a base model as it is.

    Its inpaint pipelines blend: after every step they put the known latents back, as noisy as the step has left the
    others, see `inpaint_module.sampling`. So `reduce` tells which latents are known, and nothing to the denoiser.
    Matches `StableDiffusionInpaintPipeline` and `StableDiffusionXLInpaintPipeline` over a U-Net of 4 channels.
    """

    blends = True
    eats_masked = False

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, C, h, w), as they are."""
        return noisy

    def in_channels(self, channels: int) -> int:
        """C."""
        return channels


class PackedPlainLayout(PlainLayout):
    """The same in tokens of 2 x 2 latents, 4 C channels. Matches `FluxInpaintPipeline`."""

    multiple = 2

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 C)."""
        return pack(noisy)

    def in_channels(self, channels: int) -> int:
        """4 C."""
        return 4 * channels


class ReferenceLayout(PackedPlainLayout):
    """The tokens of the noisy latents, then those of a reference picture: (B, 2 * h/2 * w/2, 4 C), of edit models.

    Matches `FluxKontextInpaintPipeline` with a `image_reference` of the same size, which blends too.

    Args:
        reduce: as of `Layout`.
        reference: masked: the image with its hole filled with grey; image: the whole one, of samples with a target;
            picture: one of the sample's own, `batch["reference"]`.

    Attributes:
        reference_call: how the pipeline is shown what training showed, for `export`.

    Raises:
        ValueError: another reference.
    """

    eats_masked = True
    references: tuple[str, ...] = ("masked", "image", "picture")
    reference_call = (
        "shows the whole image, brought to a size of its own: call it with image_reference={}, a tensor, "
        "and _auto_resize=False"
    )

    def __init__(self, reduce: str = "nearest", reference: str = "masked"):
        super().__init__(reduce)
        if reference not in self.references:
            known = f"one of {', '.join(self.references)} for {type(self).__name__}"
            raise ValueError(f"base.reference: expected {known}, got {reference!r}")
        self.reference = reference

    def reference_pictures(self, encoder: InpaintEncoder, images: Tensor, masks: Tensor) -> Tensor:
        """The reference pictures, float (B, 3, H, W) in 0..1, of images and masks as the encoder takes them."""
        filled = encoder.fill_hole(images, masks)
        return filled.masked_image if self.reference == "masked" else filled.image

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, 2 * h/2 * w/2, 4 C)."""
        return torch.cat([pack(noisy), pack(masked)], dim=1)


class PackedNoisyLayout(PackedPlainLayout):
    """The same for a transformer beside a ControlNet, whose pipeline does not blend, as Qwen-Image's."""

    blends = False


def denoiser_layout(layout: Layout) -> DenoiserLayout:
    """The layout, if it is one that feeds a denoiser.

    Raises:
        ValueError: it is another, such as the condition of a ControlNet.
    """
    if isinstance(layout, DenoiserLayout):
        return layout
    reason = ""
    if isinstance(layout, Condition):
        reason = ", the condition of a ControlNet: a denoiser that is fed with it never sees the noisy latents"
    raise ValueError(
        "layout: expected a DenoiserLayout, such as StableDiffusionLayout (1.x, 2.x and XL), StableDiffusion3Layout or "
        f"FluxFillLayout, got {type(layout).__name__}{reason}"
    )
