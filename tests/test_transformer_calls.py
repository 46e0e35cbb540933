"""How transformers are called, against the pipelines; the whole calls are compared in test_base_models.py."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxFillPipeline
from torch import Tensor

from inpaint_module.base_models import FluxCall, StableDiffusion3Call, pack, token_places

CPU = torch.device("cpu")


class Echo:
    """Notes how it is called, and gives back its input."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.dtype, self.told = dtype, dict[str, Any]()

    def __call__(self, **told: Any) -> Echo:
        self.told = told
        return self

    @property
    def sample(self) -> Tensor:
        return self.told["hidden_states"]


def test_token_places_are_the_pipelines() -> None:
    theirs = FluxFillPipeline._prepare_latent_image_ids(1, 3, 5, CPU, torch.float32)
    assert torch.equal(token_places(6, 10, CPU), theirs)


def test_flux_gets_time_in_0_to_1_and_its_tokens_come_back_as_latents() -> None:
    latents = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    echo = Echo()
    out = FluxCall()(echo, pack(latents), torch.tensor([1000.0, 250.0]), {"guidance": torch.ones(2)}, (4, 6))
    assert torch.equal(out, latents)
    assert echo.told["timestep"].tolist() == [1.0, 0.25]
    assert echo.told["img_ids"].shape == (6, 3)


def test_all_numbers_get_the_models_dtype() -> None:
    echo = Echo(torch.bfloat16)
    FluxCall()(echo, torch.zeros(2, 6, 64), torch.tensor([999.0, 1.0]), {"txt_ids": torch.zeros(4, 3)}, (4, 6))
    assert {value.dtype for value in echo.told.values()} == {torch.bfloat16}
    assert torch.equal(echo.told["timestep"], torch.tensor([999.0, 1.0]).bfloat16() / 1000)  # as the pipeline rounds


def test_one_timestep_serves_the_whole_batch() -> None:
    echo = Echo()
    FluxCall()(echo, torch.zeros(2, 6, 64), torch.tensor([500.0]), {}, (4, 6))
    assert echo.told["timestep"].tolist() == [0.5, 0.5]


def test_sd3_gets_its_timesteps_by_name() -> None:
    echo = Echo()
    timesteps = torch.tensor([1000.0, 250.0])
    StableDiffusion3Call()(echo, torch.zeros(2, 33, 4, 6), timesteps, {"pooled_projections": torch.ones(2, 3)}, (4, 6))
    assert torch.equal(echo.told["timestep"], timesteps)
    assert echo.told.keys() == {"hidden_states", "timestep", "pooled_projections"}
