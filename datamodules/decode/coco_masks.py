"""Masks from annotations in a sample's json: COCO's run lengths, polygons and boxes, and LabelMe's shapes.

Of a polygon, a pixel is inside if its centre is, at any subpixel position of the corners.

Pillow's ImageDraw cuts corners to whole pixels and draws the outline on top, which makes small objects fatter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datamodules.decode.annotations import Annotation, Annotations, RunLengths, parse_annotations, read_runs
from datamodules.decode.mask_files import mask_turn
from datamodules.decode.mask_sources import MaskRequest, MaskSource, to_mask
from datamodules.decode.reading import Turn

_MOST_CROSSINGS = 1 << 22  # of edges with pixel rows, of all polygons of a picture: a second's work
_MERGED = 1 << 20  # spans that are united at once


class Spans(NamedTuple):
    """Pixels that are set, as ranges of an image's flat index: where each begins and has ended, int64 (N,)."""

    begin: np.ndarray
    end: np.ndarray


def fill_polygons(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of polygons, each filled by the even-odd rule -> bool (H, W).

    Args:
        polygons: each float (N, 2), x and y of the corners in pixels; (0, 0) is the image's corner, so that the first
            pixel's centre is (.5, .5). Corners may lie outside the image.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: if they go to and fro so often that their edges meet more than 4 million pixel rows.
    """
    return _unite(_polygon_spans(polygons, height, width), height * width).reshape(height, width)


def unite_rle(parts: Iterable[RunLengths]) -> np.ndarray:
    """The union of run-length encoded masks of one size -> bool (H, W); `Raises` as `read_runs`."""
    parts = list(parts)
    _, height, width = parts[0]
    return _unite((_rle_spans(*part) for part in parts), height * width).reshape(width, height).T


def _unite(parts: Iterable[Spans], pixels: int) -> np.ndarray:
    """The union of spans in any order -> bool (pixels,), which is written once, however many they are."""
    held, count = [Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))], 0
    for part in parts:
        held.append(part)
        count += len(part.begin)
        if count > _MERGED:
            held, count = [_merged(held)], 0
    edges = np.stack(_merged(held), axis=1).ravel()
    return np.repeat(np.arange(len(edges) + 1) % 2 == 1, np.diff(edges, prepend=0, append=pixels))


def _merged(parts: list[Spans]) -> Spans:
    """The same pixels as spans that do not overlap, in order."""
    begin, end = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.argsort(begin, kind="stable")
    begin, reached = begin[order], np.maximum.accumulate(end[order])
    apart = begin[1:] > reached[:-1]
    return Spans(begin[np.append(True, apart)[: len(begin)]], reached[np.append(apart, True)[: len(begin)]])


def _rle_spans(counts: Any, height: int, width: int) -> Spans:
    """Of a mask that is read column by column."""
    edges = read_runs(counts, height, width).cumsum()
    end = edges[1::2]
    return Spans(edges[::2][: len(end)], end)


def _polygon_spans(polygons: Iterable[np.ndarray], height: int, width: int) -> Iterator[Spans]:
    """Of a mask that is read row by row.

    Every row of pixel centres is met by some edges; from each to the next of its polygon it is inside, then outside.
    Computed in the window of the polygon, in whose coordinates corners are rounded as they always were.
    """
    left = _MOST_CROSSINGS
    for points in polygons:
        low, high = (bound(axis=0).clip(0, (width, height)) for bound in (points.min, points.max))
        corner, opposite = np.floor(low).astype(np.int64), np.ceil(high).astype(np.int64)
        columns, rows = opposite - corner
        if columns > 0 and rows > 0:
            row, column = _crossings(points - corner, rows, columns, left)
            left -= len(row)
            flat = np.sort((row + corner[1]) * (width + 1) + column + corner[0])  # a row ends one behind its pixels
            yield Spans(*(each - each // (width + 1) for each in (flat[::2], flat[1::2])))


def _crossings(points: np.ndarray, height: int, width: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Where edges meet rows of pixel centres: the row, and the first column whose centre is not left of the edge."""
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    first, last = (np.ceil(bound(y0, y1).clip(0, height) - 0.5).astype(np.int64) for bound in (np.minimum, np.maximum))
    rows = last - first
    if rows.sum() > most:
        raise ValueError(f"expected polygons whose edges meet at most {_MOST_CROSSINGS} pixel rows, got more")
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(rows.cumsum() - rows, rows) + first[edge]
    across = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + across * (x1 - x0)[edge]
    return row, np.ceil(x.clip(0, width) - 0.5).astype(np.int64)


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
        masks = object_masks(objects, found, request)
        return to_mask(next(masks)) if len(objects) == 1 else _at_size(masks, request.size)

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


def _at_size(masks: Iterable[np.ndarray], size: tuple[int, int]) -> Image.Image | None:
    """The union of masks, each brought to the image's width and height."""
    union = np.zeros(size[::-1], dtype=bool)
    for mask in masks:
        same = mask.shape == union.shape
        union |= mask if same else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return to_mask(union)


def object_masks(objects: list[Annotation], found: Annotations, request: MaskRequest) -> Iterator[np.ndarray]:
    """Objects -> bool (H, W), upright: a union for each size of run lengths, and one of polygons at the image's size.

    Args:
        objects: of `found`, at least one.
        found: says the width and height of the picture that polygons refer to.
        request: the sample.

    Raises:
        ValueError: saying what was expected, such as a picture of the image's shape.
    """
    encoded: dict[tuple[int, int], list[RunLengths]] = {}
    for one in objects:
        if isinstance(one.shape, RunLengths):
            encoded.setdefault((one.shape.width, one.shape.height), []).append(one.shape)
    if sum(width * height for width, height in encoded) > request.max_pixels:
        sizes = ", ".join(f"{width} x {height}" for width, height in list(encoded)[:3])
        raise ValueError(f"expected a segmentation of at most {request.max_pixels} pixels, got {sizes}")
    for size, parts in encoded.items():
        turn = mask_turn(size, request.size, request.turn)
        yield _turned(unite_rle(parts), turn)
    polygons = [each for one in objects if not isinstance(one.shape, RunLengths) for each in one.shape]
    if polygons:
        yield _polygon_mask(polygons, found, request)


def _polygon_mask(polygons: list[np.ndarray], found: Annotations, request: MaskRequest) -> np.ndarray:
    frame = (found.width or request.size[0], found.height or request.size[1])
    turn = mask_turn(frame, request.size, request.turn)
    width, height = request.size[::-1] if turn.swap else request.size
    scale = np.array([width / frame[0], height / frame[1]])
    return _turned(fill_polygons((polygon * scale for polygon in polygons), height, width), turn)


def _turned(mask: np.ndarray, turn: Turn) -> np.ndarray:
    mask = mask.T if turn.swap else mask
    return mask[:: -1 if turn.y else 1, :: -1 if turn.x else 1]
