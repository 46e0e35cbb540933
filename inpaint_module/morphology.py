"""Binary morphology on masks: structuring elements, dilation, and what a mask becomes on the latent grid.

Masks are (B, 1, H, W) with 1 = inpaint. A structuring element is a bool (kh, kw) tensor, anchored as a convolution
padded by ceil((k - 1) / 2) is, which is ComfyUI's anchor: one pixel grows k - 1 - ceil((k - 1) / 2) up and left and
ceil((k - 1) / 2) down and right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_KERNEL_SIZE = 1024


Maximum = Callable[[Tensor, Tensor], Tensor]
Reduction = Callable[[Tensor, int], Tensor]


class Run(NamedTuple):
    """`length` successive places from `start` on."""

    start: int
    length: int


class DilationPlan(NamedTuple):
    """A structuring element as Python integers, so that applying it reads nothing back from a device.

    `rows` pairs each distinct row of the kernel, as the runs of its ones, with the runs of kernel rows that look so.
    """

    height: int
    width: int
    rows: tuple[tuple[tuple[Run, ...], tuple[Run, ...]], ...]


def square(size: int) -> Tensor:
    """The reference's structuring element: bool ones (size, size); size 0 is the identity, as size 1."""
    side = max(_checked_size(size), 1)
    return torch.ones(side, side, dtype=torch.bool)


def disk(size: int) -> Tensor:
    """Pixels whose centre lies within size / 2 of the kernel's centre: bool (size, size)."""
    offset = torch.arange(max(_checked_size(size), 1)) * 2 - (max(size, 1) - 1)
    return offset[:, None] ** 2 + offset**2 <= max(size, 1) ** 2


def diamond(size: int) -> Tensor:
    """Pixels within city-block distance of the kernel's centre: bool (size, size)."""
    offset = (torch.arange(max(_checked_size(size), 1)) * 2 - (max(size, 1) - 1)).abs()
    return offset[:, None] + offset <= max(size, 1)


