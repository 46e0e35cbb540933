"""Paint many marks into many masks at once.

Every brush stroke, box, disc and strip is one primitive, the oriented box with a corner radius. It is convex, so each
image row meets it in one interval: the ends of all intervals go into a difference array of shape (B, H, W), and one
cumulative sum along the rows fills them. Work is the rows that marks span plus H x W, without a loop over marks. On a
CPU the intervals are sorted and merged instead, and filled by words of 64 pixels.

Borders use nothing but IEEE + - * / sqrt, floor and ceil in float32, so that devices agree on every pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inpaint_module.masks.generator import cheap_to_read, square_root

MAX_INTERVALS = 1 << 22  # row intervals in flight: about 0.3 GiB
_NOWHERE = -1.0e6  # an interval's right end where a row misses the mark


class Marks(NamedTuple):
    """Oriented boxes with rounded corners, each field float32 (B, M), pixels; pixel centres lie on integers.

    Attributes:
        x: centre, along the width.
        y: centre, along the height.
        along: half the length along the axis.
        across: half the width across it.
        cos: the axis is (cos, sin) in (x, y).
        sin: see `cos`.
        radius: of the corners, at most min(along, across); equal to `across`, the mark is a round-ended brush stroke.
        visible: bool (B, M); the others paint nothing.
    """

    x: Tensor
    y: Tensor
    along: Tensor
    across: Tensor
    cos: Tensor
    sin: Tensor
    radius: Tensor
    visible: Tensor


def with_radius(marks: Marks, radius: Tensor) -> Marks:
    """The same marks with other corners, float32 (B, M); not by `_replace`, which torch 2.6 does not compile."""
    return Marks(marks.x, marks.y, marks.along, marks.across, marks.cos, marks.sin, radius, marks.visible)


def strokes(start: Tensor, end: Tensor, width: Tensor, visible: Tensor) -> Marks:
    """Round-ended lines.

    Args:
        start: float32 (B, M, 2), x and y of one end.
        end: float32 (B, M, 2), the other.
        width: float32 (B, M).
        visible: bool (B, M).
    """
    centre, half = (start + end) / 2, (end - start) / 2
    length = square_root(half[..., 0] * half[..., 0] + half[..., 1] * half[..., 1])
    divisor = length.clamp_min(1e-9)
    cos = torch.where(length > 0, half[..., 0] / divisor, 1.0)
    radius = width / 2
    return Marks(centre[..., 0], centre[..., 1], length + radius, radius, cos, half[..., 1] / divisor, radius, visible)


def boxes(left: Tensor, top: Tensor, width: Tensor, height: Tensor, visible: Tensor) -> Marks:
    """Axis-parallel boxes that cover columns left .. left + width - 1 and rows alike; float32 or int64 (B, M) each."""
    along, across = (width - 1).float() / 2, (height - 1).float() / 2
    zero = torch.zeros_like(along)
    return Marks(left + along, top + across, along, across, zero + 1, zero, zero, visible)


def paint(marks: Marks, height: int, width: int, max_rows: int) -> Tensor:
    """The union of each sample's marks.

    Samples are painted in groups of at most `MAX_INTERVALS` row intervals, a bound that needs no look at the marks;
    memory is then that of the marks and of the masks, however many marks there are.

    Args:
        marks: fields (B, M).
        height: H.
        width: W.
        max_rows: no mark spans more rows than this; a bound that is known without asking the device.

    Returns:
        bool (B, 1, H, W). A pixel is in a mark when its centre is.
    """
    rows = min(max_rows, height)
    group = max(1, MAX_INTERVALS // max(1, marks.x.shape[1] * rows))
    groups = zip(*(field.split(group) for field in marks), strict=True)
    if cheap_to_read(marks.x):
        found = [_runs(Marks(*fields), height, width) for fields in groups]
        places = [sample * group * height * width + runs for sample, runs in enumerate(found)]
        return between(_merged(np.concatenate(places, 1)), (len(marks.x), 1, height, width))
    painted = [_paint_group(Marks(*fields), height, width, rows) for fields in groups]
    return painted[0] if len(painted) == 1 else torch.cat(painted)


def _paint_group(marks: Marks, height: int, width: int, max_rows: int) -> Tensor:
    rows = _padded_rows(marks, height, max_rows)
    start, end = _interval(rows, width)
    # of 32 bits: a GPU adds those in one instruction, and fewer by trying until no other has come between
    depth = torch.zeros(len(marks.x) * height * width, dtype=torch.int32, device=start.device)
    for column, change in ((start, 1), (end, -1)):  # an interval up to the last column needs no end: the sum stops
        counts = ((start < end) & (column < width)).to(torch.int32) * change
        depth.scatter_add_(0, (rows.line * width + column.clamp_max(width - 1)).flatten(), counts.flatten())
    return depth.view(len(marks.x), 1, height, width).cumsum_(-1, dtype=torch.int32) > 0


def _runs(marks: Marks, height: int, width: int) -> np.ndarray:
    """The places first .. last - 1, among all pixels of all samples, of the rows of marks: int64 (2, N)."""
    rows = _spanned_rows(marks, height)
    start, end = _interval(rows, width)
    line, painted = rows.line * width, start < end
    return torch.stack([line + start, line + end])[:, painted].numpy()


def _merged(runs: np.ndarray) -> np.ndarray:
    """Where pixels begin or end to be in any of the runs: int64 (2, N) in any order -> (K,)."""
    first, last = runs[:, np.argsort(runs[0])]
    if not len(first):
        return first
    reach = np.maximum.accumulate(last)
    apart = first[1:] > reach[:-1]
    return np.concatenate([first[:1], first[1:][apart], reach[:-1][apart], reach[-1:]])


def between(places: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """A mask that changes between 0 and 1 at each of the given places, on a CPU.

    Sixty-four pixels share a word until the end, which is 5 times faster than sums along rows of numbers.

    Args:
        places: int64 (K,), among all of the mask's pixels; the same place twice changes nothing.
        shape: of the mask.

    Returns:
        bool of that shape.
    """
    size = math.prod(shape)
    bits = np.zeros(size // 64 + 1, np.uint64)
    np.bitwise_xor.at(bits, places >> 6, np.uint64(1) << (places & 63).astype(np.uint64))
    for shift in (1, 2, 4, 8, 16, 32):  # each bit becomes the parity of those up to it in its word
        bits ^= bits << np.uint64(shift)
    odd = np.bitwise_xor.accumulate(bits >> np.uint64(63))
    bits[1:] ^= np.uint64(0) - odd[:-1]
    pixels = np.unpackbits(bits.astype("<u8", copy=False).view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(pixels.view(np.bool_)).view(shape)


class _Rows(NamedTuple):
    """Pairs of a mark and an image row, in shapes that broadcast.

    Attributes:
        outline: float32 (12, ...), of the row's mark, from `_outline`.
        offset: float32, how far the row lies below the mark's centre.
        line: int64, the place of the row among all rows of all samples.
        inside: bool, whether the mark is visible and spans the row.
    """

    outline: Tensor
    offset: Tensor
    line: Tensor
    inside: Tensor


def _spanned_rows(marks: Marks, height: int) -> _Rows:
    """Just the rows that visible marks span, (N,): how many is read back, which a CPU does at no cost."""
    first, last = _first_and_last_row(marks, height)
    number = torch.where(marks.visible, last - first + 1, 0).clamp_min(0).flatten().long()
    before = number.cumsum(0) - number
    sample = (torch.arange(len(first)) * height)[:, None].expand_as(first).flatten()
    whole = _repeated(torch.stack([first.flatten().long() - before, sample]), number)
    real = _repeated(torch.cat([_outline(marks).flatten(1), marks.y.reshape(1, -1)]), number)
    row = torch.arange(whole.shape[1]) + whole[0]
    return _Rows(real[:-1], row - real[-1], whole[1] + row, torch.ones_like(row) > 0)


def _repeated(columns: Tensor, number: Tensor) -> Tensor:
    """Each column of (K, M) as often as `number`, int64 (M,), says, on a CPU: (K, N)."""
    # numpy's is 20 times faster than looking them up
    return torch.from_numpy(np.repeat(columns.numpy(), number.numpy(), axis=1))


def _padded_rows(marks: Marks, height: int, max_rows: int) -> _Rows:
    """`max_rows` rows of every mark, (B, M, max_rows): nothing is read back."""
    first, last = _first_and_last_row(marks, height)
    row = first[..., None] + torch.arange(max_rows, device=first.device)
    sample = torch.arange(len(first), device=first.device)[:, None, None]
    line = sample * height + row.clamp_max(height - 1).long()
    inside = marks.visible[..., None] & (row <= last[..., None])
    return _Rows(_outline(marks)[..., None], row - marks.y[..., None], line, inside)


def _first_and_last_row(marks: Marks, height: int) -> tuple[Tensor, Tensor]:
    """Of the image, that each mark may meet: whole float32 (B, M) twice; the last before the first if there is none."""
    along, across = marks.along - marks.radius, marks.across - marks.radius
    reach = along * marks.sin.abs() + across * marks.cos.abs() + marks.radius
    return (marks.y - reach).ceil().clamp(0, height - 1), (marks.y + reach).floor().clamp(-1, height - 1)


def _outline(marks: Marks) -> Tensor:
    """What row intervals are made of, float32 (12, B, M): x, radius and the two right edges of the inner box."""
    along, across = marks.along - marks.radius, marks.across - marks.radius
    cos, sin = torch.where(marks.sin < 0, -marks.cos, marks.cos), marks.sin.abs()
    axis = (along * cos, along * sin)
    side = (across * sin * torch.where(cos < 0, 1.0, -1.0), across * cos.abs())
    rising = [torch.where(cos < 0, s, a) for a, s in zip(axis, side, strict=True)]  # points right and up
    leaning = [torch.where(cos < 0, a, s) for a, s in zip(axis, side, strict=True)]  # points left and up
    lower = _edge(-leaning[0], -leaning[1], rising[0], rising[1], marks.radius)
    upper = _edge(rising[0], rising[1], leaning[0], leaning[1], marks.radius)
    return torch.stack([marks.x, marks.radius, *lower, *upper])


def _edge(x: Tensor, y: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> tuple[Tensor, ...]:
    """The edge with middle (x, y) and half vector (dx, dy), dy >= 0, as `_reach` takes it.

    A disc of `radius` that rolls along the edge touches a row from the edge's point `lead` = radius * dx / |edge|
    rows below: hence the middle's row less the lead, the half height, and x and its change per row along the edge.
    """
    length = square_root(dx * dx + dy * dy)
    lead = torch.where(length > 0, radius * dx / length.clamp_min(1e-9), 0.0)
    level = dy <= 1e-6  # of a pixel: the right end alone counts
    slope = torch.where(level, 0.0, dx / dy.clamp_min(1e-6))
    return y - lead, dy, lead, x + torch.where(level, dx.abs(), 0.0), slope


def _interval(rows: _Rows, width: int) -> tuple[Tensor, Tensor]:
    """The columns start .. end - 1 of each row: int64, none where start >= end."""
    x, radius, *edges = rows.outline.unbind(0)
    right, left = (  # the mark is symmetric about its centre
        torch.maximum(_reach(offset, radius, *edges[:5]), _reach(offset, radius, *edges[5:]))
        for offset in (rows.offset, -rows.offset)
    )
    start = (x - left).ceil().clamp(0, width).long()
    end = (x + right).floor().add(1).clamp(0, width).long()
    return start, torch.where(rows.inside, end, 0)


def _reach(offset: Tensor, radius: Tensor, y: Tensor, dy: Tensor, lead: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """The greatest x that a disc of `radius`, rolled along an edge, reaches in each row; `_NOWHERE` where it misses."""
    wanted = offset - y
    taken = torch.minimum(torch.maximum(wanted, -dy), dy)
    rest = wanted - taken - lead  # rows from the disc's centre: exactly 0 where a sharp edge itself meets the row
    gap = radius * radius - rest * rest
    return torch.where(gap >= 0, x + slope * taken + square_root(gap.clamp_min(0)), _NOWHERE)
