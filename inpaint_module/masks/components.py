"""Connected components of masks, to describe them; not for the hot path."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def count_components(masks: Tensor) -> list[int]:
    """In how many pieces each mask is.

    The runs of all rows are the nodes of a graph, in which runs that touch in successive rows are joined; labels sink
    to the least of their neighbours', with pointer jumping in between (Shiloach and Vishkin 1982).

    Args:
        masks: bool (B, 1, H, W). Pixels that touch at a corner alone are joined.

    Returns:
        One number per mask; 0 for an empty one.
    """
    batch, _, height, width = masks.shape
    rows = np.zeros((batch * height, width + 2), np.int8)
    rows[:, 1:-1] = masks.cpu().numpy().reshape(batch * height, width)
    edges = np.diff(rows, axis=1)
    line, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]  # runs are start .. stop - 1
    above, below = _touching(line, start, stop, height, width)
    label = _least_labels(len(line), above, below)
    roots = np.nonzero(label == np.arange(len(line)))[0]
    return np.bincount(line[roots] // height, minlength=batch).tolist()


def _touching(line: np.ndarray, start: np.ndarray, stop: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Pairs of runs in successive rows of one mask that share a side or a corner."""
    stride = 2 * (width + 2)
    own = line * stride
    first = np.searchsorted(own + stop, own - stride + start, side="left")  # ends at or after this one's start
    last = np.searchsorted(own + start, own - stride + stop, side="right")  # begins at or before this one's end
    number = np.where(line % height == 0, 0, np.maximum(last - first, 0))
    below = np.repeat(np.arange(len(line)), number)
    nth = np.arange(len(below)) - np.repeat(np.cumsum(number) - number, number)
    return first[below] + nth, below


def _least_labels(number: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For every node of a graph the least node that it is connected with."""
    label = np.arange(number)
    while True:
        low = np.minimum(label[left], label[right])
        if np.array_equal(label[left], label[right]):
            return label
        before = label.copy()
        for end in (left, right):
            np.minimum.at(label, before[end], low)
            np.minimum.at(label, end, low)
        label = label[label]