def _checked_size(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_KERNEL_SIZE:
        raise ValueError(f"a kernel's size must be an int in 0..{MAX_KERNEL_SIZE}, got {size!r}")
    return size


def plan_dilation(kernel: Tensor) -> DilationPlan:
    """Read a structuring element once into row runs.

    Args:
        kernel: (kh, kw) or (1, 1, kh, kw), any dtype, non-zero = member. On a GPU this waits for the device.

    Raises:
        ValueError: not such a shape, or without a single member.
    """
    if kernel.ndim == 4 and kernel.shape[:2] == (1, 1):
        kernel = kernel[0, 0]
    if kernel.ndim != 2 or not kernel.numel():
        raise ValueError(f"kernel must be (kh, kw) or (1, 1, kh, kw), got shape {tuple(kernel.shape)}")
    table: list[list[bool]] = (kernel != 0).tolist()
    distinct = dict.fromkeys(tuple(row) for row in table if any(row))
    if not distinct:
        raise ValueError("kernel has no non-zero element, so that every dilated mask would be empty")
    rows = tuple((_runs(row), _runs([tuple(other) == row for other in table])) for row in distinct)
    return DilationPlan(len(table), len(table[0]), rows)


def _runs(flags: Sequence[bool]) -> tuple[Run, ...]:
    padded = [False, *flags, False]
    edges = [i for i, (a, b) in enumerate(pairwise(padded)) if a != b]
    return tuple(Run(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True))


def dilate(mask: Tensor, kernel: Tensor | DilationPlan) -> Tensor:
    """Flat dilation: each pixel becomes the maximum over the structuring element around it.

    Equal to clamp(conv2d(mask, kernel, padding=ceil((k - 1) / 2)), 0, 1) on binary masks, without its cost in k
    squared: windows double by shifted maxima, so that a square takes 2 log2(k) of them and any other shape one more
    per row run (Soille 2003, "Morphological Image Analysis", section 3.9). Eight bool masks share a byte meanwhile.

    Args:
        mask: (..., H, W), bool or any real dtype, none negative: what lies outside counts as 0.
        kernel: a structuring element as for `plan_dilation`, or its plan, which saves reading it again.

    Returns:
        A tensor of `mask`'s shape and dtype.

    Example:
        >>> dilate(torch.tensor([[0, 0, 0, 1, 0, 0, 0]]), torch.ones(1, 6)).tolist()
        [[0, 1, 1, 1, 1, 1, 1]]
    """
    plan = kernel if isinstance(kernel, DilationPlan) else plan_dilation(kernel)
    if 0 in mask.shape:
        return mask.clone()
    flat = mask.reshape(-1, *mask.shape[-2:])
    if mask.dtype == torch.bool:
        flat = _unpack(_dilate(_pack(flat), plan, torch.bitwise_or), len(flat))
    else:
        flat = _dilate(flat, plan, torch.maximum)
    return flat.reshape(mask.shape)


def _dilate(x: Tensor, plan: DilationPlan, maximum: Maximum) -> Tensor:
    """The rows of the kernel along the last axis, then their places along the one before."""
    (height, width), (above, left) = x.shape[-2:], (plan.height // 2, plan.width // 2)
    x = F.pad(x, (left, plan.width - 1 - left))
    longest = max(run.length for runs, _ in plan.rows for run in runs)
    windows = _doubled_windows(x, longest, -1, maximum)
    parts = []
    for runs, places in plan.rows:
        row = [_window_max(windows, run, width, -1, maximum) for run in runs]
        band = F.pad(reduce(maximum, row), (0, 0, above, plan.height - 1 - above))
        bands = _doubled_windows(band, max(place.length for place in places), -2, maximum)
        parts += [_window_max(bands, place, height, -2, maximum) for place in places]
    return reduce(maximum, parts)


def _doubled_windows(x: Tensor, longest: int, dim: int, maximum: Maximum) -> list[Tensor]:
    """Maxima over 1, 2, 4, ... successive elements along `dim`, up to the greatest power of two within `longest`."""
    windows = [x]
    while 2 ** len(windows) <= longest:
        step, last = 2 ** (len(windows) - 1), windows[-1]
        size = last.shape[dim] - step
        windows.append(maximum(last.narrow(dim, 0, size), last.narrow(dim, step, size)))
    return windows


def _window_max(windows: list[Tensor], run: Run, size: int, dim: int, maximum: Maximum) -> Tensor:
    """Maximum over a run at every one of `size` anchors: two overlapping windows of the next lower power of two."""
    level = run.length.bit_length() - 1
    first = windows[level].narrow(dim, run.start, size)
    if run.length == 2**level:
        return first
    return maximum(first, windows[level].narrow(dim, run.start + run.length - 2**level, size))


def _pack(masks: Tensor) -> Tensor:
    """Bool (N, H, W) to uint8 (ceil(N / n), H, W) with n = min(8, N) masks to a byte."""
    count = min(8, len(masks))
    if missing := -len(masks) % count:
        masks = F.pad(masks, (0, 0, 0, 0, 0, missing))
    planes = masks.view(torch.uint8).unflatten(0, (-1, count)).unbind(1)
    packed = planes[0]
    for bit, plane in enumerate(planes[1:], start=1):
        packed = torch.add(packed, plane, alpha=1 << bit)
    return packed


def _unpack(packed: Tensor, number: int) -> Tensor:
    """The inverse of `_pack` for `number` masks."""
    bits = 1 << torch.arange(min(8, number), dtype=torch.uint8, device=packed.device)
    return (packed[:, None] & bits[:, None, None]).to(torch.bool).flatten(0, 1)[:number]


def max_cells(mask: Tensor, ratio: int) -> Tensor:
    """1 where any pixel of the ratio x ratio cell is masked: float (B, 1, H, W) -> (B, 1, H/r, W/r). Loses no mask."""
    return F.max_pool2d(mask, ratio)


def area_cells(mask: Tensor, ratio: int) -> Tensor:
    """The masked share of each cell: float (B, 1, H, W) -> (B, 1, H/r, W/r) in 0..1."""
    return F.avg_pool2d(mask, ratio)


def bilinear_cells(mask: Tensor, ratio: int) -> Tensor:
    """Bilinear without antialias, as ComfyUI's sampler shrinks a noise mask: (B, 1, H, W) -> (B, 1, H/r, W/r)."""
    return F.interpolate(mask, size=_grid(mask, ratio), mode="bilinear")


def comfyui_cells(mask: Tensor, ratio: int) -> Tensor:
    """`bilinear_cells`, rounded half to even, as ComfyUI tells a U-Net of 9 channels: -> (B, 1, H/r, W/r), 0 or 1."""
    return bilinear_cells(mask, ratio).round()


def nearest_cells(mask: Tensor, ratio: int) -> Tensor:
    """The top-left pixel of each cell, as diffusers' inpaint pipelines shrink a mask: -> (B, 1, H/r, W/r)."""
    return F.interpolate(mask, size=_grid(mask, ratio), mode="nearest")


def nearest_exact_cells(mask: Tensor, ratio: int) -> Tensor:
    """The pixel at each cell's centre (the lower right of the middle four): -> (B, 1, H/r, W/r)."""
    return F.interpolate(mask, size=_grid(mask, ratio), mode="nearest-exact")


def space_to_depth(mask: Tensor, ratio: int) -> Tensor:
    """Every pixel of a cell as a channel, row by row, as Flux Fill takes it: (B, 1, H, W) -> (B, r * r, H/r, W/r)."""
    return F.pixel_unshuffle(mask, ratio)


REDUCTIONS: dict[str, Reduction] = {
    "max": max_cells,
    "area": area_cells,
    "bilinear": bilinear_cells,
    "comfyui": comfyui_cells,
    "nearest": nearest_cells,
    "nearest-exact": nearest_exact_cells,
    "space-to-depth": space_to_depth,
}


def reduce_mask(mask: Tensor, ratio: int, how: str = "max") -> Tensor:
    """Bring a pixel mask to the latent grid.

    Args:
        mask: (B, 1, H, W), bool or float in 0..1, H and W multiples of `ratio`.
        ratio: pixels per latent cell and side.
        how: a key of `REDUCTIONS`.

    Returns:
        (B, 1, H/ratio, W/ratio) float in 0..1; (B, ratio * ratio, H/ratio, W/ratio) for "space-to-depth".

    Raises:
        ValueError: an unknown `how`, or a mask of another shape.

    Example:
        >>> mask = torch.zeros(1, 1, 4, 8)
        >>> mask[..., 1, 1] = 1  # a scratch of one pixel
        >>> [reduce_mask(mask, 4, how).flatten().tolist() for how in ("max", "nearest")]
        [[1.0, 0.0], [0.0, 0.0]]
    """
    if how not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}; got {how!r}")
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] % ratio or mask.shape[3] % ratio:
        raise ValueError(f"mask must be (B, 1, H, W) with sides multiples of {ratio}, got {tuple(mask.shape)}")
    return REDUCTIONS[how](mask if mask.is_floating_point() else mask.float(), ratio)


