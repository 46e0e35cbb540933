"""Large parts of an image: all but a rectangle, and strips along its sides."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_range, checked_share


class KeepRegion(MaskGenerator):
    """All but one fixed rectangle is masked, the same for every key: RePaint's "half" and "expand".

    Args:
        left: where the known rectangle begins, as a share of the width, 0..1.
        top: where it begins, as a share of the height, 0..1.
        width: its width as a share of the image's, 0..1; 0 keeps nothing, which masks the whole image.
        height: its height as a share of the image's, 0..1.

    Raises:
        ValueError: a share beyond 0..1, or a rectangle that covers the image.
    """

    def __init__(self, left: float = 0.0, top: float = 0.0, width: float = 0.0, height: float = 0.0):
        checked_share(left=left, top=top, width=width, height=height)
        if left == top == 0 and width == height == 1:
            raise ValueError("the known rectangle must not cover the image, or every mask would be empty")
        self.left, self.top, self.width, self.height = left, top, width, height

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        masks = torch.ones(len(keys), 1, height, width, dtype=torch.bool, device=keys.device)
        left, top = int(self.left * width), int(self.top * height)
        masks[..., top : top + int(self.height * height), left : left + int(self.width * width)] = False
        return masks


class Outpaint(MaskGenerator):
    """The image is to be continued: each side is masked with probability 1/2, at least one, as LaMa's outpainting.

    Args:
        share: least and greatest part of the image's width or height that one strip takes, within 0..1.

    Raises:
        ValueError: a bound out of order or beyond 0..1.
    """

    def __init__(self, share: tuple[float, float] = (0.04, 0.25)):
        checked_range("share", share, 0, 1)
        self.share = share

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        sides, shares, pick = randomness.draw(keys, 9).split([4, 4, 1], 1)
        chosen = sides < 2**31
        lone = torch.arange(4, device=keys.device) == randomness.integers(pick, 0, 4)
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, lone)
        left, right = self._depths(shares[:, :2], chosen[:, :2], width)
        top, bottom = self._depths(shares[:, 2:], chosen[:, 2:], height)
        x, y = torch.arange(width, device=keys.device), torch.arange(height, device=keys.device)
        columns = (x < left[:, None]) | (x >= width - right[:, None])
        rows = (y < top[:, None]) | (y >= height - bottom[:, None])
        return (columns[:, None] | rows[:, :, None])[:, None]

    def _depths(self, words: Tensor, chosen: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """How deep the strips at both ends of one side of the image are, int64 pixels (B,) each."""
        low, high = (max(1, round(bound * side)) for bound in self.share)
        first, last = torch.where(chosen, randomness.integers(words, low, high + 1), 0).unbind(1)
        return first, last
