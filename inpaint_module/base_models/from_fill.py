"""Small models of your own that start from a smooth fill, or from the image itself, and learn what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall
from inpaint_module.base_models.stable_diffusion import StableDiffusionLayout
from inpaint_module.encoder import Fill


class SmoothFillLayout(StableDiffusionLayout):
    """Noisy, mask (1 = inpaint) and masked image, whose hole the encoder fills smoothly: `fill: smooth`.

    No published model is fed so; take it for one of your own, with `FromFill` as its call.
    """

    fill: Fill = "smooth"


class WholeImageLayout(StableDiffusionLayout):
    """Noisy, mask (1 = inpaint) and the whole image, hole and all: for pairs, of which the image is no answer.

    For what can be seen through, such as watermarks. No published model is fed so; take it for one of your own, with
    `FromFill` as its call. Every sample needs a target.
    """

    reference = "image"


class FromFill(DenoiserCall):
    """The denoiser says how clean latents differ from those of the masked image, or the whole one, whatever the noise.

    What it says, less the masked image's latents, is a prediction of velocity (`prediction_type: v_prediction`;
    Salimans and Ho 2022, "Progressive distillation", appendix D). In pure noise, as a scheduler with
    `rescale_betas_zero_snr` begins, velocity is minus the clean latents, so that a denoiser that says 0 gives the
    smooth fill, or the image: that is where a training with a zeroed last layer starts.
    """

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """(B, C, h, w); `inputs` are those of `SmoothFillLayout` or `WholeImageLayout`, (B, 2 C + 1, h, w)."""
        said = super().__call__(denoiser, inputs, timesteps, conditions, size)
        return said - inputs[:, -said.shape[1] :].to(said)
