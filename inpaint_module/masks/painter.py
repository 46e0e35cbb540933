"""Paint many marks into many masks at once.

Every brush stroke, box, disc and strip is one primitive, the oriented box with a corner radius. It is convex, so each
image row meets it in one interval: the ends of all intervals go into a difference array of shape (B, H, W + 1), and
one cumulative sum along the rows fills them. Work is the rows that marks span plus H x W, without a loop over marks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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


def strokes(start: Tensor, end: Tensor, width: Tensor, visible: Tensor) -> Marks:
    """Round-ended lines.

    Args:
        start: float32 (B, M, 2), x and y of one end.
        end: float32 (B, M, 2), the other.
        width: float32 (B, M).
        visible: bool (B, M).
    """
    centre, half = (start + end) / 2, (end - start) / 2
    length = (half[..., 0] * half[..., 0] + half[..., 1] * half[..., 1]).sqrt()
    unit = torch.where(length[..., None] > 0, half / length.clamp_min(1e-9)[..., None], half.new_tensor(0.0))
    radius = width / 2
    cos = torch.where(length > 0, unit[..., 0], 1.0)
    return Marks(centre[..., 0], centre[..., 1], length + radius, radius, cos, unit[..., 1], radius, visible)


def boxes(left: Tensor, top: Tensor, width: Tensor, height: Tensor, visible: Tensor) -> Marks:
    """Axis-parallel boxes that cover columns left .. left + width - 1 and rows alike; float32 or int64 (B, M) each."""
    along, across = (width - 1).float() / 2, (height - 1).float() / 2
    zero = torch.zeros_like(along)
    return Marks(left + along, top + across, along, across, zero + 1, zero, zero, visible)


def paint(marks: Marks, height: int, width: int, max_rows: int) -> Tensor:
    """The union of each sample's marks.

    Args:
        marks: fields (B, M).
        height: H.
        width: W.
        max_rows: no mark spans more rows than this; a bound that is known without asking the device.

    Returns:
        bool (B, 1, H, W). A pixel is in a mark when its centre is.
    """
    rows, start, end = _row_intervals(marks, height, width, min(max_rows, height))
    line = torch.arange(len(rows), device=rows.device)[:, None, None] * height + rows
    hit = (start < end).to(torch.int16).flatten()
    edges = torch.zeros(len(rows) * height * (width + 1), dtype=torch.int16, device=rows.device)
    edges.scatter_add_(0, (line * (width + 1) + start).flatten(), hit)
    edges.scatter_add_(0, (line * (width + 1) + end).flatten(), -hit)
    depth = edges.view(len(rows), 1, height, width + 1).cumsum(-1, dtype=torch.int16)
    return depth[..., :width] > 0


def _row_intervals(marks: Marks, height: int, width: int, max_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that each mark may span, and the columns start .. end - 1 of each: int64 (B, M, max_rows) three times."""
    inner_along, inner_across = marks.along - marks.radius, marks.across - marks.radius
    reach = inner_along * marks.sin.abs() + inner_across * marks.cos.abs() + marks.radius
    first = (marks.y - reach).ceil().clamp(0, height - 1)
    rows = first[..., None] + torch.arange(max_rows, device=first.device)
    offset = rows - marks.y[..., None]
    chain = _right_chain(marks, inner_along, inner_across)
    right = _right_end(offset, chain, marks.radius)
    left = _right_end(-offset, chain, marks.radius)  # the mark is symmetric about its centre
    start = (marks.x[..., None] - left).ceil().clamp(0, width).long()
    end = (marks.x[..., None] + right).floor().add(1).clamp(0, width).long()
    inside = marks.visible[..., None] & (rows < height)
    return rows.clamp_max(height - 1).long(), start, torch.where(inside, end, 0)


class _Edge(NamedTuple):
    """An edge of the inner box: centre (x, y) from the mark's centre, half vector (dx, dy) with dy >= 0."""

    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor


def _right_chain(marks: Marks, along: Tensor, across: Tensor) -> tuple[_Edge, _Edge]:
    """The two edges on the right side of the inner box, which the corner radius then rolls around."""
    falls = marks.sin < 0
    cos, sin = torch.where(falls, -marks.cos, marks.cos), marks.sin.abs()
    axis = (along * cos, along * sin)
    side = (across * sin * torch.where(cos < 0, 1.0, -1.0), across * cos.abs())
    rising = [torch.where(cos < 0, s, a) for a, s in zip(axis, side, strict=True)]  # points right and up
    leaning = [torch.where(cos < 0, a, s) for a, s in zip(axis, side, strict=True)]  # points left and up
    return _Edge(-leaning[0], -leaning[1], *rising), _Edge(*rising, *leaning)


def _right_end(offset: Tensor, chain: tuple[_Edge, _Edge], radius: Tensor) -> Tensor:
    """The greatest x, from the mark's centre, that the mark reaches `offset` (B, M, R) rows below its centre."""
    return torch.maximum(*(_edge_reach(offset, edge, radius[..., None]) for edge in chain))


def _edge_reach(offset: Tensor, edge: _Edge, radius: Tensor) -> Tensor:
    """The greatest x that a disc of `radius`, rolled along the edge, reaches in each row; `_NOWHERE` where it misses.

    The disc touches row y from the edge point at y + radius * dx / |edge|, clamped to the edge's ends.
    """
    x, y, dx, dy = (value[..., None] for value in edge)
    length = (dx * dx + dy * dy).sqrt()
    lead = radius * torch.where(length > 0, dx / length.clamp_min(1e-9), 0.0)
    wanted = offset - y + lead
    taken = torch.minimum(torch.maximum(wanted, -dy), dy)
    share = torch.where(dy > 0, taken / dy.clamp_min(1e-9), dx.sign())
    rest = wanted - taken - lead  # rows from the disc's centre: exactly 0 where a sharp edge itself meets the row
    gap = radius * radius - rest * rest
    return torch.where(gap >= 0, x + dx * share + gap.clamp_min(0).sqrt(), _NOWHERE)
