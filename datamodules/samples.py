"""Samples: the bytes of one sample -> an upright, cropped uint8 image, its caption and its own mask if it has one.

Decoding is Pillow's with the three formats named: no other codec is ever tried on a file that lies about its suffix.
The crop and the flip are functions of (seed, position), so that neither workers nor restarts change them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.shards import IMAGE_FIELDS, MASK_FIELDS, RawSample
from inpaint_module.randomness import Stream, key, uniform

FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height
_GAP = 2.0  # fast reductions (JPEG's DCT scaling, box averages) stop at twice the final size, as Pillow's thumbnail
_DRAWS = 64  # positions whose crops are drawn at once

Box = tuple[float, float, float, float]


class Crop(NamedTuple):
    """`box` is (left, top, right, bottom) in pixels of the upright image; `flip` mirrors it left to right."""

    box: Box
    flip: bool


# ---------------------------------------------------------------------------------------------------------------
# Where to crop


def largest_box(width: int, height: int, aspect: float) -> tuple[float, float]:
    """Width and height of the largest rectangle of `aspect` (width / height) inside the image, in pixels."""
    return (width, width / aspect) if width < height * aspect else (height * aspect, height)


def centre_crop(width: int, height: int, size: tuple[int, int]) -> Crop:
    """The largest centred rectangle of the aspect of `size` (H, W)."""
    w, h = largest_box(width, height, size[1] / size[0])
    left, top = (width - w) / 2, (height - h) / 2
    return Crop((left, top, left + w, top + h), flip=False)


def random_crop(
    width: int, height: int, size: tuple[int, int], draws: Sequence[float], min_scale: float, flip: float
) -> Crop:
    """A rectangle of the aspect of `size` (H, W), placed anywhere in the image.

    Its side is `min_scale` to 1 of the largest that fits, but never so small that the crop would be enlarged.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: the target, (H, W) pixels.
        draws: four numbers in [0, 1): scale, left, top, flip.
        min_scale: the smallest side, as a share of the largest that fits.
        flip: the probability of a mirrored crop.
    """
    w, h = largest_box(width, height, size[1] / size[0])
    low = min(1.0, max(min_scale, size[1] / w))
    scale = low + draws[0] * (1 - low)
    w, h = w * scale, h * scale
    left, top = draws[1] * (width - w), draws[2] * (height - h)
    return Crop((left, top, min(left + w, width), min(top + h, height)), flip=draws[3] < flip)


@lru_cache(maxsize=8)
def _block_draws(seed: int, block: int) -> list[list[float]]:
    positions = torch.arange(block * _DRAWS, (block + 1) * _DRAWS)
    place = uniform(key(seed, positions, Stream.CROP), 3)
    return torch.cat([place, uniform(key(seed, positions, Stream.FLIP), 1)], dim=1).tolist()


def crop_draws(seed: int, position: int) -> list[float]:
    """The four numbers in [0, 1) of `random_crop` for one position, drawn 64 positions at a time."""
    return _block_draws(seed, position // _DRAWS)[position % _DRAWS]


# ---------------------------------------------------------------------------------------------------------------
# Decoding


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


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Any mode -> RGB: 16-bit grey is scaled (Pillow's convert clips it), alpha is laid over `background`."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, (*background, 255)), top)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_box(box: Box, size: tuple[int, int], new: tuple[int, int]) -> Box:
    """A box of an image of `size` (width, height), in pixels of the same image at `new` size."""
    x, y = new[0] / size[0], new[1] / size[1]
    return box[0] * x, box[1] * y, min(box[2] * x, new[0]), min(box[3] * y, new[1])


def crop_image(
    image: Image.Image,
    crop: Crop,
    size: tuple[int, int],
    frame: tuple[int, int],
    background: tuple[int, int, int] = (255, 255, 255),
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Decode, turn upright, crop and resize in one pass.

    Args:
        image: an image whose pixels are not decoded yet.
        crop: its box is in pixels of `frame`.
        size: the target, (H, W) pixels.
        frame: width and height of the picture that the crop was chosen for; the upright image may have another.
        background: RGB, 0..255, under transparent pixels.
        resample: Pillow's filter.

    Returns:
        An RGB image of `size`.
    """
    reduction = min((crop.box[2] - crop.box[0]) / size[1], (crop.box[3] - crop.box[1]) / size[0]) / _GAP
    if image.format == "JPEG" and reduction > 1:
        image.draft(None, (int(image.width / reduction), int(image.height / reduction)))
    image = to_rgb(ImageOps.exif_transpose(image), background)
    box = _scale_box(crop.box, frame, image.size)
    image = image.resize((size[1], size[0]), resample, box=box, reducing_gap=_GAP)
    return ImageOps.mirror(image) if crop.flip else image


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def parse_caption(fields: dict[str, bytes], max_bytes: int) -> str:
    """The caption from `txt`, else from `caption` in `json`, else empty.

    Raises:
        ValueError: if it is not UTF-8, not text, or longer than `max_bytes`.
    """
    data = fields.get("txt", b"")
    if "txt" not in fields and "json" in fields:
        content = json.loads(fields["json"])
        if not isinstance(content, dict):
            raise ValueError(f"expected an object in json, got {type(content).__name__}")
        caption = content.get("caption") or ""
        if not isinstance(caption, str):
            raise ValueError(f"expected a text as caption in json, got {type(caption).__name__}")
        data = caption.encode()
    if len(data) > max_bytes:
        raise ValueError(f"expected a caption of at most {max_bytes} bytes, got {len(data)}")
    return data.decode("utf-8", errors="strict").strip()


