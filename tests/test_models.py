"""Diffusers models by name."""

from __future__ import annotations

import pytest
from diffusers import AutoencoderTiny

from inpaint_module.base_models import new_model


def test_by_name_and_config() -> None:
    model = new_model("AutoencoderTiny", {"latent_channels": 7})
    assert isinstance(model, AutoencoderTiny)
    assert model.config.latent_channels == 7


@pytest.mark.parametrize("name", ["UNet9D", "DDIMScheduler", "__version__"])
def test_no_model_class(name: str) -> None:
    with pytest.raises(ValueError, match=f"must name a model class of diffusers, got '{name}'"):
        new_model(name, {})


def test_no_such_argument() -> None:
    with pytest.raises(ValueError, match=r"AutoencoderTiny does not take this config.*chanels"):
        new_model("AutoencoderTiny", {"chanels": 3})
