"""Polygons -> masks: a pixel is inside if its centre is, at any subpixel position of the corners.

Pillow's ImageDraw cuts corners to whole pixels and draws the outline on top, which makes small objects fatter.
"""

from __future__ import annotations

import numpy as np

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
