"""Diffusers models by class name and config, since the type hints of their constructors do not survive a YAML."""

from __future__ import annotations

from typing import Any

from torch import nn


def new_model(class_name: str, config: dict[str, Any]) -> nn.Module:
    """A freshly initialised diffusers model, as `diffusers.<class_name>(**config)`.

    Args:
        class_name: such as UNet2DModel, UNet2DConditionModel or AutoencoderKL.
        config: keyword arguments of its constructor.

    Raises:
        ValueError: diffusers has no such model class, or its constructor no such argument.
    """
    import diffusers

    model_class = getattr(diffusers, class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise ValueError(f"class_name must name a model class of diffusers, got {class_name!r}")
    try:
        return model_class(**config)
    except TypeError as error:
        raise ValueError(f"diffusers.{class_name} does not take this config: {error}") from error
