"""Samples: the bytes of one sample -> an upright, cropped uint8 image, its caption and a mask from the data if any.

Crop, flip and the choice of the mask are functions of (seed, position), so that neither workers nor restarts change
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from datamodules.crops import Crop, centre_crop, crop_draws, random_crop
from datamodules.draws import position_draws
from datamodules.images import crop_image, crop_mask, image_to_tensor, open_image, upright_size
from datamodules.mask_sources import FileMask, MaskRequest, MaskSource
from datamodules.shards import RawSample
from datamodules.tar_index import IMAGE_FIELDS
from inpaint_module.randomness import Stream


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


class SampleDecoder:
    """Decode raw samples; picklable, without state.

    The mask is the donor's if the sample has one that hits the crop; else, with `own_mask_probability`, its own; else
    there is none, and the batch paints a random one.

    Args:
        image_size: the target, (H, W) pixels.
        seed: seeds crops, flips and the choice of masks.
        augment: crop and flip at random by position; else the largest centred crop.
        min_scale: smallest random crop, as a share (0..1) of the largest that fits.
        flip: probability (0..1) of a mirrored sample.
        upscale: enlarge images smaller than the target; else they are refused.
        background: RGB, 0..255, under transparent pixels; unused if a mask source looks for masks there.
        max_pixels: refuse images with more pixels than this.
        max_caption_bytes: refuse longer captions.
        resample: Pillow's filter.
        mask_sources: where own masks are looked for; the first that finds one wins.
        own_mask_probability: the share (0..1) of positions at which an own mask is used.
        allow_empty_masks: use own masks without a masked pixel in the crop; else they count as none.
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
        mask_sources: Sequence[MaskSource] | None = None,
        own_mask_probability: float = 1.0,
        allow_empty_masks: bool = True,
    ) -> None:
        self.image_size = image_size
        self.seed = seed
        self.augment = augment
        self.min_scale = min_scale
        self.flip = flip
        self.upscale = upscale
        self.max_pixels = max_pixels
        self.max_caption_bytes = max_caption_bytes
        self.resample = resample
        self.mask_sources = [FileMask()] if mask_sources is None else list(mask_sources)
        self.background = None if any(source.shows_hidden for source in self.mask_sources) else background
        self.own_mask_probability = own_mask_probability
        self.allow_empty_masks = allow_empty_masks

    def _open(self, raw: RawSample) -> Image.Image:
        return open_image(next(raw.fields[name] for name in IMAGE_FIELDS if name in raw.fields), self.max_pixels)

    def _crop(self, width: int, height: int, draws: Sequence[float]) -> Crop:
        if not self.augment:
            return centre_crop(width, height, self.image_size)
        return random_crop(width, height, self.image_size, draws, self.min_scale, self.flip)

    def _check_size(self, width: int, height: int) -> None:
        if not self.upscale and (width < self.image_size[1] or height < self.image_size[0]):
            need = f"{self.image_size[1]} x {self.image_size[0]}"
            raise ValueError(f"expected an image of at least {need} pixels (upscale: false), got {width} x {height}")

    def _find_mask(self, raw: RawSample, crop: Crop, frame: tuple[int, int], draw: float) -> Tensor | None:
        """The mask of the first source that has one, through the crop; bool (1, H, W)."""
        request = MaskRequest(raw.fields, frame, draw, self.max_pixels)
        for source in self.mask_sources:
            if (mask := source(request)) is not None:
                return crop_mask(mask, crop, self.image_size, frame)
        return None

    def _own_mask(self, raw: RawSample, crop: Crop, frame: tuple[int, int]) -> Tensor | None:
        """The sample's own mask, as often as it is wanted."""
        use, draw = position_draws(self.seed, raw.position, Stream.OWN_MASK, 2)
        own = self._find_mask(raw, crop, frame, draw) if use < self.own_mask_probability else None
        return own if own is not None and (self.allow_empty_masks or own.any()) else None

    def _donated_mask(self, donor: RawSample, position: int) -> Tensor | None:
        """The donor's mask through a crop of its own; None if it has none there."""
        try:
            draws = position_draws(self.seed, position, Stream.DONOR_MASK, 5)
            frame = upright_size(self._open(donor))
            found = self._find_mask(donor, self._crop(*frame, draws[:4]), frame, draws[4])
        except Exception as error:  # as in __call__
            raise ValueError(f"mask of {donor.shard}: sample {donor.key!r}: {error}") from error
        return found if found is not None and found.any() else None

    def _decode(self, raw: RawSample) -> dict[str, Any]:
        image = self._open(raw)
        frame = upright_size(image)
        self._check_size(*frame)
        crop = self._crop(*frame, crop_draws(self.seed, raw.position) if self.augment else ())
        mask = self._donated_mask(raw.donor, raw.position) if raw.donor else None
        mask = self._own_mask(raw, crop, frame) if mask is None else mask
        sample = {
            "image": image_to_tensor(crop_image(image, crop, self.image_size, frame, self.background, self.resample)),
            "position": raw.position,
            "caption": parse_caption(raw.fields, self.max_caption_bytes),
            "__key__": raw.key,
        }
        return sample if mask is None else {**sample, "mask": mask}

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """Raw sample -> {"image": uint8 (3,H,W), "position", "caption", "__key__" [, "mask": bool (1,H,W)]}.

        Raises:
            ValueError: naming shard and key, whatever is wrong with the content.
        """
        try:
            return self._decode(raw)
        except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
            raise ValueError(f"{raw.shard}: sample {raw.key!r}: {error}") from error
