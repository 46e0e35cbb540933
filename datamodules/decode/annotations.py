"""Annotations in a sample's json -> the objects that they outline: COCO's `annotations`, LabelMe's `shapes`.

Read by own code: pycocotools wants the annotations of a whole data set in one file, and takes 4 numbers for a box where
a polygon is meant.

A run-length encoded mask is read column by column, top to bottom; `counts` are the
lengths of its runs in turn, the first of zeros (maybe none). They are a list, or packed into a text (Lin et al. 2014,
COCO API, "mask"):

- a count, from the fourth on, is stored as the difference to the count two before it;
- the number is cut into groups of 5 bits, the lowest first, as two's complement: bit 4 of the last group is its sign;
- each group becomes the character 48 + group, + 32 if more follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from inpaint_module.parsing import parse_json

_MOST_GROUPS = 7  # 35 bits; counts are 32-bit numbers


def unpack_counts(text: str) -> np.ndarray:
    """The run lengths of a packed text; int64 (N,).

    Raises:
        ValueError: if the text is not of this kind.
    """
    groups = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    last = (groups & 32) == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(starts, append=len(groups))
    if groups.min() < 0 or groups.max() > 63 or not last[-1] or lengths.max() > _MOST_GROUPS:
        raise ValueError(f"expected packed COCO counts, got {text[:40]!r}")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & 31) << (5 * place), starts)
    numbers -= np.where(groups[last] & 16, np.int64(1) << (5 * lengths), 0)
    for start in (1, 2):
        numbers[start::2] = numbers[start::2].cumsum()
    return numbers


def read_runs(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Run lengths, packed or not -> int64 (N,).

    Raises:
        ValueError: if they do not cover the image exactly.
    """
    runs = unpack_counts(counts) if isinstance(counts, str) else np.array(counts)
    if runs.ndim != 1 or (len(runs) and runs.dtype.kind != "i"):
        raise ValueError(f"expected COCO counts as a text or a list of integers, got {str(counts)[:40]}")
    pixels = height * width
    if height < 1 or width < 1 or ((runs < 0) | (runs > pixels)).any() or runs.sum() != pixels:
        raise ValueError(
            f"expected COCO counts of at least 0 that sum to {height} x {width} = {pixels} pixels, "
            f"got a sum of {runs.sum()} and a least count of {runs.min(initial=0)}"
        )
    return runs


_CIRCLE = 128  # corners of a polygon that stands for a circle
_LABELME_POLYGONS = ("polygon", "rotation", None, "")
TOO_FEW = "outlines of fewer than three points"


class RunLengths(NamedTuple):
    """A mask of (height, width) pixels as COCO run lengths, packed or not, not decoded yet."""

    counts: Any
    height: int
    width: int


class Annotation(NamedTuple):
    """One object: run lengths, or polygons, each float (N, 2), x and y; `category` is "" where none is given."""

    shape: RunLengths | list[np.ndarray]
    category: str = ""


class Annotations(NamedTuple):
    """The objects of one picture.

    Attributes:
        objects: in their order in the file.
        width: of the picture that polygons refer to; None where the file does not say.
        height: likewise.
        left_out: why outlines were left out, a reason for each.
    """

    objects: list[Annotation]
    width: int | None
    height: int | None
    left_out: list[str]


def parse_annotations(data: bytes) -> Annotations:
    """Read a json: {"annotations": [{"segmentation": ..., "bbox": ..., "category_id": ...}, ...]}, {"segmentation":
    ...} of one object, or LabelMe's {"shapes": [{"label": ..., "points": ..., "shape_type": ...}, ...]}.

    A segmentation is {"counts": text or list, "size": [height, width]}, or a list of polygons [x1, y1, x2, y2, ...].
    Where there is none, the rectangle `bbox` [x, y, width, height] is the object. Outlines of fewer than three points
    are left out, as are LabelMe's points and lines.

    Raises:
        ValueError: saying what was expected.
    """
    content = parse_json(data, "json", strict=False).value
    if not isinstance(content, dict):
        raise ValueError(f"expected an object in json, got {type(content).__name__}")
    left_out: list[str] = []
    objects = [*_coco_objects(content, left_out), *_labelme_objects(content, left_out)]
    sides = [_first(content, "width", "imageWidth"), _first(content, "height", "imageHeight")]
    if not objects:
        return Annotations([], None, None, left_out)
    width, height = (None if side is None else whole(side, sides) for side in sides)
    return Annotations(objects, width, height, left_out)


