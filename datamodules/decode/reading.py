"""Images: bytes -> an upright picture in sRGB, cropped and resized.

Files are opened by Pillow with the three formats named: no other codec is ever tried on a file that lies about its
suffix. It decodes them too, but for the pixels of clean JPEGs, which `codecs.read_pixels` has sooner. Colour profiles
are applied before anything is resized, so that the pixels are those of a file that was converted beforehand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.decode import codecs
from datamodules.decode.augmentations import Box, Crop
from datamodules.shards.tar_index import IMAGE_FIELDS

FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
_GAP = 2.0  # box averages of a mask stop at twice the final size, as in Pillow's thumbnail


class Turn(NamedTuple):
    """From the stored to the upright image: `swap` x and y first, then mirror `x` (left to right) and `y`."""

    swap: bool = False
    x: bool = False
    y: bool = False


_TURNS = {  # the values of the EXIF tag
    2: Turn(x=True),
    3: Turn(x=True, y=True),
    4: Turn(y=True),
    5: Turn(swap=True),
    6: Turn(swap=True, x=True),
    7: Turn(swap=True, x=True, y=True),
    8: Turn(swap=True, y=True),
}


def file_of(fields: Mapping[str, bytes], names: Sequence[str]) -> bytes | None:
    """The first of these files that a sample has, such as of MASK_FIELDS; None if it has none."""
    return next((fields[name] for name in names if name in fields), None)


def image_bytes(fields: Mapping[str, bytes]) -> bytes:
    """The file of a sample's image; the index has made sure that there is one."""
    return next(fields[name] for name in IMAGE_FIELDS if name in fields)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header of a JPEG, PNG or WEBP; no pixel is decoded yet.

    Raises:
        ValueError: if the header announces more than `max_pixels` pixels, or none, or as `codecs.check_work`.
    """
    codecs.check_work(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a damaged EXIF Pillow only warns; the picture may then lie on its side
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below says more
        image = Image.open(BytesIO(data), formats=FORMATS)
    if not 0 < image.width * image.height <= max_pixels:
        raise ValueError(f"expected 1 to {max_pixels} pixels, got {image.width} x {image.height}")
    return image


class OpenedImage(NamedTuple):
    """A picture whose header was read, once for all that need it.

    Attributes:
        image: as Pillow opened it, its pixels not decoded yet.
        data: its file.
        turn: what EXIF says about the camera's position.
        size: width and height in pixels of the upright picture.
    """

    image: Image.Image
    data: bytes
    turn: Turn
    size: tuple[int, int]


def open_upright(data: bytes, max_pixels: int) -> OpenedImage:
    """`open_image`, with what its header says; raises what that raises, and for damaged EXIF."""
    image = open_image(data, max_pixels)
    turn = read_turn(image)
    return OpenedImage(image, data, turn, image.size[::-1] if turn.swap else image.size)


def read_turn(image: Image.Image) -> Turn:
    """What EXIF says about the camera's position."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        orientation = image.getexif().get(_ORIENTATION, 1)
    return _TURNS.get(orientation, Turn())


def upright(image: Image.Image) -> Image.Image:
    """The picture as EXIF says that it is to be seen; damaged EXIF is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ImageOps.exif_transpose(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the EXIF rotation is applied."""
    return (image.height, image.width) if read_turn(image).swap else (image.width, image.height)


def check_pair(target: tuple[int, int], photo: tuple[int, int]) -> None:
    """Refuse a target of another upright (width, height) than its photo: no pixel of it would lie on the photo's.

    Raises:
        ValueError: naming both sizes.
    """
    if target != photo:
        raise ValueError(
            f"expected a target of the photo's size, {photo[0]} x {photo[1]} pixels once both are upright "
            f"by their EXIF rotation, got {target[0]} x {target[1]}; save it at that size"
        )


