"""Loops other than Lightning's save a model that holds the encoder, load it, and refuse another VAE."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from diffusers.training_utils import EMAModel
from tiny_models import tiny_batch, tiny_denoiser, tiny_module, tiny_vae
from tiny_pipelines import unet
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from inpaint_module import InpaintEncoder
from inpaint_module.base_models import LoRA, add_lora

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # of a checkpoint by one process
REFUSED = "trained with a VAE whose weights have sha256"
OLD = {"vae_sha256": InpaintEncoder(tiny_vae()).vae.fingerprint().hex()}  # what was saved until there was a tensor


def model(vae_seed: int = 0, denoiser: nn.Module | None = None) -> nn.Module:
    encoder = InpaintEncoder(tiny_vae(vae_seed))
    return nn.ModuleDict({"denoiser": denoiser or tiny_denoiser(), "encoder": encoder})


def with_lora(vae_seed: int = 0) -> nn.Module:
    return model(vae_seed, add_lora(unet(9), LoRA(rank=2)))


def save_model(saved: nn.Module, loaded: nn.Module, folder: Path) -> None:
    safetensors.torch.save_model(saved, str(folder / "model.safetensors"))
    safetensors.torch.load_model(loaded, str(folder / "model.safetensors"))


def save_file(saved: nn.Module, loaded: nn.Module, folder: Path) -> None:
    safetensors.torch.save_file(saved.state_dict(), folder / "model.safetensors")
    loaded.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))


def torch_save(saved: nn.Module, loaded: nn.Module, folder: Path) -> None:
    torch.save(saved.state_dict(), folder / "model.pt")
    loaded.load_state_dict(torch.load(folder / "model.pt", weights_only=True))


def distributed(saved: nn.Module, loaded: nn.Module, folder: Path) -> None:
    """torch.distributed.checkpoint, which reads into the tensors of the state that it is given."""
    path, state = mkdtemp(dir=folder), {"model": loaded.state_dict()}
    dcp.save({"model": saved.state_dict()}, checkpoint_id=path, no_dist=True)
    dcp.load(state, checkpoint_id=path, no_dist=True)
    loaded.load_state_dict(state["model"])


def full_state(saved: nn.Module, loaded: nn.Module, folder: Path) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_model_state_dict(loaded, get_model_state_dict(saved, options=options), options=options)


@pytest.mark.parametrize("kind", [model, with_lora], ids=["whole", "lora"])
@pytest.mark.parametrize("how", [save_model, save_file, torch_save, distributed, full_state])
def test_saved_loaded_and_another_vae_refused(
    how: Callable[..., None], kind: Callable[..., Any], tmp_path: Path
) -> None:
    saved, loaded = kind(), kind()
    with torch.no_grad():
        for value in saved.denoiser.parameters():
            value.add_(value.requires_grad)
    how(saved, loaded, tmp_path)
    for a, b in zip(saved.denoiser.parameters(), loaded.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=REFUSED):
        how(saved, kind(1), tmp_path)
    how(saved, loaded, tmp_path)  # the refusal has changed nothing


def test_older_states_still_load() -> None:
    state = model().state_dict()
    state["encoder._extra_state"] = OLD
    model().load_state_dict(state)
    with pytest.raises(ValueError, match=REFUSED):
        model(1).load_state_dict(state)
    checkpoint: dict[str, Any] = {}
    tiny_module().on_save_checkpoint(checkpoint)
    checkpoint["encoder"] = OLD
    tiny_module().on_load_checkpoint(checkpoint)


def test_pickled_and_averaged() -> None:
    holder, batch = model(), tiny_batch()
    twin = pickle.loads(pickle.dumps(holder))
    twin.load_state_dict(holder.state_dict())
    found, expected = (each.encoder(batch["image"], batch["mask"]) for each in (twin, holder))
    assert torch.equal(found.samples, expected.samples)
    assert torch.equal(found.noise_mask, expected.noise_mask)
    ema = EMAModel(holder.parameters())
    ema.step(holder.parameters())
    ema.copy_to(holder.parameters())
    assert len(ema.shadow_params) == len(list(holder.denoiser.parameters()))


@pytest.fixture
def accelerate() -> Any:
    """Accelerate, whose state is global."""
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def test_accelerate_resumes_to_the_bit_and_refuses(accelerate: None, tmp_path: Path) -> None:
    from accelerate_loop import train

    whole = train(tmp_path / "whole", 4, tiny_vae())
    first = train(tmp_path / "state", 2, tiny_vae())
    assert (tmp_path / "state" / "model.safetensors").is_file()
    assert first + train(tmp_path / "state", 4, tiny_vae()) == whole
    assert len(whole) == 4
    with pytest.raises(ValueError, match=REFUSED):
        train(tmp_path / "state", 6, tiny_vae(seed=1))
