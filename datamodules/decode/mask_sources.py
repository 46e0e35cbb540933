"""Masks that come with the data: one class for each way to store them, and which of them a sample gets; 1 = inpaint.

A source finds the mask of one sample as a grey image of the upright photo, at any resolution. It then goes through the
photo's own crop and flip and is cut above one half, so that soft edges and JPEG noise (.9 to .999) do no harm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.decode.augmentations import Crop, random_numbers
from datamodules.decode.mask_files import mask_turn, read_mask, turned
from datamodules.decode.reading import (
    OpenedImage,
    Turn,
    crop_mask,
    file_of,
    has_alpha,
    image_bytes,
    naming,
    open_image,
    open_upright,
    read_turn,
    upright,
)
from datamodules.shards.shard_set import RawSample
from datamodules.shards.tar_index import LABEL_FIELDS, MASK_FIELDS
from inpaint_module.parsing import check_at_least, check_share
from inpaint_module.randomness import Stream

_GREY_STEPS = {2: 85, 4: 17}  # Pillow stretches grey PNGs of 2 and 4 bits to 0..255


class MaskRequest(NamedTuple):
    """What a source is given.

    `fields` are the sample's undecoded fields, `size` width and height of the upright image in pixels, `draw` a number
    in [0, 1) from (seed, position) to choose with, `max_pixels` a bound on what may be decoded, `turn` what the image's
    EXIF says, `image` the opened image where there is one.
    """

    fields: dict[str, bytes]
    size: tuple[int, int]
    draw: float = 0.0
    max_pixels: int = 50_000_000
    turn: Turn = Turn()
    image: Image.Image | None = None


class MaskSource(ABC):
    """Finds a sample's own mask. A subclass must be picklable, since it works in the loader's processes.

    `shows_hidden` is true of a source whose masks are the image's transparency: with it the decoder shows the colours
    that transparent pixels hide, instead of the background.
    """

    shows_hidden: bool = False

    @abstractmethod
    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """The mask (mode L, 255 = inpaint, upright, any resolution), or None if this sample has none here.

        Raises:
            ValueError: if it is there but cannot be used; the decoder adds shard and key.
        """


def to_mask(mask: np.ndarray) -> Image.Image | None:
    """bool (H, W) -> grey image; None if nothing is masked."""
    return Image.fromarray(mask.astype(np.uint8) * 255) if mask.any() else None


class FileMask(MaskSource):
    """A picture beside the image: `mask.png`, `mask.webp`, `mask.jpg` or `mask.jpeg`, white = inpaint.

    It has the image's shape, at any resolution; `mask_files.read_mask` says how other files than grey ones are read.

    Args:
        inverted: Black = inpaint.
        transparent: Inpaint where the file is transparent, whatever its colours, as ComfyUI saves masks.
    """

    def __init__(self, inverted: bool = False, transparent: bool = False) -> None:
        self.inverted = inverted
        self.transparent = transparent

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`; a picture without any white is an empty mask, not a missing one."""
        data = file_of(request.fields, MASK_FIELDS)
        if data is None:
            return None
        ways = {"inverted": self.inverted, "transparent": self.transparent}
        with naming("mask"):
            return read_mask(data, request.size, request.turn, request.max_pixels, **ways)


