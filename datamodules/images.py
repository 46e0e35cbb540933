"""Images: bytes -> an upright RGB picture, cropped and resized.

Decoding is Pillow's with the three formats named: no other codec is ever tried on a file that lies about its suffix.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.crops import Box, Crop

FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height
_GAP = 2.0  # fast reductions (JPEG's DCT scaling, box averages) stop at twice the final size, as Pillow's thumbnail


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header of a JPEG, PNG or WEBP; no pixel is decoded yet.

    Raises:
        ValueError: if the header announces more than `max_pixels` pixels, or none.
    """
    image = Image.open(BytesIO(data), formats=FORMATS)
    if not 0 < image.width * image.height <= max_pixels:
        raise ValueError(f"expected 1 to {max_pixels} pixels, got {image.width} x {image.height}")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the EXIF rotation is applied."""
    turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def has_alpha(image: Image.Image) -> bool:
    """Whether some pixels may be transparent, by the header."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def to_rgb(image: Image.Image, background: tuple[int, int, int] | None = (255, 255, 255)) -> Image.Image:
    """Any mode -> RGB: 16-bit grey is scaled (Pillow's convert clips it), alpha is laid over `background`.

    Without a background the colours hidden under transparent pixels come out as they are in the file.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if has_alpha(image):
        image = image.convert("RGBA")
        if background is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_box(box: Box, size: tuple[int, int], new: tuple[int, int]) -> Box:
    """A box of an image of `size` (width, height), in pixels of the same image at `new` size."""
    x, y = new[0] / size[0], new[1] / size[1]
    return box[0] * x, box[1] * y, min(box[2] * x, new[0]), min(box[3] * y, new[1])


def resize_crop(
    image: Image.Image, crop: Crop, size: tuple[int, int], frame: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Crop an upright image of any resolution, resize it to `size` (H, W) and flip it; as in `crop_image`."""
    box = _scale_box(crop.box, frame, image.size)
    image = image.resize((size[1], size[0]), resample, box=box, reducing_gap=_GAP)
    return ImageOps.mirror(image) if crop.flip else image


def crop_image(
    image: Image.Image,
    crop: Crop,
    size: tuple[int, int],
    frame: tuple[int, int],
    background: tuple[int, int, int] | None = (255, 255, 255),
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Decode, turn upright, crop and resize in one pass.

    Args:
        image: an image whose pixels are not decoded yet.
        crop: its box is in pixels of `frame`.
        size: the target, (H, W) pixels.
        frame: width and height of the picture that the crop was chosen for; the upright image may have another.
        background: RGB, 0..255, under transparent pixels; None shows the colours that they hide.
        resample: Pillow's filter.

    Returns:
        An RGB image of `size`.
    """
    reduction = min((crop.box[2] - crop.box[0]) / size[1], (crop.box[3] - crop.box[1]) / size[0]) / _GAP
    if image.format == "JPEG" and reduction > 1:
        image.draft(None, (int(image.width / reduction), int(image.height / reduction)))
    return resize_crop(to_rgb(ImageOps.exif_transpose(image), background), crop, size, frame, resample)


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def crop_mask(mask: Image.Image, crop: Crop, size: tuple[int, int], frame: tuple[int, int]) -> Tensor:
    """Send an upright mask (mode L, any resolution) through its image's crop; bool (1, H, W), above one half."""
    cropped = resize_crop(mask, crop, size, frame, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(cropped))[None] >= 128
