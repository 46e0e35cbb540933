"""Qwen-Image: its ControlNet's condition, for a loop of your own."""

from __future__ import annotations

from inpaint_module.base_models.layout import PackedKeptMaskCondition


class QwenImageControlNetLayout(PackedKeptMaskCondition):
    """Condition of the Qwen-Image inpaint ControlNet, 68 channels a token: masked image, mask (1 = keep), hole black.

    Matches `QwenImageControlNetInpaintPipeline` of diffusers (`controlnet_cond`).
    """
