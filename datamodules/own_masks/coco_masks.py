"""Masks from COCO annotations in a sample's json: run lengths, packed or not, and polygons."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from datamodules.own_masks.coco_rle import decode_rle
from datamodules.own_masks.mask_sources import MaskRequest, MaskSource, to_mask
from datamodules.own_masks.polygons import fill_polygon


class CocoMask(MaskSource):
    """Objects of the sample's `json`: {"annotations": [{"segmentation": ..., "category_id": ...}, ...]}.

    A segmentation is {"counts": text or list, "size": [height, width]}, or a list of polygons [x1, y1, x2, y2, ...],
    filled one by one (even-odd) and united. Corners are in pixels of a picture of the json's "width" and "height" if it
    has them, else of the image; (0, 0) is the corner of the first pixel. {"segmentation": ...} alone is one object.

    Args:
        category_ids: Use only annotations of these categories; null for all.
        union: Inpaint all objects of a sample at once; else one of them, drawn by the sample's position.

    Raises:
        ValueError: category_ids is an empty list.
    """

    def __init__(self, category_ids: list[int] | None = None, union: bool = False) -> None:
        if category_ids is not None and not category_ids:
            raise ValueError("CocoMask.category_ids: expected at least one number, or null for all, got []")
        self.category_ids = category_ids
        self.union = union

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`; a sample without annotations of these categories has no mask."""
        if "json" not in request.fields:
            return None
        content = json.loads(request.fields["json"])
        if not isinstance(content, dict):
            raise ValueError(f"expected an object in json, got {type(content).__name__}")
        objects = self._objects(content)
        if not objects:
            return None
        if not self.union:
            objects = [objects[int(request.draw * len(objects))]]
        size = _positive(content.get("width", request.size[0]), content.get("height", request.size[1]))
        masks = [segmentation_mask(one, size, request) for one in objects]
        return to_mask(masks[0]) if len(masks) == 1 else _unite(masks, request.size)

    def _objects(self, content: dict[str, Any]) -> list[Any]:
        """The segmentations to choose from."""
        annotations = content.get("annotations", [content] if "segmentation" in content else [])
        if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
            raise ValueError("expected a list of objects as annotations in json")
        wanted = [one for one in annotations if one.get("segmentation")]
        if self.category_ids is not None:
            wanted = [one for one in wanted if one.get("category_id") in self.category_ids]
        return [one["segmentation"] for one in wanted]


def _positive(*sizes: Any) -> tuple[int, ...]:
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"expected width and height as positive whole numbers in json, got {sizes}")
    return sizes


def _unite(masks: list[np.ndarray], size: tuple[int, int]) -> Image.Image | None:
    """The union of masks, each brought to the image's width and height."""
    union = np.zeros(size[::-1], dtype=bool)
    for mask in masks:
        same = mask.shape == union.shape
        union |= mask if same else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return to_mask(union)


def segmentation_mask(segmentation: Any, size: tuple[int, ...], request: MaskRequest) -> np.ndarray:
    """One COCO segmentation -> bool (H, W): run lengths at their own size, polygons at the image's.

    Args:
        segmentation: as in the json.
        size: width and height of the picture that polygons refer to.
        request: the sample.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(segmentation, dict):
        return _runs(segmentation, request.max_pixels)
    if not isinstance(segmentation, list):
        raise ValueError(f"expected a segmentation as an object or a list, got {type(segmentation).__name__}")
    width, height = request.size
    scale = np.array([width / size[0], height / size[1]])
    mask = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        mask |= fill_polygon(_corners(polygon) * scale, height, width)
    return mask


def _runs(segmentation: dict[str, Any], max_pixels: int) -> np.ndarray:
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or "counts" not in segmentation:
        raise ValueError('expected a segmentation as {"counts": ..., "size": [height, width]}')
    width, height = _positive(size[1], size[0])
    if width * height > max_pixels:
        raise ValueError(f"expected a segmentation of at most {max_pixels} pixels, got {width} x {height}")
    return decode_rle(segmentation["counts"], height, width)


def _corners(polygon: Any) -> np.ndarray:
    """A flat list x1, y1, x2, y2, ... -> float (N, 2)."""
    numbers = isinstance(polygon, list) and all(type(number) in (int, float) for number in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
        raise ValueError(f"expected a polygon as a list x1, y1, x2, y2, ... of 6 or more numbers, got {polygon!s:.60}")
    return np.array(polygon, dtype=np.float64).reshape(-1, 2)
