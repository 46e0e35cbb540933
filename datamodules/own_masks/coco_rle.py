"""COCO's run-length encoded masks -> arrays.

A mask is read column by column, top to bottom; `counts` are the lengths of its runs in turn, the first of zeros
(maybe none). They are a list, or packed into a text (Lin et al. 2014, COCO API, "mask"):

- a count, from the fourth on, is stored as the difference to the count two before it;
- the number is cut into groups of 5 bits, the lowest first, as two's complement: bit 4 of the last group is its sign;
- each group becomes the character 48 + group, + 32 if more follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def decode_rle(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Run lengths, packed or not -> bool (H, W).

    Raises:
        ValueError: if they do not cover the image exactly.
    """
    runs = read_runs(counts, height, width)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