class AlphaMask(MaskSource):
    """The image's own transparency: alpha under one half = inpaint, as ComfyUI's LoadImage.

    What is hidden there must be the true picture: it is what the model learns to paint, and with this source all
    images show it. Save with a program that keeps it (WEBP has an option `exact` for that).
    An opaque image has no mask.

    Args:
        inverted: Alpha of at least one half = inpaint.
    """

    shows_hidden = True

    def __init__(self, inverted: bool = False) -> None:
        self.inverted = inverted

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`."""
        image = request.image or open_image(image_bytes(request.fields), request.max_pixels)
        if not has_alpha(image):
            return None
        alpha = upright(image).convert("RGBA").getchannel("A")
        if alpha.getextrema() == (255, 255):
            return None
        return alpha if self.inverted else ImageOps.invert(alpha)


class LabelMap(MaskSource):
    """Chosen classes of a map of class numbers: `label.png` or `seg.png`, grey of 1 to 16 bits or palette.

    A sample without a pixel of these classes has no mask.

    Args:
        ids: Class numbers to inpaint, each 0..65535; of a palette the index, not the colour.

    Raises:
        ValueError: no ids, or one out of range.
    """

    def __init__(self, ids: list[int]) -> None:
        if not ids or not all(0 <= number <= 65535 for number in ids):
            raise ValueError(f"LabelMap.ids: expected class numbers 0 to 65535, at least one, got {ids}")
        self.ids = list(ids)

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`."""
        data = file_of(request.fields, LABEL_FIELDS)
        if data is None:
            return None
        labels = read_labels(data, request.max_pixels)
        chosen = np.zeros(65536, dtype=bool)
        chosen[self.ids] = True
        mask = to_mask(chosen[labels])
        own = read_turn(open_image(data, request.max_pixels))
        way = mask_turn(labels.shape[::-1], request.size, request.turn if own == Turn() else Turn())
        return None if mask is None else turned(mask, way)


def read_labels(data: bytes, max_pixels: int) -> np.ndarray:
    """A PNG of class numbers -> integers (H, W), upright.

    Raises:
        ValueError: if it is not a PNG, or has colours instead of numbers.
    """
    image = open_image(data, max_pixels)
    if image.format != "PNG" or image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"expected a label map in a grey or palette PNG, got a {image.format} of mode {image.mode}")
    bits = data[24]  # of the PNG's first chunk, IHDR
    labels = np.asarray(upright(image))
    labels = labels.astype(np.uint16 if labels.dtype.itemsize > 1 else np.uint8)
    return labels // _GREY_STEPS.get(bits, 1) if image.mode == "L" else labels


Size = tuple[int, int]
ChooseCrop = Callable[[Size, Size, Sequence[float]], Crop]


@dataclass(frozen=True)
class MaskOptions:
    """Where masks come from beside the mask generator, and how often.

    Args:
        sources: Where masks in the data are looked for, the first that finds one wins: datamodules.FileMask,
            AlphaMask, LabelMap, CocoMask or a subclass of MaskSource. Null for FileMask alone, [] for none.
        share: Share (0..1) of the samples with a mask in the data that get it; the others get a painted one.
        removal_share: Share (0..1) of the samples that get the mask of another sample's object, to learn removal. The
            other sample comes from the same window of shards; where it has no mask, the sample is as without.
        allow_empty: Use masks from the data even where the crop has left nothing of them; false paints one.
        padding_mask_crop: Cut every image, mask and all, to its hole and this many pixels around it, and enlarge it to
            image_size, as diffusers' pipelines do if called with this; null for no such crop. By Pillow, on the CPU.
        cuda_graphs: Paint by CUDA graphs, see `inpaint_module.masks.CudaGraphed`: the same masks, sooner on a GPU. Null
            for what the run's `speed` chooses: by graphs, if all generators are this package's.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    sources: list[MaskSource] | None = None
    share: float = 1.0
    removal_share: float = 0.0
    allow_empty: bool = True
    padding_mask_crop: int | None = None
    cuda_graphs: bool | None = None

    def __post_init__(self) -> None:
        part = "data.masks"
        check_share(part, share=self.share, removal_share=self.removal_share)
        check_at_least(0, part, padding_mask_crop=self.padding_mask_crop or 0)

    def without_generator(self) -> MaskOptions:
        """For batches that have no masks: none are looked for.

        Raises:
            ValueError: naming the first setting of masks, of which there are none.
        """
        for name in ("sources", "removal_share", "padding_mask_crop", "cuda_graphs"):
            if value := getattr(self, name):
                raise ValueError(
                    f"data.masks.{name}: expected none without masks, got {value}: data.mask_generator is null, so "
                    "that batches have no masks; set a generator, such as inpaint_module.masks.preset"
                )
        return replace(self, sources=[])


class DataMasks:
    """Finds masks in the data; picklable, without state.

    Args:
        options: where they are looked for, and how often they are used.
        seed: seeds the choices.
        max_pixels: refuse masks with more pixels than this.
    """

    def __init__(self, options: MaskOptions, *, seed: int, max_pixels: int = 50_000_000) -> None:
        self.sources: list[MaskSource] = [FileMask()] if options.sources is None else list(options.sources)
        self.seed = seed
        self.share, self.allow_empty = options.share, options.allow_empty
        self.max_pixels = max_pixels

    @property
    def file_share(self) -> float:
        """How often (0..1) a mask file beside an image is used; 0 if none is looked for."""
        return self.share if any(isinstance(source, FileMask) for source in self.sources) else 0.0

    @property
    def shows_hidden(self) -> bool:
        """Whether images must show the colours that their transparent pixels hide."""
        return any(source.shows_hidden for source in self.sources)

    def _find(self, raw: RawSample, crop: Crop, size: Size, opened: OpenedImage, draw: float) -> Tensor | None:
        """The mask of the first source that has one, through the crop; bool (1, H, W)."""
        request = MaskRequest(raw.fields, opened.size, draw, self.max_pixels, opened.turn, opened.image)
        for source in self.sources:
            if (mask := source(request)) is not None:
                return crop_mask(mask, crop, size, opened.size)
        return None

    def own(
        self, raw: RawSample, crop: Crop, size: Size, opened: OpenedImage, *, always: bool = False
    ) -> Tensor | None:
        """The sample's own mask at `size` (H, W), bool (1, H, W), as often as it is wanted.

        Args:
            raw: the sample.
            crop: of its image, in upright pixels.
            size: the target, (H, W) pixels.
            opened: its image.
            always: whatever the share.
        """
        use, draw = random_numbers(self.seed, raw.position, Stream.OWN_MASK, 2)
        own = self._find(raw, crop, size, opened, draw) if always or use < self.share else None
        return own if own is not None and (self.allow_empty or own.any()) else None

    def of_other(self, other: RawSample, position: int, size: Size, choose_crop: ChooseCrop) -> Tensor | None:
        """Another sample's mask through a crop of its own at `size` (H, W); None if it has none there.

        Args:
            other: the sample whose mask it is.
            position: of the sample that gets it.
            size: the target, (H, W) pixels.
            choose_crop: frame (width, height), size, four random numbers -> crop.

        Raises:
            ValueError: naming that sample, if its mask cannot be used.
        """
        try:
            if other.fault:
                raise ValueError(other.fault)
            numbers = random_numbers(self.seed, position, Stream.REMOVAL_MASK, 5)
            opened = open_upright(image_bytes(other.fields), self.max_pixels)
            crop = choose_crop(opened.size, size, numbers[:4])
            found = self._find(other, crop, size, opened, numbers[4])
        except Exception as error:  # as in SampleDecoder
            raise ValueError(f"mask of {other.shard}: sample {other.key!r}: {error}") from error
        return found if found is not None and found.any() else None
