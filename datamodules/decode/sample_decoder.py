"""Samples: the bytes of one sample -> an upright, cropped uint8 image, its caption and a mask from the data if any.

Crop, flip, augmentations and the choice of the mask are functions of (seed, position), so that neither workers nor
restarts change them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from datamodules.decode.augmentations import Augmentations, Crop, centre_crop, crop_numbers, random_crop
from datamodules.decode.codecs import profile_fault
from datamodules.decode.fields import CaptionOptions, parse_caption, parse_label, read_header, read_latents
from datamodules.decode.mask_sources import DataMasks, FileMask, MaskOptions
from datamodules.decode.reading import (
    OpenedImage,
    View,
    check_pair,
    file_of,
    image_bytes,
    is_animated,
    naming,
    open_upright,
    plan_pair,
    plan_view,
    read_view,
)
from datamodules.shards.shard_set import RawSample
from datamodules.shards.tar_index import LATENTS_FIELD, REFERENCE_FIELDS, TARGET_FIELDS
from inpaint_module.batch import LatentsTag
from inpaint_module.parsing import check_at_least, check_share

Size = tuple[int, int]


@dataclass(frozen=True)
class DecoderOptions:
    """How images become samples, and which texts go with them.

    Args:
        min_scale: Smallest side of a random crop, 0..1 of the largest crop that fits. Crops are never enlarged
            unless the image itself is too small.
        flip: Probability of mirroring a training sample.
        transforms: Further augmentations of training samples, of torchvision.transforms.v2, on uint8 image and mask;
            their random numbers are functions of (seed, position) too.
        upscale: Enlarge images smaller than image_size; false refuses them.
        background: RGB, 0..255, laid under transparent pixels, unless AlphaMask is among the mask sources.
        max_pixels: Refuse images and masks with more pixels.
        reducing_gap: How many times larger than its target, along a side, a JPEG is still decoded, at least 1. Against
            the full decode, 2 kept 42 dB PSNR in all crops that were measured, 1.5 kept 40 dB in 98 of 100.
        max_caption_bytes: Refuse longer captions.
        caption_key: Where in NAME.json the caption is, if there is no NAME.txt.
        captions: Trigger words and tags, see `datamodules.CaptionOptions`.
        loss_weights: How much the loss of a sample counts, one number for each entry of train_shards, such as [1, 0.5]
            where the second holds the photos of a prior; null for 1.
        label_key: Put class numbers into the batch, from NAME.cls or from this key of NAME.json; a sample without one
            is refused. Null for none.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    min_scale: float = 0.5
    flip: float = 0.5
    transforms: list[nn.Module] | None = None
    upscale: bool = True
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 50_000_000
    reducing_gap: float = 2.0
    max_caption_bytes: int = 16384
    caption_key: str = "caption"
    label_key: str | None = None
    captions: CaptionOptions = CaptionOptions()  # noqa: RUF009, immutable
    loss_weights: list[float] | None = None

    def __post_init__(self) -> None:
        part = "data.decoder"
        check_share(part, min_scale=self.min_scale, flip=self.flip)
        check_at_least(1, part, max_pixels=self.max_pixels, reducing_gap=self.reducing_gap)
        check_at_least(0, part, max_caption_bytes=self.max_caption_bytes)
        if len(self.background) != 3 or not all(0 <= each <= 255 for each in self.background):
            raise ValueError(f"{part}.background: expected three numbers 0 to 255, got {self.background}")
        if not all(0 <= weight < math.inf for weight in self.loss_weights or ()):
            raise ValueError(f"{part}.loss_weights: expected finite numbers of at least 0, got {self.loss_weights}")

    def check_sources(self, sources: int) -> None:
        """Refuse what is said of each entry of train_shards if it is not as many."""
        self.captions.check_sources(sources)
        if self.loss_weights is not None and len(self.loss_weights) != sources:
            raise ValueError(
                f"data.decoder.loss_weights: expected one number for each of the {sources} entries of "
                f"data.train_shards, got {self.loss_weights}"
            )


