"""FeatureDistance: how different two pictures are to a vision model that the user has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared difference of unit features, averaged inside a mask and over layers; Zhang et al. 2018, eq. 1, w = 1.

    Args:
        first: features of each layer, float (B, C, h, w); layers may differ in all but B.
        second: alike.
        mask: float (B, 1, H, W) in 0..1; a cell counts as much as the mask covers it.

    Returns:
        float64 (B,) in 0..4; NaN where the mask is empty.
    """
    distances = []
    for one, other in zip(first, second, strict=True):
        apart = (F.normalize(one.double()) - F.normalize(other.double())).square().sum(1, keepdim=True)
        cells = F.adaptive_avg_pool2d(mask.double(), (one.shape[2], one.shape[3]))
        distances.append((apart * cells).sum((1, 2, 3)) / cells.sum((1, 2, 3)))
    return torch.stack(distances).mean(0)


class FeatureDistance:
    """Distance of pictures as a vision model of transformers sees them, as LPIPS but with a model that you have.

    All layers count alike. Pictures are stretched to the square that the model was trained with, so pictures of any
    size can be compared; numbers of different models cannot. DINOv2, ViT, CLIP, SigLIP, ResNet and ConvNeXt fit, and
    whatever else gives hidden states of (B, C, h, w), or tokens of which the last h * w are the picture's. The model is
    frozen, in eval mode, and as this is no `nn.Module`, in no state dict. Needs the extra `text`.

    Args:
        path: local folder, or hub name, such as facebook/dinov2-small.

    Raises:
        ValueError: no vision model there, none with its preprocessing beside it, or transformers is not installed.
    """

    def __init__(self, path: str):
        try:
            from transformers import AutoModel, ImageProcessingMixin
        except ImportError as error:
            raise ValueError("feature_distance needs transformers: pip install 'inpaint-module[text]'") from error
        try:
            model = AutoModel.from_pretrained(path)
            told = ImageProcessingMixin.get_image_processor_dict(path)[0]
            mean, std = told["image_mean"], told["image_std"]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                "feature_distance.path: expected a vision model of transformers with its preprocessor_config.json in "
                f"{path!r}: {error}"
            ) from error
        self.model = cast(Any, _vision_part(model, path).float().eval().requires_grad_(False))
        self.mean, self.std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """Compare.

        Args:
            first: float (B, 3, H, W) in 0..1.
            second: alike.
            mask: (B, 1, H, W) in 0..1, 1 = counts.

        Returns:
            float64 (B,): 0 for equal pictures, at most 4; NaN where the mask is empty.
        """
        self.to(first.device)
        return feature_distance(self.features(first), self.features(second), mask)

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of every layer, (B, C, h, w), of pictures float (B, 3, H, W) in 0..1."""
        config = self.model.config
        side = getattr(config, "image_size", None) or 224  # convolutions alone take any
        size = (side, side) if isinstance(side, int) else tuple(side)
        stretched = F.interpolate(image.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        states = self.model((stretched - self.mean) / self.std, output_hidden_states=True).hidden_states
        cells = [length // getattr(config, "patch_size", 1) for length in size]
        return [as_map(state, cells[0], cells[1]) for state in states[1:]]

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)


def as_map(state: Tensor, height: int, width: int) -> Tensor:
    """Hidden states to (B, C, h, w): tokens (B, N, C) lose what stands before the picture's own h * w.

    Raises:
        ValueError: fewer tokens than that.
    """
    if state.ndim == 4:
        return state
    if state.ndim != 3 or state.shape[1] < height * width:
        raise ValueError(
            f"feature_distance.path: expected a model with hidden states of (B, C, h, w) or at least "
            f"{height} x {width} tokens, got {tuple(state.shape)}"
        )
    return state[:, -height * width :].movedim(1, 2).unflatten(2, (height, width))


def _vision_part(model: nn.Module, path: str) -> nn.Module:
    """The model that sees, of one that may also read."""
    model = cast(nn.Module, getattr(model, "vision_model", model))
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise ValueError(f"feature_distance.path: expected a vision model, got {type(model).__name__} in {path!r}")
    return model