def check_runs(found: Annotations) -> None:
    """Refuse run lengths that do not cover their picture, which are else found when a mask is made of them."""
    for one in found.objects:
        if isinstance(one.shape, RunLengths):
            read_runs(*one.shape)


def whole(side: Any, sides: Any) -> int:
    """A side in pixels: 640 or 640.0; `sides` is what the message shows."""
    if type(side) not in (int, float) or not 0 < side < 2**31 or side != int(side):
        raise ValueError(f"expected width and height as positive whole numbers in json, got {tuple(sides)}")
    return int(side)


def _first(content: dict[str, Any], *names: str) -> Any:
    return next((content[name] for name in names if content.get(name) is not None), None)


def _objects_of(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = content.get(name)
    if found is not None and not (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
        raise ValueError(f"expected a list of objects as {name} in json, got {found!s:.60}")
    return found or []


def _coco_objects(content: dict[str, Any], left_out: list[str]) -> list[Annotation]:
    single = [content] if "segmentation" in content and content.get("annotations") is None else []
    found = []
    for one in single or _objects_of(content, "annotations"):
        shape = _segmentation(one.get("segmentation"), one.get("bbox"), left_out)
        if shape:
            found.append(Annotation(shape, _category(one.get("category_id"))))
    return found


def _category(value: Any) -> str:
    """1, 1.0 and "1" are one category."""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return "" if value is None else str(value).strip()


def _segmentation(segmentation: Any, box: Any, left_out: list[str]) -> RunLengths | list[np.ndarray] | None:
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation)
    if not segmentation:
        return None if box is None else _kept([_box(box)], left_out)
    if not isinstance(segmentation, list):
        raise ValueError(f"expected a segmentation as an object or a list, got {type(segmentation).__name__}")
    return _kept([_corners(polygon) for polygon in segmentation], left_out)


def _run_lengths(segmentation: dict[str, Any]) -> RunLengths:
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or "counts" not in segmentation:
        raise ValueError('expected a segmentation as {"counts": ..., "size": [height, width]}')
    height, width = (whole(side, size[::-1]) for side in size)
    return RunLengths(segmentation["counts"], height, width)


def _kept(polygons: list[np.ndarray], left_out: list[str]) -> list[np.ndarray] | None:
    """The polygons of three points or more; None if there are none."""
    kept = [polygon for polygon in polygons if len(polygon) > 2]
    left_out += [TOO_FEW] * (len(polygons) - len(kept))
    return kept or None


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and all(type(number) in (int, float) for number in values)
        and all(map(math.isfinite, values))
    )


def _corners(polygon: Any) -> np.ndarray:
    """A flat list x1, y1, x2, y2, ... -> float (N, 2)."""
    if not _numbers(polygon) or len(polygon) % 2:
        raise ValueError(f"expected a polygon as a list x1, y1, x2, y2, ... of numbers, got {polygon!s:.60}")
    return np.array(polygon, dtype=np.float64).reshape(-1, 2)


def _box(box: Any) -> np.ndarray:
    if not _numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        raise ValueError(f"expected a bbox as [x, y, width, height], got {box!s:.60}")
    left, top, width, height = box
    return _rectangle(left, top, left + width, top + height)


def _rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64)


def _labelme_objects(content: dict[str, Any], left_out: list[str]) -> list[Annotation]:
    found = []
    for shape in _objects_of(content, "shapes"):
        points = shape.get("points")
        if not isinstance(points, list) or not all(_numbers(point) and len(point) == 2 for point in points):
            raise ValueError(f"expected the points of a LabelMe shape as [[x, y], ...], got {points!s:.60}")
        outline = _labelme_outline(shape.get("shape_type"), np.array(points, dtype=np.float64).reshape(-1, 2))
        if outline is None:
            left_out.append(f"LabelMe shapes of the type {shape['shape_type']!r:.30}")
        elif kept := _kept([outline], left_out):
            found.append(Annotation(kept, _category(shape.get("label"))))
    return found


def _labelme_outline(kind: Any, points: np.ndarray) -> np.ndarray | None:
    """The polygon of a shape; None for a kind that encloses nothing or is not read."""
    if kind in _LABELME_POLYGONS:
        return points
    if kind == "rectangle" and len(points) > 1:
        return _rectangle(*points.min(axis=0), *points.max(axis=0))
    if kind == "circle" and len(points) == 2:
        angles = np.arange(_CIRCLE) * (2 * math.pi / _CIRCLE)
        radius = np.hypot(*(points[1] - points[0]))
        return points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return None
