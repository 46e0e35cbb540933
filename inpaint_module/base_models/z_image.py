"""Z-Image."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module.base_models.layout import ControlNetCondition
from inpaint_module.encoder import InpaintLatents


class ZImageControlNetLayout(ControlNetCondition):
    """Condition of the Z-Image inpaint ControlNet, 33 channels, one frame: control, mask (1 = keep), masked image.

    Matches `ZImageControlNetInpaintPipeline` of diffusers (`control_context`), which always has a control image;
    without one the control is zero, as in aigc-apps/VideoX-Fun `pipeline_z_image_control.py`.
    """

    multiple = 2

    def __call__(self, noisy: Tensor, latents: InpaintLatents, control: Tensor | None = None) -> Tensor:
        """As `ControlNetCondition`; `control` are normalized latents (B, C, h, w), such as of a pose, or None."""
        condition = super().__call__(noisy, latents)
        control = torch.zeros_like(noisy) if control is None else control.to(noisy)
        return torch.cat([control, condition], dim=1).unsqueeze(2)

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """The part after the control: (B, C + 1, h, w)."""
        return torch.cat([1 - cells, masked], dim=1)

    def in_channels(self, channels: int) -> int:
        """2 C + 1."""
        return 2 * channels + 1
