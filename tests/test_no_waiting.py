"""No training step waits for its GPU: nothing that lies there is asked for, nothing is copied over in the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from mask_cases import GENERATORS, KEYS
from on_gpu import never_waiting, on_gpu
from tiny_models import ClassConditioning, tiny_batch, tiny_denoiser, tiny_module, tiny_vae
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from datamodules.stream_datamodule import add_masks
from inpaint_module import InpaintEncoder
from inpaint_module.clean_latents import encode_clean
from inpaint_module.objectives.loss import LossWeights
from inpaint_module.objectives.objectives import DiffusionObjective, FlowMatchingObjective
from inpaint_module.objectives.timesteps import LogitNormal
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion


def sampled() -> InpaintDiffusion:
    """Draws from the posterior."""
    module = tiny_module()
    module.encoder = InpaintEncoder(tiny_vae(), normalize=True, posterior="sample")
    return module


def with_captions() -> InpaintDiffusion:
    """Drops some of them."""
    denoiser = tiny_denoiser(num_class_embeds=2)
    return tiny_module(denoiser=denoiser, conditioning=ClassConditioning(), caption_dropout=0.5)


def flow(**options: Any) -> InpaintDiffusion:
    """Rectified flow."""
    return tiny_module(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **options)


MODULES: dict[str, Callable[[], InpaintDiffusion]] = {
    "plain": tiny_module,
    "sampled posterior": sampled,
    "captions": with_captions,
    "min-SNR": partial(tiny_module, objective=partial(DiffusionObjective, snr_gamma=5.0)),
    "loss weights": partial(tiny_module, loss_weights=LossWeights(outside=0.5, seam=2.0)),
    "flow": flow,
    "flow, logit-normal": partial(flow, objective=partial(FlowMatchingObjective, timesteps=LogitNormal())),
}


def step(module: InpaintDiffusion, batch: dict[str, Any]) -> Tensor:
    """From positions and images that are on the device to a loss."""
    return module.loss(add_masks(batch, GENERATORS["sd"], seed=0))


def unmasked_batch() -> dict[str, Any]:
    """As it comes from the loader."""
    return {name: value for name, value in tiny_batch().items() if name != "mask"}


@pytest.fixture
def shapes_alone() -> FakeTensorMode:
    """Tensors without values, "on a GPU"; torch 2.6 wants a real one for them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            torch.ones(2).to("cuda")
    except (RuntimeError, AssertionError) as error:
        pytest.skip(f"this torch has no tensors on a GPU that is not there: {error}")
    return mode


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("cached", [False, True])
def test_no_value_is_asked_for(name: str, cached: bool, shapes_alone: FakeTensorMode) -> None:
    """On a device that has shapes alone: whoever asks for a value gets an error."""
    if cached and name == "sampled posterior":
        pytest.skip("cached latents are modes")
    module, batch = MODULES[name](), unmasked_batch()
    if cached:
        batch["latents"] = encode_clean(module.encoder, batch["image"])
    with shapes_alone:
        assert step(module.to("cuda"), on_gpu(batch)).device.type == "cuda"


@pytest.mark.parametrize("name", GENERATORS)
def test_no_mask_asks_for_a_value(name: str, shapes_alone: FakeTensorMode) -> None:
    with shapes_alone:
        keys = torch.arange(4, device="cuda")
        assert GENERATORS[name](keys, 48, 64).shape == (4, 1, 48, 64)


def test_who_asks_is_found(shapes_alone: FakeTensorMode) -> None:
    """Float pixels are looked at, as their docstring says: the checks above can fail."""
    encoder = InpaintEncoder(tiny_vae())
    with shapes_alone, pytest.raises(DataDependentOutputException):
        encoder.to("cuda")(torch.ones(1, 3, 16, 16, device="cuda"), torch.ones(16, 16, device="cuda") > 0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODULES)
def test_no_step_waits(name: str) -> None:
    module, batch = MODULES[name]().cuda(), on_gpu(unmasked_batch())
    step(module, batch).backward()  # schedules of noise go to the device once
    with never_waiting():
        step(module, batch).backward()


@pytest.mark.cuda
@pytest.mark.parametrize("name", GENERATORS)
def test_no_mask_waits(name: str) -> None:
    keys = KEYS.cuda()
    GENERATORS[name](keys, 128, 128)
    with never_waiting():
        GENERATORS[name](keys, 128, 128)
