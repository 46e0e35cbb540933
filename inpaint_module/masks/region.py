"""Fixed parts of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module.masks.generator import MaskGenerator, checked_share


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
