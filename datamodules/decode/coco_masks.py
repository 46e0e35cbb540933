"""Masks from annotations in a sample's json: COCO's run lengths, polygons and boxes, and LabelMe's shapes.

Of a polygon, a pixel is inside if its centre is, at any subpixel position of the corners.

Pillow's ImageDraw cuts corners to whole pixels and draws the outline on top, which makes small objects fatter.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from datamodules.decode.annotations import Annotation, Annotations, RunLengths, decode_rle, parse_annotations
from datamodules.decode.mask_files import mask_turn
from datamodules.decode.mask_sources import MaskRequest, MaskSource, to_mask
from datamodules.decode.reading import Turn

_EDGES = 1 << 16  # edges times rows that are held at once


def fill_polygon(points: np.ndarray, mask: np.ndarray) -> None:
    """Add one polygon to a mask, filled by the even-odd rule.

    Args:
        points: float (N, 2), x and y of the corners in pixels; (0, 0) is the image's corner, so that the first
            pixel's centre is (.5, .5). Corners may lie outside the image.
        mask: bool (H, W), which is changed.

    Raises:
        ValueError: if it goes to and fro so often that its edges meet more pixel rows than the mask has pixels.
    """
    height, width = mask.shape
    low, high = (bound(axis=0).clip(0, (width, height)) for bound in (points.min, points.max))
    (left, top), (right, bottom) = np.floor(low).astype(np.int64), np.ceil(high).astype(np.int64)
    if right > left and bottom > top:
        mask[top:bottom, left:right] |= _fill(points - (left, top), bottom - top, right - left)


def _fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """`fill_polygon` in a window of the image, which is all that is computed.

    Every row of pixel centres is met by some edges; each flips inside and outside for the pixels right of it.
    """
    starts, ends = points, np.roll(points, -1, axis=0)
    lows, highs = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first, last = (np.ceil(y.clip(0, height) - 0.5).astype(np.int64) for y in (lows, highs))
    total = (last - first).cumsum()
    most = max(height * width, _EDGES)
    if total[-1] > most:
        raise ValueError(f"expected a polygon whose edges meet at most {most} pixel rows, got {total[-1]}")
    flips = np.zeros((height, width + 1), dtype=np.uint8)
    begin = 0
    while begin < len(points):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _EDGES)))
        part = slice(begin, end)
        _flip(flips, starts[part], ends[part], first[part], last[part])
        begin = end
    np.bitwise_xor.accumulate(flips, axis=1, out=flips)
    return flips[:, :width].view(bool)


def _flip(flips: np.ndarray, starts: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """Mark where some edges meet the rows from `first` to `last`."""
    rows = last - first
    (x0, y0), (x1, y1) = starts.T, ends.T
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(rows.cumsum() - rows, rows) + first[edge]
    across = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + across * (x1 - x0)[edge]
    column = np.ceil(x.clip(0, flips.shape[1] - 1) - 0.5).astype(np.int64)
    np.bitwise_xor.at(flips, (row, column), 1)


class CocoMask(MaskSource):
    """Objects of the sample's `json`: {"annotations": [{"segmentation": ..., "category_id": ...}, ...]}.

    A segmentation is {"counts": text or list, "size": [height, width]}, or a list of polygons [x1, y1, x2, y2, ...],
    filled one by one (even-odd) and united; where there is none the rectangle "bbox" is filled. LabelMe's {"shapes":
    ...} are read too: polygons, rectangles and circles. Corners are in pixels of a picture of the json's "width" and
    "height" if it has them, else of the image; (0, 0) is the corner of the first pixel. {"segmentation": ...} alone is
    one object. Outlines of fewer than three points are left out.

    Args:
        category_ids: Use only annotations of these categories, by number, or by name LabelMe's; null for all.
        union: Inpaint all objects of a sample at once; else one of them, drawn by the sample's position.

    Raises:
        ValueError: category_ids is an empty list.
    """

    def __init__(self, category_ids: list[int | str] | None = None, union: bool = False) -> None:
        if category_ids is not None and not category_ids:
            raise ValueError("CocoMask.category_ids: expected at least one number, or null for all, got []")
        self.category_ids = category_ids
        self.union = union

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`; a sample without annotations of these categories has no mask."""
        if "json" not in request.fields:
            return None
        found = parse_annotations(request.fields["json"])
        objects = self._wanted(found)
        if not objects:
            return None
        if not self.union:
            objects = [objects[int(request.draw * len(objects))]]
        masks = (object_mask(one, found, request) for one in objects)  # one at a time: each may be large
        return to_mask(next(masks)) if len(objects) == 1 else _unite(masks, request.size)

    def _wanted(self, found: Annotations) -> list[Annotation]:
        """The objects to choose from."""
        if self.category_ids is None:
            return found.objects
        chosen = {str(category) for category in self.category_ids}
        wanted = [one for one in found.objects if one.category in chosen]
        named = [one.category for one in found.objects if one.category and not one.category.isdigit()]
        if named and not wanted and all(category.isdigit() for category in chosen):
            raise ValueError(
                f"CocoMask.category_ids: expected the categories' names, as the json has them, such as {named[0]!r}, "
                f"got {self.category_ids}"
            )
        return wanted


def _unite(masks: Iterable[np.ndarray], size: tuple[int, int]) -> Image.Image | None:
    """The union of masks, each brought to the image's width and height."""
    union = np.zeros(size[::-1], dtype=bool)
    for mask in masks:
        same = mask.shape == union.shape
        union |= mask if same else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return to_mask(union)


def object_mask(one: Annotation, found: Annotations, request: MaskRequest) -> np.ndarray:
    """One object -> bool (H, W), upright: run lengths at their own size, polygons at the image's.

    Args:
        one: of `found`.
        found: says the width and height of the picture that polygons refer to.
        request: the sample.

    Raises:
        ValueError: saying what was expected, such as a picture of the image's shape.
    """
    if isinstance(one.shape, RunLengths):
        counts, rows, columns = one.shape
        if rows * columns > request.max_pixels:
            most = request.max_pixels
            raise ValueError(f"expected a segmentation of at most {most} pixels, got {columns} x {rows}")
        return _turned(decode_rle(counts, rows, columns), mask_turn((columns, rows), request.size, request.turn))
    frame = (found.width or request.size[0], found.height or request.size[1])
    turn = mask_turn(frame, request.size, request.turn)
    width, height = request.size[::-1] if turn.swap else request.size
    scale, mask = np.array([width / frame[0], height / frame[1]]), np.zeros((height, width), dtype=bool)
    for polygon in one.shape:
        fill_polygon(polygon * scale, mask)
    return _turned(mask, turn)


def _turned(mask: np.ndarray, turn: Turn) -> np.ndarray:
    mask = mask.T if turn.swap else mask
    return mask[:: -1 if turn.y else 1, :: -1 if turn.x else 1]
