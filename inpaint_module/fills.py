"""Fills that need no model: what a model is held against, what it may start from, and what hides its seam."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.pixels import to_bytes

_SWEEPS = 2


def mean_colour_fill(image: Tensor, mask: Tensor) -> Tensor:
    """Each image's mean colour outside its mask, everywhere; grey if all is masked: (B, 3, H, W), mask (B, 1, H, W)."""
    known = (mask.float() <= 0.5).to(image)
    count = known.sum((2, 3), keepdim=True)
    mean = (image * known).sum((2, 3), keepdim=True) / count.clamp_min(1)
    return torch.where(count > 0, mean, 0.5).expand_as(image)


def smooth_fill(image: Tensor, mask: Tensor, nothing_known: float = 0.5, cycles: int = 3) -> Tensor:
    """The image with its hole filled smoothly: each pixel in it is the mean of its neighbours.

    The discrete Laplace equation over the 4 neighbours that a pixel has inside the picture, with the known pixels as
    boundary values: the smoothest picture that meets them. Solved by multigrid from a pyramid of means, on the image's
    device, without randomness, with 3 cycles to about a byte's step. Pixels outside the hole keep their bits.

    Args:
        image: float32 (B, C, H, W), any range.
        mask: (B, 1, H, W), over 0.5 in the hole; its batch may be 1.
        nothing_known: value of an image that is all hole.
        cycles: each makes the error some four times smaller.

    Returns:
        float32 (B, C, H, W).
    """
    hole = (mask > 0.5).expand(len(image), -1, -1, -1)
    filled = _from_coarser(image, hole)
    for _ in range(cycles):
        filled = filled + _solved(torch.where(hole, _missing(filled), 0), hole)
    known = (~hole).any(-1, keepdim=True).any(-2, keepdim=True)
    return torch.where(hole, torch.where(known, filled, nothing_known), image)


def seamless(filled: Tensor, image: Tensor, mask: Tensor, reach: int = 2, nothing_known: float = 0.0) -> Tensor:
    """The fill, moved so that it meets the image at the border of the mask, and the image outside.

    The difference between image and fill at the known pixels beside the mask is spread into it by `smooth_fill` and
    added: Perez et al. 2003, "Poisson image editing", for a guidance field that is the fill's gradient. To leave noise
    in the known pixels out, the difference is first averaged over known pixels near by.

    Args:
        filled: float32 (B, C, H, W), of all the picture. It may also be what is to be added to the smooth fill: with
            `reach` 0 and `nothing_known` 0.5 the result is the same.
        image: in 0..1; what is in the hole does not count.
        mask: (B, 1, H, W), over 0.5 in the hole.
        reach: over how many pixels in each direction the difference is averaged.
        nothing_known: what is added where all is hole.

    Returns:
        float32 (B, C, H, W) in 0..1.
    """
    hole = mask > 0.5
    known = (~hole).to(filled)
    parts = [F.avg_pool2d(each, 2 * reach + 1, 1, reach) for each in ((image - filled) * known, known)]
    spread = smooth_fill(parts[0] / parts[1].clamp_min(1e-3), hole, nothing_known, cycles=1)
    return torch.where(hole, (filled + spread).clamp(0, 1), image)


def telea_fill(image: Tensor, mask: Tensor) -> Tensor | None:
    """OpenCV's fill by Telea 2004 ("An image inpainting technique based on the fast marching method"), radius 3.

    Args:
        image: float (B, 3, H, W) in 0..1; taken in bytes, on the CPU.
        mask: (B, 1, H, W), over 0.5 in the hole.

    Returns:
        float32 (B, 3, H, W), grey where nothing is known; None where OpenCV is not installed.
    """
    if find_spec("cv2") is None:
        return None
    import cv2

    pictures = to_bytes(image.detach()).cpu().movedim(1, -1).contiguous().numpy()
    holes = (mask > 0.5).expand(len(image), -1, -1, -1)[:, 0].byte().cpu().numpy()
    pairs = zip(pictures, holes, strict=True)
    made = [torch.from_numpy(cv2.inpaint(picture, hole, 3, cv2.INPAINT_TELEA)) for picture, hole in pairs]
    filled = torch.stack(made).movedim(-1, 1).to(image.device).float() / 255
    whole = (mask > 0.5).flatten(1).all(1).reshape(-1, 1, 1, 1)  # of these OpenCV gives back what is hidden
    return torch.where(whole, 0.5, filled)


def _from_coarser(image: Tensor, hole: Tensor) -> Tensor:
    """A first guess: means of the known pixels of 2 x 2, filled likewise, brought back to size; then smoothed."""
    height, width = image.shape[-2:]
    if hole.shape[-1] * hole.shape[-2] > 1:
        known = _even((~hole).to(image))
        count = F.avg_pool2d(known, 2)
        means = F.avg_pool2d(_even(torch.where(hole, 0, image)), 2) / count.clamp_min(0.25)
        coarse = F.interpolate(_from_coarser(means, count == 0), scale_factor=2.0, mode="bilinear")
        image = torch.where(hole, coarse[..., :height, :width], image)
    return _smoothed(image, torch.zeros_like(image), hole)


def _solved(missing: Tensor, hole: Tensor) -> Tensor:
    """One V-cycle for what is to be added in the hole, from the known right side; 0 outside it."""
    height, width = missing.shape[-2:]
    added = _smoothed(torch.zeros_like(missing), missing, hole)
    if height * width > 1:
        inside = F.avg_pool2d(_even(hole.to(missing), "replicate"), 2) == 1
        rest = torch.where(hole, missing + _missing(added), 0)
        coarse = _solved(torch.where(inside, 4 * F.avg_pool2d(_even(rest), 2), 0), inside)
        coarse = F.interpolate(coarse, scale_factor=2.0, mode="bilinear")[..., :height, :width]
        added = added + _scaled(torch.where(hole, coarse, 0), rest)
    return _smoothed(added, missing, hole)


def _scaled(step: Tensor, rest: Tensor) -> Tensor:
    """A step at its best length: coarse grids know the border of the hole to a cell, so their steps are too long."""
    gain, cost = (step * rest).sum((2, 3), keepdim=True), -(step * _missing(step)).sum((2, 3), keepdim=True)
    return step * torch.where(cost > 0, gain / cost.clamp_min(1e-20), 0)


def _even(values: Tensor, mode: str = "constant") -> Tensor:
    """With one more row or column where their number is odd."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, width % 2, 0, height % 2), mode=mode)


def _missing(values: Tensor) -> Tensor:
    """The sum of each pixel's differences to its neighbours, 0 where it is their mean."""
    around = F.pad(values, (1, 1, 1, 1), mode="replicate")  # a neighbour outside the picture differs by nothing
    vertical = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
    return vertical + around[..., 1:-1, :-2] + around[..., 1:-1, 2:] - 4 * values


def _smoothed(values: Tensor, missing: Tensor, hole: Tensor) -> Tensor:
    """Sweeps of Gauss and Seidel in the hole: the black fields of a chessboard, then the white ones."""
    rows, columns = (torch.arange(side, device=hole.device) for side in hole.shape[-2:])
    black = (rows[:, None] + columns) % 2 == 0
    for _ in range(_SWEEPS):
        for field in (black, ~black):
            values = torch.where(hole & field, values + (missing + _missing(values)) / 4, values)
    return values
