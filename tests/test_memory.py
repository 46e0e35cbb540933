"""What a run takes is known before its first step: against what the allocator of the CPU gave."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_folders import BASES, CONTROLNET_BASES, saved
from tiny_models import tiny_batch, tiny_module
from torch import nn

from inpaint_module.base_models import BaseModel, LoRA
from inpaint_module.cli import main
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.memory import (
    Memory,
    bytes_of,
    estimate_table,
    held_memory,
    optimizer_bytes,
    step_peak,
)
from inpaint_module.weights import LiveBytes, without_weights

PHOTOS = tiny_batch(4, 64, 64)


def measured(module: InpaintDiffusion, batch: Mapping[str, Any], mixed: torch.dtype | None) -> int:
    """Bytes that the second training step has allocated at once at its peak, as torch's profiler counts them."""
    optimizer = module.optimizer(module.optimized())

    def step() -> None:
        with torch.autocast("cpu", mixed) if mixed else nullcontext():
            loss = module.loss(batch)  # type: ignore[arg-type]
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = peak = 0
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]  # type: ignore[union-attr]
    for each in sorted(events, key=lambda event: event.start_ns()):
        now += each.nbytes()
        peak = max(peak, now)
    return peak


OPTIONS: dict[str, dict[str, Any]] = {
    "sd15_controlnet": {"train": "controlnet"},
    "sd15": {},
    "sdxl": {"train": "plain", "lora": LoRA(4), "dtype": "bfloat16"},
    "sd3": {"gradient_checkpointing": True},
    "flux_fill": {"lora": LoRA(4), "dtype": "bfloat16", "gradient_checkpointing": True},
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS if name != "sd3"]


@pytest.mark.parametrize("name", ["sd3", *SLOW])
def test_the_estimate_is_within_ten_percent(name: str, tmp_path: Path) -> None:
    folder, options = saved((BASES | CONTROLNET_BASES)[name](), tmp_path), OPTIONS[name]
    mixed = torch.bfloat16 if "lora" in options else None
    real = InpaintDiffusion(BaseModel(folder, **options))  # type: ignore[arg-type]
    with without_weights(), mock.patch("safetensors.safe_open", side_effect=AssertionError("weights were read")):
        known = InpaintDiffusion(BaseModel(folder, **options))  # type: ignore[arg-type]
    assert held_memory(known) == held_memory(real)
    peak = step_peak(known, PHOTOS, "bf16-mixed" if mixed else "32-true")  # type: ignore[arg-type]
    assert peak == pytest.approx(measured(real, PHOTOS, mixed), rel=0.1)


def test_parts_by_hand() -> None:
    module = tiny_module()
    count = sum(weight.numel() for weight in module.denoiser.parameters())
    held = held_memory(module)
    assert (held.weights, held.gradients, held.average, held.text) == (4 * count, 4 * count, 0, 0)
    tensors = len(list(module.denoiser.parameters()))
    assert held.optimizer == 8 * count + 4 * tensors, "two moments, and a count of steps for each tensor"
    assert "activations" in str(held)


def test_what_was_there_before_is_not_counted() -> None:
    weight, given = torch.zeros(100, 100), torch.zeros(2, 100)
    with LiveBytes() as live:
        made = given @ weight.t()
        del made
        kept = weight[:50].clone()
    assert (live.peak, live.now) == (4 * 5000, 4 * 5000)
    assert len(kept) == 50


def test_a_frozen_and_a_tied_weight_count_once() -> None:
    layer = nn.Linear(8, 8, bias=False)
    tied = nn.Linear(8, 8, bias=False)
    tied.weight = layer.weight
    assert bytes_of([*layer.parameters(), *tied.parameters()]) == 256


def test_an_optimizer_that_cannot_be_tried_is_said() -> None:
    def refuses(weights: list[nn.Parameter]) -> Any:
        raise RuntimeError("needs a GPU")

    assert optimizer_bytes(refuses, [nn.Parameter(torch.zeros(2))]) is None
    held = Memory(2**30, 2**30, None, 0, 0, 0)
    assert "known after the first step" in str(held)
    table = estimate_table(held, None, tiny_batch(), "32-true")  # type: ignore[arg-type]
    assert "optimizer's state is not in it" in table
    assert "Activations are not in it" in table


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    monkeypatch.setattr(sys, "argv", ["inpaint"])
    configs = ["--config", "configs/quickstart.yaml", "--config", "configs/adamw8bit.yaml"]
    assert main(["fit", *configs, "--estimate", "--data.batch_size=2"]) == 0
    told = capsys.readouterr().out
    assert "batch 2 of 128 x 128 pixels" in told
    rows = dict(line.rsplit(maxsplit=1) for line in told.splitlines() if line.startswith("  "))
    assert {name.strip() for name in rows} == {
        *("weights", "gradients", "optimizer", "average (EMA)", "VAE", "activations", "peak")
    }
    assert not list(tmp_path.iterdir()), "nothing is written"
