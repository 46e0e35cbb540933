"""The one reader of mask files, for training, packing, examining and predicting alike; what looks odd about masks.

A mask is grey, white = inpaint, and cut above one half. What else programs save is read where only one thing can be
meant, and refused where it is a guess: datamodules/READING.md has the table, which the tests check. Colour
profiles are not applied: a mask's numbers are no colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageChops, ImageOps

from datamodules.decode.reading import Turn, has_alpha, open_image, read_turn
from datamodules.shards.shard_set import Contents, ShardSet, look_into

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
        transparent: the hole is where the file is transparent, as ComfyUI saves it, whatever its colours.

    Raises:
        ValueError: if it cannot be opened, is not of the photo's shape, or does not say clearly what is masked.
    """
    return mask_of(open_image(data, max_pixels), data, size, turn, inverted=inverted, transparent=transparent)


def mask_of(
    image: Image.Image,
    data: bytes,
    size: tuple[int, int],
    turn: Turn = Turn(),  # noqa: B008, immutable
    *,
    inverted: bool = False,
    transparent: bool = False,
) -> Image.Image:
    """`read_mask` of a file that is opened already."""
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
    opaque = _over_black(image) if has_alpha(image) else image
    if image.mode == "P" and len(image.getcolors() or ()) > 1 and _is_flat(opaque.convert("RGB")):
        _refuse("a palette whose colours are all the same")
    if opaque.mode in ("1", "L"):
        grey = opaque.convert("L")
    else:
        grey = _of_colours(opaque if opaque.mode == "RGB" else opaque.convert("RGB"), lossy)
    if image.format == "PNG" and data[24] == 16 and grey.getextrema() == (0, 0):
        _refuse("a colour PNG of 16 bits whose largest value is below 256 of 65535, which cannot be read")
    values = _values(grey)
    if _has_two(values, 255, lossy):
        return grey.point([255 * (level == values[-1]) for level in range(256)])
    return grey


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
    planes = [image.tobytes("raw", band) for band in "RGB"]
    if planes[0] == planes[1] == planes[2]:  # in a fifth of the time of what follows
        return Image.frombytes("L", image.size, planes[0])
    red, green, blue = image.split()
    if not any(_differ(*pair) for pair in ((red, green), (green, blue), (red, blue))):
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


def _values(grey: Image.Image) -> list[int]:
    """The numbers that a grey picture has, in their order; of one in black and white without counting all pixels."""
    low, high = grey.getextrema()
    if (low, high) == (0, 255) and (np.frombuffer(grey.tobytes(), np.uint8) + np.uint8(1)).max() == 1:  # 255 becomes 0
        return [0, 255]
    return [value for value, count in enumerate(grey.histogram()) if count]


def _differ(one: Image.Image, other: Image.Image) -> bool:
    """Whether two channels are apart somewhere, by more than noise."""
    return int(ImageChops.difference(one, other).getextrema()[1]) > _NOISE  # type: ignore[arg-type]


def _of_sixteen_bits(levels: np.ndarray) -> Image.Image:
    levels = levels.astype(np.uint16)
    values = np.flatnonzero(np.bincount(levels.ravel(), minlength=65536)).tolist()
    if _has_two(values, 65535, lossy=False):
        return Image.fromarray((levels == values[-1]).astype(np.uint8) * np.uint8(255))
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _has_two(values: list[int], top: int, lossy: bool) -> bool:
    """Whether the numbers of a grey file, in their order, are two whose greater one means white, as 0 and 1; else they
    are levels up to `top`. Numbers that are neither are refused."""
    most = values[-1]
    if (most == 1 and not lossy) or (top > 255 and most == 255 and set(values) <= {0, 255}):
        return True
    if 2 * most <= top and len(values) > 1 and not (lossy and 4 <= most < _FAINT):
        _refuse(f"one whose largest value is {most} of {top}, so that nothing would be inpainted")
    classes = [number for number in values if 0 < number < top]
    if classes and most == top and len(classes) <= _MOST_CLASSES and classes == list(range(1, len(classes) + 1)):
        _refuse(f"the values {values}, which look like class numbers, with {top} for none")
    return False


EMPTY = "with an empty mask: nothing in it is white"
FULL = "with a full mask: all of it is white"
INVERTED = "with a mask that looks inverted: white is what is inpainted"
_ENOUGH = 64
_MOSTLY = 0.9
_MUCH, _EDGE = 0.6, 0.8  # shares of a mask and of its border


def look_inverted(coverages: Sequence[float]) -> bool:
    """Whether so large a share (0..1) of each mask is masked, on average, that 1 seems to mean keep."""
    return sum(coverages) > _MOSTLY * len(coverages)


def why_look(mask: np.ndarray) -> str | None:
    """What is odd about one mask, bool (H, W), as a kind of an account; None if nothing is."""
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if not mask.any():
        return EMPTY
    if mask.all():
        return FULL
    return INVERTED if mask.mean() > _MOSTLY or (mask.mean() > _MUCH and edges.mean() > _EDGE) else None


def how_often_line(contents: Contents, share: float) -> str | None:
    """What to say of masks in the shards, which a mask generator is not asked for; None if there are none.

    Args:
        contents: of the training shards.
        share: how often (0..1) a mask of a sample's own is used.
    """
    masks, looked = contents.account.found["masks"], contents.account.taken
    if not masks or not share:
        return None
    of = f"{masks} of {looked}" if contents.whole else f"{masks} of {looked} looked at, of {contents.samples} in all"
    return (
        f"data: {masks / looked:.0%} of the training samples ({of}) have a mask of their own, which is used in place "
        f"of data.mask_generator's at {share:.0%} of their visits (data.masks.share: {share:g}); "
        "0 there leaves them out"
    )


class InvertedMasksWarning:
    """Looks at the first 64 masks from the data and warns once; to be called where batches arrive, on the CPU."""

    def __init__(self) -> None:
        self.coverages: list[float] = []
        self._begun = False

    def begin(self, shards: ShardSet, share: float) -> None:
        """Say once, as training begins, which share of its samples brings a mask file, used at this share of visits."""
        if not self._begun and share:
            from lightning.pytorch.utilities import rank_zero_info  # as below

            if line := how_often_line(look_into(shards), share):
                rank_zero_info(line)
        self._begun = True

    def __call__(self, batch: dict[str, Any]) -> None:
        """Note the masks of a batch of `collate`, whose `has_mask` is true of those from the data."""
        if "mask" not in batch or len(self.coverages) >= _ENOUGH:
            return
        own = batch["mask"][batch["has_mask"]] if "has_mask" in batch else batch["mask"]
        self.coverages += own.float().mean(dim=(1, 2, 3)).tolist()
        if len(self.coverages) >= _ENOUGH and look_inverted(self.coverages):
            from lightning.pytorch.utilities import rank_zero_warn  # seconds, which make_shards need not wait

            share = sum(self.coverages) / len(self.coverages)
            rank_zero_warn(
                f"the first {len(self.coverages)} masks from the shards are {share:.0%} white, up to sample "
                f"{batch['__key__'][-1]!r}; white is what is inpainted. If yours mark what to keep, set "
                "`inverted: true` of the source in data.masks.sources"
            )
