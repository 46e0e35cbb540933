"""The straightforward way to prepare an image and its hole for a VAE: growth by a convolution, a new kernel each call.

Written for the benchmark from the behaviour of ComfyUI's `VAEEncodeForInpaint`; a test holds it to the golden numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def grow(mask: Tensor, size: int) -> Tensor:
    """Count the masked pixels under a size x size window by conv2d; any at all is inpainted: (B, 1, H, W), 0 or 1."""
    rounded = mask.round()
    if size == 0:
        return rounded
    window = torch.ones(1, 1, size, size, device=mask.device)
    count = F.conv2d(rounded, window, padding=math.ceil((size - 1) / 2))
    return count.clamp(0, 1)[..., : mask.shape[-2], : mask.shape[-1]].round()


def pool(mask: Tensor, size: int) -> Tensor:
    """The same growth by two poolings, along the rows and along the columns: (B, 1, H, W), 0 or 1; size at least 1."""
    before, after = size // 2, size - 1 - size // 2
    rows = F.max_pool2d(F.pad(mask.round(), (before, after, 0, 0)), (1, size), stride=1)
    return F.max_pool2d(F.pad(rows, (0, 0, before, after)), (size, 1), stride=1)


def prepare(pixels: Tensor, mask: Tensor, size: int, ratio: int = 8) -> tuple[Tensor, Tensor]:
    """What the node does around the VAE.

    Args:
        pixels: float32 (B, H, W, 3) in 0..1.
        mask: float32 (B, H, W) or (B, 1, H, W), 1 = inpaint.
        size: side of the growth window in pixels.
        ratio: pixels per latent cell and side.

    Returns:
        The filled image (B, H', W', 3) and the noise mask (B, 1, H', W').
    """
    height, width = pixels.shape[1:3]
    mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=(height, width), mode="bilinear")
    top, left = height % ratio // 2, width % ratio // 2
    rows, columns = (slice(start, start + side // ratio * ratio) for start, side in ((top, height), (left, width)))
    image, mask = pixels[:, rows, columns].clone(), mask[:, :, rows, columns]
    kept = 1 - mask.round()[:, 0]
    for channel in range(3):
        image[..., channel] = (image[..., channel] - 0.5) * kept + 0.5
    return image, grow(mask, size)