def has_alpha(image: Image.Image) -> bool:
    """Whether some pixels may be transparent, by the header."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def is_animated(image: Image.Image) -> bool:
    """Whether a PNG or WEBP has more pictures than the first, which is the one that is read."""
    return image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)


def to_rgb(image: Image.Image, background: tuple[int, int, int] | None = (255, 255, 255)) -> Image.Image:
    """Any mode -> RGB in sRGB: 16-bit grey is scaled (Pillow's convert clips it), alpha is laid over `background`.

    Without a background the colours hidden under transparent pixels come out as they are in the file.
    """
    profile, mode = codecs.profile_of(image), codecs.colour_mode(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if not has_alpha(image):
        return codecs.to_srgb(image if image.mode == mode else image.convert(mode), profile)
    image = image.convert("RGBA")
    colours = codecs.to_srgb(image.getchannel("R") if mode == "L" else image.convert("RGB"), profile)
    if background is None:
        return colours
    colours.putalpha(image.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), colours).convert("RGB")


class View(NamedTuple):
    """How a crop is read from a file.

    `box` is the crop in pixels of the file, `scale` (1, 2, 4 or 8) how many of these become one while a JPEG is
    decoded, `coarse` whether its chroma may be, `turn` makes it upright, `flip` mirrors it then. `upright_first` swaps
    rows and columns before the resize, which rounds columns first.
    """

    box: Box
    scale: int
    coarse: bool
    turn: Turn
    flip: bool
    upright_first: bool = False


def _stored_box(box: Box, upright: tuple[int, int], turn: Turn) -> Box:
    """A box of the upright image of that width and height, in pixels of the file."""
    left, top, right, bottom = box
    left, right = (upright[0] - right, upright[0] - left) if turn.x else (left, right)
    top, bottom = (upright[1] - bottom, upright[1] - top) if turn.y else (top, bottom)
    return (top, left, bottom, right) if turn.swap else (left, top, right, bottom)


def plan_view(opened: OpenedImage, crop: Crop, size: tuple[int, int], reducing_gap: float = 2.0) -> View:
    """How to read a crop for a target `size` (H, W); a JPEG is reduced as `codecs.reduction` says.

    Less so where the crop would not lie on whole pixels any more: of a photo taken upside down, if its length is no
    multiple of 2, 4 or 8.
    """
    box = _stored_box(crop.box, opened.size, opened.turn)
    factor = min((crop.box[2] - crop.box[0]) / size[1], (crop.box[3] - crop.box[1]) / size[0])
    scale = codecs.reduction(factor, reducing_gap) if opened.image.format == "JPEG" else 1
    while any(side % scale for side in box):
        scale //= 2
    return View(box, scale, factor >= reducing_gap, opened.turn, crop.flip)


def plan_pair(files: Sequence[OpenedImage], crop: Crop, size: tuple[int, int], reducing_gap: float = 2.0) -> list[View]:
    """`plan_view` for pictures that are to lie on each other: decoded at the finest of their scales, resized alike."""
    views = [plan_view(file, crop, size, reducing_gap) for file in files]
    scale, mixed = min(view.scale for view in views), len({view.turn.swap for view in views}) > 1
    return [view._replace(scale=scale, upright_first=mixed) for view in views]


def _read_box(opened: OpenedImage, view: View, background: tuple[int, int, int] | None) -> np.ndarray:
    """Decode what lies in the view's box, in the file's orientation: uint8 RGB (h, w, 3) in sRGB."""
    image = opened.image
    left, top, right, bottom = (side // view.scale for side in view.box)
    if image.format == "JPEG":
        shorter, height = codecs.cut_below(opened.data, view.box[3])
        size = image.size if height is None else (image.width, height)
        # of a file that was cut, libjpeg warns that there is more
        pixels = codecs.read_pixels(shorter, size, view.scale, coarse=view.coarse, strict=height is None)
        if pixels is not None:
            pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
            return codecs.pixels_to_srgb(pixels, codecs.colour_mode(image), codecs.profile_of(image))
        image = image if height is None else open_image(shorter, image.width * image.height)
    if view.scale > 1:
        image.draft(None, (image.width // view.scale, image.height // view.scale))
    return np.array(to_rgb(image.crop((left, top, right, bottom)), background))


def read_view(
    opened: OpenedImage,
    view: View,
    size: tuple[int, int],
    background: tuple[int, int, int] | None = (255, 255, 255),
) -> Tensor:
    """Decode a view, resize it to `size` (H, W), antialiased bicubic, and turn and flip it; uint8 (3, H, W).

    Args:
        opened: the picture; its pixels may be decoded once.
        view: of `plan_view`.
        size: the target, (H, W) pixels.
        background: RGB, 0..255, under transparent pixels; None shows the colours that they hide.
    """
    pixels = torch.from_numpy(_read_box(opened, view, background)).permute(2, 0, 1)
    early, late = view.turn.swap and view.upright_first, view.turn.swap and not view.upright_first
    pixels = pixels.transpose(1, 2) if early else pixels
    target = size[::-1] if late else size
    if pixels.shape[1:] != target:
        pixels = F.interpolate(pixels[None], target, mode="bicubic", antialias=True)[0]
    pixels = pixels.transpose(1, 2) if late else pixels
    mirrored = [axis for axis, wanted in ((1, view.turn.y), (2, view.turn.x != view.flip)) if wanted]
    return (pixels.flip(mirrored) if mirrored else pixels).contiguous()


def _scale_box(box: Box, size: tuple[int, int], new: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box of an image of `size` (width, height), in pixels of the same image at `new` size."""
    x, y = new[0] / size[0], new[1] / size[1]
    return box[0] * x, box[1] * y, min(box[2] * x, new[0]), min(box[3] * y, new[1])


def crop_mask(mask: Image.Image, crop: Crop, size: tuple[int, int], frame: tuple[int, int]) -> Tensor:
    """Send an upright mask (mode L, any resolution) through its image's crop; bool (1, H, W), above one half.

    Args:
        mask: of a picture of which the crop's `frame` (width, height) is one resolution.
        crop: its box is in pixels of `frame`.
        size: the target, (H, W) pixels.
        frame: width and height of the upright image.
    """
    box = _scale_box(crop.box, frame, mask.size)
    mask = mask.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=_GAP)
    return torch.from_numpy(np.array(ImageOps.mirror(mask) if crop.flip else mask))[None] >= 128


_MAX_PIXELS = 1 << 40  # too large for training is for the reader to say
_PNG_ROTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where Pillow finds a PNG's rotation


def image_size(data: bytes) -> tuple[int, int]:
    """Upright width and height in pixels of a JPEG, PNG or WEBP, whose pixels are not decoded; (0, 0) if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = open_image(data, _MAX_PIXELS)
            if image.format == "PNG" and not any(mark in data for mark in _PNG_ROTATION):
                return image.size  # upright_size would decode all of a PNG to look for EXIF after its pixels
            return upright_size(image)
    except Exception:  # Pillow raises many kinds on damaged files, SyntaxError among them
        return 0, 0


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Any error as a ValueError that names the part of the sample, its mask say."""
    try:
        yield
    except UnidentifiedImageError as error:  # its own text ends in a memory address
        raise ValueError(f"{part}: cannot identify it as a JPEG, PNG or WEBP") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{part}: {error}") from error
