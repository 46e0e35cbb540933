"""The one reader of mask files: for training, packing, examining and predicting alike.

A mask is grey, white = inpaint, and cut above one half. What else programs save is read where only one thing can be
meant, and refused where it is a guess: datamodules/READING.md has the table, which the tests check. Colour
profiles are not applied: a mask's numbers are no colours.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from PIL import Image, ImageChops, ImageOps

from datamodules.images.reading import Turn, has_alpha, open_image, read_turn

_NOISE = 32  # of 255: colours that differ by less, as in lossy files, are one
_FAINT = 64  # noise on black stays below
_MOST_CLASSES = 30


def read_mask(
    data: bytes,
    size: tuple[int, int],
    turn: Turn = Turn(),  # noqa: B008, immutable
    max_pixels: int = 50_000_000,
    *,
    inverted: bool = False,
    transparent: bool = False,
) -> Image.Image:
    """A mask file -> mode L, 255 = inpaint, upright, of the photo's shape at any resolution.

    Args:
        data: a JPEG, PNG or WEBP.
        size: width and height of the upright photo.
        turn: what the photo's EXIF says.
        max_pixels: refuse larger masks.
        inverted: black = inpaint.
        transparent: the hole is where the file is transparent, as ComfyUI saves it, whatever colours it shows.

    Raises:
        ValueError: if it cannot be opened, is not of the photo's shape, or does not say clearly what is masked.
    """
    image = open_image(data, max_pixels)
    own = read_turn(image)
    image.load()
    way = mask_turn((image.height, image.width) if own.swap else image.size, size, turn if own == Turn() else Turn())
    lossy = image.format != "PNG" and b"VP8L" not in data[:4096]
    grey = ImageOps.invert(_alpha(image)) if transparent else _grey(image, data, lossy)
    grey = turned(turned(grey, own), way)
    return ImageOps.invert(grey) if inverted else grey


def mask_turn(mask: tuple[int, int], photo: tuple[int, int], turn: Turn) -> Turn:
    """How to turn a mask of that (width, height) to lie on an upright photo of that size.

    One of the photo's shape lies on it as it is. One of the shape that a turned photo has in its file was drawn on that
    file, and is turned with it. Where both are alike, as of squares and of photos upside down, it lies as it is.

    Raises:
        ValueError: if it has neither shape, to one pixel.
    """
    stored = photo[::-1] if turn.swap else photo
    if mask == photo or (_alike(mask, photo) and not (turn.swap and mask == stored)):
        return Turn()
    if turn.swap and _alike(mask, stored):
        return turn
    drawn = f", or {stored[0]} x {stored[1]} as it is stored," if turn.swap else ""
    raise ValueError(
        f"expected a mask of the photo's shape, {photo[0]} x {photo[1]} pixels{drawn} or the same smaller or larger, "
        f"got {mask[0]} x {mask[1]}"
    )


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether some factor brings the sides of the other within a pixel of those of the one."""
    low = max((side - 1) / whole for side, whole in zip(one, other, strict=True))
    return low <= min((side + 1) / whole for side, whole in zip(one, other, strict=True))


