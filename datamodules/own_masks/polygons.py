"""Polygons -> masks: a pixel is inside if its centre is, at any subpixel position of the corners.

Pillow's ImageDraw cuts corners to whole pixels and draws the outline on top, which makes small objects fatter.
"""

from __future__ import annotations

import numpy as np


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill one polygon by the even-odd rule.

    Args:
        points: float (N, 2), x and y of the corners in pixels; (0, 0) is the image's corner, so that the first
            pixel's centre is (.5, .5). Corners may lie outside the image.
        height: H in pixels.
        width: W in pixels.

    Returns:
        bool (H, W).
    """
    low, high = (bound(axis=0).clip(0, (width, height)) for bound in (points.min, points.max))
    (left, top), (right, bottom) = np.floor(low).astype(np.int64), np.ceil(high).astype(np.int64)
    mask = np.zeros((height, width), dtype=bool)
    if right > left and bottom > top:
        mask[top:bottom, left:right] = _fill(points - (left, top), bottom - top, right - left)
    return mask


def _fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """`fill_polygon` in a window of the image, which is all that is computed.

    Every row of pixel centres is met by some edges; each flips inside and outside for the pixels right of it.
    """
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    first, last = (np.ceil(y.clip(0, height) - 0.5).astype(np.int64) for y in (np.minimum(y0, y1), np.maximum(y0, y1)))
    rows = last - first
    edge = np.repeat(np.arange(len(points)), rows)
    row = np.arange(len(edge)) - np.repeat(rows.cumsum() - rows, rows) + first[edge]
    across = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + across * (x1 - x0)[edge]
    column = np.ceil(x.clip(0, width) - 0.5).astype(np.int64)
    flips = np.zeros((height, width + 1), dtype=np.uint8)
    np.bitwise_xor.at(flips, (row, column), 1)
    return np.bitwise_xor.accumulate(flips[:, :width], axis=1).astype(bool)