# ---------------------------------------------------------------------------------------------------------------
# One sample


class SampleDecoder:
    """Decode raw samples; picklable, without state.

    Args:
        image_size: the target, (H, W) pixels.
        seed: seeds crops and flips.
        augment: crop and flip at random by position; else the largest centred crop.
        min_scale: smallest random crop, as a share (0..1) of the largest that fits.
        flip: probability (0..1) of a mirrored sample.
        upscale: enlarge images smaller than the target; else they are refused.
        background: RGB, 0..255, under transparent pixels.
        max_pixels: refuse images with more pixels than this.
        max_caption_bytes: refuse longer captions.
        resample: Pillow's filter.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        seed: int,
        augment: bool,
        min_scale: float = 0.5,
        flip: float = 0.5,
        upscale: bool = True,
        background: tuple[int, int, int] = (255, 255, 255),
        max_pixels: int = 50_000_000,
        max_caption_bytes: int = 16384,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:
        self.image_size = image_size
        self.seed = seed
        self.augment = augment
        self.min_scale = min_scale
        self.flip = flip
        self.upscale = upscale
        self.background = background
        self.max_pixels = max_pixels
        self.max_caption_bytes = max_caption_bytes
        self.resample = resample

    def _crop(self, width: int, height: int, position: int) -> Crop:
        if not self.upscale and (width < self.image_size[1] or height < self.image_size[0]):
            need = f"{self.image_size[1]} x {self.image_size[0]}"
            raise ValueError(f"expected an image of at least {need} pixels (upscale: false), got {width} x {height}")
        if not self.augment:
            return centre_crop(width, height, self.image_size)
        draws = crop_draws(self.seed, position)
        return random_crop(width, height, self.image_size, draws, self.min_scale, self.flip)

    def _mask(self, data: bytes, crop: Crop, frame: tuple[int, int]) -> Tensor:
        image = open_image(data, self.max_pixels)
        mask = crop_image(image, crop, self.image_size, frame, (0, 0, 0), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(mask.convert("L")))[None] >= 128

    def _decode(self, raw: RawSample) -> dict[str, Any]:
        image = open_image(next(raw.fields[name] for name in IMAGE_FIELDS if name in raw.fields), self.max_pixels)
        frame = upright_size(image)
        crop = self._crop(*frame, raw.position)
        pixels = crop_image(image, crop, self.image_size, frame, self.background, self.resample)
        sample = {
            "image": image_to_tensor(pixels),
            "position": raw.position,
            "caption": parse_caption(raw.fields, self.max_caption_bytes),
            "__key__": raw.key,
        }
        for name in MASK_FIELDS:
            if name in raw.fields:
                sample["mask"] = self._mask(raw.fields[name], crop, frame)
        return sample

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """Raw sample -> {"image": uint8 (3,H,W), "position", "caption", "__key__" [, "mask": bool (1,H,W)]}.

        Raises:
            ValueError: naming shard and key, whatever is wrong with the content.
        """
        try:
            return self._decode(raw)
        except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
            raise ValueError(f"{raw.shard}: sample {raw.key!r}: {error}") from error