def turned(image: Image.Image, turn: Turn) -> Image.Image:
    """An image as it lies in its file -> upright."""
    for wanted, way in (
        (turn.swap, Image.Transpose.TRANSPOSE),
        (turn.x, Image.Transpose.FLIP_LEFT_RIGHT),
        (turn.y, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        image = image.transpose(way) if wanted else image
    return image


def _refuse(found: str) -> NoReturn:
    raise ValueError(
        f"expected a mask in black and white (white = inpaint), got {found}; save it as a grey PNG without "
        "transparency. A map of class numbers is read as NAME.label.png, by datamodules.LabelMap"
    )


def _alpha(image: Image.Image) -> Image.Image:
    if not has_alpha(image):
        raise ValueError("expected a mask file with transparency (transparent: true), got one without")
    return image.convert("RGBA").getchannel("A")


def _grey(image: Image.Image, data: bytes, lossy: bool) -> Image.Image:
    """What is masked, white, in the file's orientation."""
    if image.mode.startswith("I"):
        return _of_sixteen_bits(np.asarray(image))
    if image.mode == "CMYK":
        image = image.convert("RGB")
    shown = _over_black(image) if has_alpha(image) else image
    if image.mode == "P" and len(image.getcolors() or ()) > 1 and _is_flat(shown.convert("RGB")):
        _refuse("a palette whose colours are all the same")
    grey = shown.convert("L") if shown.mode in ("1", "L") else _of_colours(shown.convert("RGB"), lossy)
    if image.format == "PNG" and data[24] == 16 and grey.getextrema() == (0, 0):
        _refuse("a colour PNG of 16 bits whose largest value is below 256 of 65535, which cannot be read")
    values = [value for value, count in enumerate(grey.histogram()) if count]
    return grey.point([_read_value(level, values, 255, lossy) for level in range(256)])


def _over_black(image: Image.Image) -> Image.Image:
    """The colours of a file with transparency, if only one of both says what is masked."""
    image = image.convert("RGBA")
    alpha, colours = image.getchannel("A"), image.convert("RGB")
    low, high = alpha.getextrema()
    if low == high:
        return colours
    seen = alpha.point(lambda value: 255 * (value >= min(128, high)))
    spread = [_extremes(channel, seen) for channel in colours.split()]
    if max(most - least for least, most in spread) > _NOISE:
        _refuse(
            "a picture of several colours that is transparent in part, so that both could be the mask (FileMask has "
            "`transparent: true`, make_shards and predict --transparent-masks, for holes in the transparency, as "
            "ComfyUI saves them)"
        )
    if max(most for _, most in spread) < 128:
        _refuse("a dark picture that is transparent in part, so that it is not clear which part is the hole")
    return Image.composite(colours, Image.new("RGB", image.size), alpha)


def _extremes(channel: Image.Image, where: Image.Image) -> tuple[int, int]:
    counts = channel.histogram(where)
    used = [value for value, count in enumerate(counts) if count]
    return used[0], used[-1]


def _is_flat(image: Image.Image) -> bool:
    return all(len([count for count in channel.histogram() if count]) == 1 for channel in image.split())


def _of_colours(image: Image.Image, lossy: bool) -> Image.Image:
    """Grey, or one colour on black, as of strokes in red -> grey."""
    red, green, blue = image.split()
    pairs = ((red, green), (green, blue), (red, blue))
    if not any(any(ImageChops.difference(*pair).histogram()[_NOISE + 1 :]) for pair in pairs):
        return image.convert("L")
    top = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue))
    channels = [np.asarray(channel) for channel in (red, green, blue)]
    bright = top >= 0.75 * top.max()
    colour = np.array([channel[bright].mean() for channel in channels])
    off = np.zeros(top.shape, dtype=bool)
    for channel, share in zip(channels, colour / colour.max(), strict=True):
        off |= np.abs(channel - top * share) > _NOISE
    if off.mean() > (0.01 if lossy else 0):
        _refuse("a picture of several colours")
    scale = 255 / colour.max() if colour.max() >= _FAINT else 1.0
    return Image.fromarray((top * scale).round().clip(0, 255).astype(np.uint8))


def _of_sixteen_bits(levels: np.ndarray) -> Image.Image:
    levels = levels.astype(np.uint16)
    values = np.flatnonzero(np.bincount(levels.ravel(), minlength=65536)).tolist()
    table = np.zeros(65536, dtype=np.uint8)
    table[values] = [_read_value(value, values, 65535, lossy=False) for value in values]
    return Image.fromarray(table[levels])


def _read_value(value: int, values: list[int], top: int, lossy: bool) -> int:
    """One number of a grey file -> 0..255, by all the numbers that the file has, in their order."""
    most = values[-1]
    if (most == 1 and not lossy) or (top > 255 and most == 255 and set(values) <= {0, 255}):
        return 255 * (value == most)
    if 2 * most <= top and len(values) > 1 and not (lossy and 4 <= most < _FAINT):
        _refuse(f"one whose largest value is {most} of {top}, so that nothing would be inpainted")
    classes = [number for number in values if 0 < number < top]
    if classes and most == top and len(classes) <= _MOST_CLASSES and classes == list(range(1, len(classes) + 1)):
        _refuse(f"the values {values}, which look like class numbers, with {top} for none")
    return (value + 128) // 257 if top > 255 else value
