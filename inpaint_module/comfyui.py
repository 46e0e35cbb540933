"""A ComfyUI node: `VAEEncodeForInpaint` over this package's encoder, so that serving and training share one code.

Put the folder `inpaint_module` into ComfyUI's `custom_nodes`, copied or linked; it needs nothing but ComfyUI's own
torch. Or install the package with pip into ComfyUI's Python, and put a file into `custom_nodes` that says
`from inpaint_module.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inpaint_module.encoder import InpaintEncoder


class VAEEncodeForInpaint:
    """Fill the hole with grey, encode, and grow the noise mask, with ComfyUI's declarations and its numbers.

    The latents and masks equal those of the node of the same name, and come from the layer that a denoiser was
    trained with. Beyond that node: RGBA images, one image with many masks, masks of any dtype, dilation whose cost does
    not grow with the square of `grow_mask_by`, and an error instead of NaN latents. A video VAE takes the batch for the
    frames of one video, as there.
    """

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "latent/inpaint"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs and their ranges, as ComfyUI asks for them."""
        return {
            "required": {
                "pixels": ("IMAGE",),
                "vae": ("VAE",),
                "mask": ("MASK",),
                "grow_mask_by": ("INT", {"default": 6, "min": 0, "max": 64, "step": 1}),
            }
        }

    def encode(self, vae: Any, pixels: Tensor, mask: Tensor, grow_mask_by: int = 6) -> tuple[dict[str, Tensor]]:
        """Encode a batch of images.

        Args:
            vae: ComfyUI's VAE object; a diffusers autoencoder also does.
            pixels: (B, H, W, 3 or 4) float in 0..1; what a bicubic resize left outside is clipped.
            mask: (H, W), (B, H, W) or (B, 1, H, W), 1 = inpaint; clipped likewise.
            grow_mask_by: side of the square that grows the noise mask, in pixels.

        Returns:
            One LATENT: `samples`, unscaled, (B, C, h, w), or (1, C, T, h, w) of a video VAE, and `noise_mask`
            (B, 1, H', W') of 0 and 1.

        Raises:
            ValueError: as `InpaintEncoder`, or the VAE makes NaN or infinite latents.
        """
        encoder = InpaintEncoder(vae, grow_mask_by)
        filled = encoder.fill_hole(_clipped(pixels).movedim(-1, 1), _clipped(mask))
        samples = encoder.vae.encode(filled.masked_image)
        if not samples.isfinite().all():
            raise ValueError(
                f"vae: expected finite latents, got NaN or infinite ones from {encoder.vae.name}; most VAEs that do so "
                "overflow in float16: start ComfyUI with --fp32-vae or --bf16-vae, or load another VAE"
            )
        return ({"samples": samples, "noise_mask": filled.noise_mask},)


def _clipped(x: Tensor) -> Tensor:
    """Floats to 0..1; NaN stays, for the encoder to refuse."""
    return x.clamp(0, 1) if x.is_floating_point() else x


# not ComfyUI's own key, which it would silently skip here: both nodes can be in one workflow
NODE_CLASS_MAPPINGS = {"InpaintModuleVAEEncodeForInpaint": VAEEncodeForInpaint}
NODE_DISPLAY_NAME_MAPPINGS = {"InpaintModuleVAEEncodeForInpaint": "VAE Encode (for Inpainting, inpaint_module)"}