def _grid(mask: Tensor, ratio: int) -> tuple[int, int]:
    return mask.shape[-2] // ratio, mask.shape[-1] // ratio


def mask_leak(mask: Tensor, cells: Tensor) -> Tensor:
    """Share of each mask's pixels whose latent cell says keep: what a model is never asked to inpaint.

    Args:
        mask: (B, 1, H, W), non-zero = inpaint.
        cells: (B, 1, h, w), a reduction of it; over 0.5 = inpaint.

    Returns:
        float (B,) in 0..1; 0 for an empty mask.
    """
    hole, covered = _hole_and_cells_as_pixels(mask, cells)
    return (hole & ~covered).sum((1, 2, 3)) / hole.sum((1, 2, 3)).clamp_min(1)


def mask_overcover(mask: Tensor, cells: Tensor) -> Tensor:
    """Share of the pixels outside each mask whose latent cell says inpaint: shapes as for `mask_leak`."""
    hole, covered = _hole_and_cells_as_pixels(mask, cells)
    return (covered & ~hole).sum((1, 2, 3)) / (~hole).sum((1, 2, 3)).clamp_min(1)


def _hole_and_cells_as_pixels(mask: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    covered = F.interpolate((cells > 0.5).float(), size=mask.shape[-2:], mode="nearest") > 0.5
    return mask != 0, covered