class SampleDecoder:
    """Decode raw samples; picklable, without state.

    The mask is that of another sample's object if the sample has one that hits the crop; else, as often as
    `masks.share` says, its own; else there is none, and the batch paints a random one. A sample with a target keeps
    its own mask, which says what is to be taken away: it neither gets another's nor is its own used for others.

    Attributes:
        trains: whether tags and weights of the loss are those of training; of a cache's decoder too.
        pairs: whether samples without a target take their image for it, as in a set of which some have one.

    Args:
        image_size: the target, (H, W) pixels, of samples that do not ask for another.
        seed: seeds crops, flips, augmentations and the choice of masks.
        augment: crop and flip at random by position; else the largest centred crop.
        options: of the images and texts.
        masks: where masks in the data are looked for, and how often they are used.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        seed: int,
        augment: bool,
        options: DecoderOptions = DecoderOptions(),
        masks: MaskOptions = MaskOptions(),  # noqa: B008, immutable
    ) -> None:
        self.image_size, self.seed, self.augment, self.options = image_size, seed, augment, options
        self.augmentations = Augmentations((options.transforms or ()) if augment else (), seed=seed)
        self.masks = DataMasks(masks, seed=seed, max_pixels=options.max_pixels)
        red, green, blue = options.background  # a list, where Python code says so
        self.background = None if self.masks.shows_hidden else (red, green, blue)
        self.latents: LatentsTag | None = None
        self.pairs, self.trains = False, augment

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
        return {"latents": latents, **(read_header(raw.fields[LATENTS_FIELD])[1] if self.latents.has_sizes else {})}

    def _sizes(self, frame: Size, crop: Crop, size: Size) -> dict[str, Size]:
        """Rows, then columns, of what was cut from the upright frame (width, height); see `Batch`."""
        if not self.augment:
            return {}
        left, top, right, bottom = crop.box
        before = frame[0] - right if crop.flip else left
        place = round(top * size[0] / (bottom - top)), round(before * size[1] / (right - left))
        return {"original_size": frame[::-1], "crop": place}

    def _crop(self, frame: Size, size: Size, numbers: Sequence[float]) -> Crop:
        """A crop of an upright frame (width, height) for a target (H, W)."""
        if not self.augment:
            return centre_crop(*frame, size)
        return random_crop(*frame, size, numbers, self.options.min_scale, self.options.flip)

    def _note(self, raw: RawSample, images: Sequence[Image.Image], frame: Size, size: Size) -> list[tuple[str, str]]:
        """What is worth counting, (kind, key): an animated image, one smaller than its size, an unusable profile."""
        small = frame[0] < size[1] or frame[1] < size[0]
        if small and not self.options.upscale:
            need, got = f"{size[1]} x {size[0]}", f"{frame[0]} x {frame[1]}"
            raise ValueError(f"expected an image of at least {need} pixels (upscale: false), got {got}")
        fault = any(profile_fault(image) is not None for image in images)
        kinds = (("animated", any(map(is_animated, images))), ("upscaled", small), ("bad_profile", fault))
        return [(kind, raw.key) for kind, true in kinds if true]

    def caption(self, raw: RawSample) -> str:
        """The sample's caption with all that is done to it.

        Raises:
            ValueError: it cannot be read, or is too long.
        """
        options = self.options
        caption = parse_caption(raw.fields, options.max_caption_bytes, options.caption_key)
        if self.trains:
            caption = options.captions.tags(caption, self.seed, raw.position)
        return options.captions.around(caption, raw.source)

    def _texts(self, raw: RawSample) -> dict[str, Any]:
        """Caption, key and, if wanted, the label and the weight of the loss."""
        options = self.options
        caption = self.caption(raw)
        label = {} if options.label_key is None else {"label": parse_label(raw.fields, options.label_key)}
        weights = options.loss_weights if self.trains else None
        weight = {} if weights is None else {"loss_weight": float(weights[raw.source])}
        return {"caption": caption, "__key__": raw.key, **label, **weight}

    def _is_pair(self, raw: RawSample) -> bool:
        """Whether the sample has a target, or cached latents of one."""
        cached = self.latents is not None and LATENTS_FIELD in raw.fields
        return file_of(raw.fields, TARGET_FIELDS) is not None or (
            cached and read_header(raw.fields[LATENTS_FIELD])[0].target
        )

    def _mask(self, raw: RawSample, crop: Crop, size: Size, opened: OpenedImage) -> Tensor | None:
        """That of another sample's object or the sample's own mask; None to paint one."""
        pair = self._is_pair(raw)
        if raw.removal and not pair and not self._is_pair(raw.removal):
            mask = self.masks.of_other(raw.removal, raw.position, size, self._crop)
            if mask is not None:
                return mask
        return self.masks.own(raw, crop, size, opened, always=pair)

    def _open(self, raw: RawSample) -> list[OpenedImage]:
        """The image, and its target if it has one that is to be read."""
        target = file_of(raw.fields, TARGET_FIELDS)
        image = open_upright(image_bytes(raw.fields), self.options.max_pixels)
        if target is None or self.latents is not None:
            return [image]
        with naming("target"):
            wanted = open_upright(target, self.options.max_pixels)
            check_pair(wanted.size, image.size)
        return [image, wanted]

    def _read(self, files: Sequence[OpenedImage], views: Sequence[View], size: Size) -> list[Tensor]:
        """The pixels of image and target, uint8 (3, H, W) each."""
        pixels = [read_view(files[0], views[0], size, self.background)]
        with naming("target"):
            return pixels + [
                read_view(file, view, size, self.background) for file, view in zip(files[1:], views[1:], strict=True)
            ]

    def _reference(self, raw: RawSample, size: Size) -> dict[str, Tensor]:
        """The reference picture's middle at the image's size (H, W), never mirrored; nothing if there is none."""
        data = file_of(raw.fields, REFERENCE_FIELDS)
        if data is None:
            return {}
        with naming("reference"):
            file = open_upright(data, self.options.max_pixels)
            view = plan_view(file, centre_crop(*file.size, size), size, self.options.reducing_gap)
            return {"reference": read_view(file, view, size, self.background)}

    def _decode(self, raw: RawSample) -> dict[str, Any]:
        if raw.fault:
            raise ValueError(raw.fault)
        texts, size = self._texts(raw), raw.size or self.image_size
        files = self._open(raw)
        frame = files[0].size
        notes = self._note(raw, [file.image for file in files], frame, size)
        crop = self._crop(frame, size, crop_numbers(self.seed, raw.position) if self.augment else ())
        views = plan_pair(files, crop, size, self.options.reducing_gap)
        mask = self._mask(raw, crop, size, files[0])
        pixels, *target = self._read(files, views, size)
        augmented = self.augmentations(pixels, mask, raw.position)
        sizes = self._sizes(frame, crop, size) | self._cached(raw, frame)
        sample = {"image": augmented.image, "position": raw.position, **texts, **sizes}
        if target:
            sample["target"] = self.augmentations.target(target[0], mask, raw.position)
        elif self.pairs:
            sample |= {"target": augmented.image, "has_target": False}
        sample |= self._reference(raw, size)
        sample |= {} if augmented.mask is None else {"mask": augmented.mask}
        return sample | ({"notes": notes} if notes else {})

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """-> {"image": uint8 (3,H,W), "position", "caption", "__key__" [, "mask": bool (1,H,W)] [, "label": int]}.

        "target" uint8 (3,H,W) is there of a sample that has one, and with `pairs` of all, "has_target" false of those
        whose image it is.
        "reference" uint8 (3,H,W) is there of a sample that has a reference picture.
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
