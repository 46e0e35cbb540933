"""Samples: the bytes of one sample -> an upright, cropped uint8 image, its caption and a mask from the data if any.

Crop, flip, augmentations and the choice of the mask are functions of (seed, position), so that neither workers nor
restarts change them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from datamodules.decode.augmentations import Augmentations, Crop, centre_crop, crop_draws, random_crop
from datamodules.decode.captions import parse_caption, parse_label
from datamodules.decode.latent_cache import read_latents, read_sizes, read_tag
from datamodules.decode.mask_sources import FileMask, MaskSource, image_bytes, naming, target_bytes
from datamodules.decode.own_masks import OwnMasks
from datamodules.decode.profiles import profile_fault
from datamodules.decode.reading import (
    Turn,
    View,
    check_pair,
    is_animated,
    open_image,
    plan_pair,
    read_view,
    upright_size,
)
from datamodules.shards.shard_set import RawSample
from datamodules.shards.tar_index import LATENTS_FIELD
from inpaint_module.batch import LatentsTag

Size = tuple[int, int]


class SampleDecoder:
    """Decode raw samples; picklable, without state.

    The mask is the donor's if the sample has one that hits the crop; else, with `own_mask_probability`, its own; else
    there is none, and the batch paints a random one. A sample with a target keeps its own mask, which says what is to
    be taken away: it neither gets a donor's nor lends its own.

    Attributes:
        pairs: whether samples without a target take their image for it, as in a set of which some have one.

    Args:
        image_size: the target, (H, W) pixels, of samples that do not ask for another.
        seed: seeds crops, flips, augmentations and the choice of masks.
        augment: crop and flip at random by position; else the largest centred crop.
        min_scale: smallest random crop, as a share (0..1) of the largest that fits.
        flip: probability (0..1) of a mirrored sample.
        upscale: enlarge images smaller than the target; else they are refused.
        background: RGB, 0..255, under transparent pixels; unused if a mask source looks for masks there.
        max_pixels: refuse images with more pixels than this.
        reducing_gap: at least 1; how many times larger than the target, along a side, a JPEG is still decoded.
        max_caption_bytes: refuse longer captions.
        caption_key: where in the json the caption is.
        label_key: where in the json the class number is; None looks for none.
        transforms: further augmentations, of torchvision.transforms.v2.
        mask_sources: where own masks are looked for; the first that finds one wins.
        own_mask_probability: the share (0..1) of positions at which an own mask is used.
        allow_empty_masks: use own masks without a masked pixel in the crop; else they count as none.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        seed: int,
        augment: bool,
        min_scale: float = 0.5,
        flip: float = 0.5,
        upscale: bool = True,
        background: tuple[int, int, int] = (255, 255, 255),
        max_pixels: int = 50_000_000,
        reducing_gap: float = 2.0,
        max_caption_bytes: int = 16384,
        caption_key: str = "caption",
        label_key: str | None = None,
        transforms: Sequence[nn.Module] | None = None,
        mask_sources: Sequence[MaskSource] | None = None,
        own_mask_probability: float = 1.0,
        allow_empty_masks: bool = True,
    ) -> None:
        self.image_size = image_size
        self.seed = seed
        self.augment = augment
        self.min_scale, self.flip, self.upscale = min_scale, flip, upscale
        self.max_pixels, self.reducing_gap = max_pixels, reducing_gap
        self.max_caption_bytes, self.caption_key, self.label_key = max_caption_bytes, caption_key, label_key
        self.augmentations = Augmentations(transforms or (), seed=seed)
        options: dict[str, Any] = {"probability": own_mask_probability, "allow_empty": allow_empty_masks}
        self.masks = OwnMasks(mask_sources, seed=seed, max_pixels=max_pixels, **options)
        self.background = None if self.masks.shows_hidden else background
        self.latents: LatentsTag | None = None
        self.pairs = False

    def for_cache(self, latents: LatentsTag) -> SampleDecoder:
        """This decoder for the samples of a latent cache, which hold all that was done to image and mask."""
        twin = copy.copy(self)
        twin.augment, twin.latents, twin.augmentations = False, latents, Augmentations((), seed=self.seed)
        twin.masks, twin.pairs = copy.copy(self.masks), False
        twin.masks.sources = [FileMask()]
        return twin

    def _cached(self, raw: RawSample, frame: Size) -> dict[str, Any]:
        """What a cache holds of the sample, if it is one's; an upright frame (width, height) must be its image's."""
        if self.latents is None:
            if self.augment and LATENTS_FIELD in raw.fields:
                raise ValueError(f"expected no {LATENTS_FIELD}, as the first sample of data.train_shards, got one")
            return {}
        if frame[::-1] != self.latents.image_size:
            raise ValueError(
                f"expected an image of (H, W) {self.latents.image_size} for its latents, got {frame[::-1]}"
            )
        latents = read_latents(raw.fields, self.latents)
        return {"latents": latents, **(read_sizes(raw.fields[LATENTS_FIELD]) if self.latents.has_sizes else {})}

    def _sizes(self, frame: Size, crop: Crop, size: Size) -> dict[str, Size]:
        """Rows, then columns, of what was cut from the upright frame (width, height); see `Batch`."""
        if not self.augment:
            return {}
        left, top, right, bottom = crop.box
        before = frame[0] - right if crop.flip else left
        place = round(top * size[0] / (bottom - top)), round(before * size[1] / (right - left))
        return {"original_size": frame[::-1], "crop": place}

    def _crop(self, frame: Size, size: Size, draws: Sequence[float]) -> Crop:
        """A crop of an upright frame (width, height) for a target (H, W)."""
        if not self.augment:
            return centre_crop(*frame, size)
        return random_crop(*frame, size, draws, self.min_scale, self.flip)

    def _note(self, raw: RawSample, images: Sequence[Image.Image], frame: Size, size: Size) -> list[tuple[str, str]]:
        """What is worth counting, (kind, key): an animated image, one smaller than its size, an unusable profile."""
        small = frame[0] < size[1] or frame[1] < size[0]
        if small and not self.upscale:
            need, got = f"{size[1]} x {size[0]}", f"{frame[0]} x {frame[1]}"
            raise ValueError(f"expected an image of at least {need} pixels (upscale: false), got {got}")
        fault = any(profile_fault(image) is not None for image in images)
        kinds = (("animated", any(map(is_animated, images))), ("upscaled", small), ("bad_profile", fault))
        return [(kind, raw.key) for kind, true in kinds if true]

    def _texts(self, raw: RawSample) -> dict[str, Any]:
        """Caption, key and, if wanted, the label."""
        texts = {"caption": parse_caption(raw.fields, self.max_caption_bytes, self.caption_key), "__key__": raw.key}
        return texts if self.label_key is None else {**texts, "label": parse_label(raw.fields, self.label_key)}

    def _is_pair(self, raw: RawSample) -> bool:
        """Whether the sample has a target, or cached latents of one."""
        cached = self.latents is not None and LATENTS_FIELD in raw.fields
        return target_bytes(raw.fields) is not None or (cached and read_tag(raw.fields[LATENTS_FIELD]).target)

    def _mask(self, raw: RawSample, crop: Crop, size: Size, frame: Size, turn: Turn) -> Tensor | None:
        """The donor's or the sample's own mask; None to paint one."""
        pair = self._is_pair(raw)
        if raw.donor and not pair and not self._is_pair(raw.donor):
            mask = self.masks.donated(raw.donor, raw.position, size, self._crop)
            if mask is not None:
                return mask
        return self.masks.own(raw, crop, size, frame, turn, always=pair)

    def _open(self, raw: RawSample) -> list[tuple[Image.Image, bytes]]:
        """The image, and its target if it has one that is to be read: the opened file of each, and its bytes."""
        data, target = image_bytes(raw.fields), target_bytes(raw.fields)
        image = open_image(data, self.max_pixels)
        if target is None or self.latents is not None:
            return [(image, data)]
        with naming("target"):
            wanted = open_image(target, self.max_pixels)
            check_pair(upright_size(wanted), upright_size(image))
        return [(image, data), (wanted, target)]

    def _read(self, files: Sequence[tuple[Image.Image, bytes]], views: Sequence[View], size: Size) -> list[Tensor]:
        """The pixels of image and target, uint8 (3, H, W) each."""
        pixels = [read_view(*files[0], views[0], size, self.background)]
        with naming("target"):
            return pixels + [
                read_view(*file, view, size, self.background) for file, view in zip(files[1:], views[1:], strict=True)
            ]

    def _decode(self, raw: RawSample) -> dict[str, Any]:
        texts, size = self._texts(raw), raw.size or self.image_size
        files = self._open(raw)
        images = [image for image, _ in files]
        frame = upright_size(images[0])
        notes = self._note(raw, images, frame, size)
        crop = self._crop(frame, size, crop_draws(self.seed, raw.position) if self.augment else ())
        views = plan_pair(images, crop, size, self.reducing_gap)
        mask = self._mask(raw, crop, size, frame, views[0].turn)
        pixels, *target = self._read(files, views, size)
        augmented = self.augmentations(pixels, mask, raw.position)
        sizes = self._sizes(frame, crop, size) | self._cached(raw, frame)
        sample = {"image": augmented.image, "position": raw.position, **texts, **sizes}
        if target:
            sample["target"] = self.augmentations.target(target[0], mask, raw.position)
        elif self.pairs:
            sample |= {"target": augmented.image, "has_target": False}
        sample |= {} if augmented.mask is None else {"mask": augmented.mask}
        return sample | ({"notes": notes} if notes else {})

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """-> {"image": uint8 (3,H,W), "position", "caption", "__key__" [, "mask": bool (1,H,W)] [, "label": int]}.

        "target" uint8 (3,H,W) is there of a sample that has one, and with `pairs` of all, "has_target" false of those
        whose image it is.
        "original_size" (rows, columns) and "crop" (top, left) of `Batch` are there in training, from a cache if it has
        them; "latents" (C,h,w) of the whole image with `for_cache`.
        "notes", a list of (kind, key), is there if the image is "animated", has been "upscaled", or has
        a "bad_profile", one that cannot be used: its numbers are taken for sRGB.

        Raises:
            ValueError: naming shard and key, whatever is wrong with the content.
        """
        try:
            return self._decode(raw)
        except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
            raise ValueError(f"{raw.shard}: sample {raw.key!r}: {error}") from error
