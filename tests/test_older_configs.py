"""Configs of before there was a `base`: they become today's."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from inpaint_module.commands.older_configs import today, today_options

OLD = """
model:
  class_path: inpaint_module.lightning_module.InpaintDiffusion
  init_args:
    encoder: {class_path: inpaint_module.InpaintEncoder, init_args: {grow_mask_by: 6}}
    layout: {class_path: inpaint_module.layouts.StableDiffusionLayout, init_args: {reduce: max}}
    denoiser: {class_path: inpaint_module.denoisers.models.new_model, init_args: {class_name: UNet2DModel}}
    scheduler: {class_path: diffusers.DDIMScheduler}
    call: {class_path: inpaint_module.denoisers.transformer_calls.FluxCall}
    seed: 3
"""
NEW = """
model:
  class_path: inpaint_module.lightning_module.InpaintDiffusion
  init_args:
    base:
      class_path: inpaint_module.base_models.ModelParts
      init_args:
        encoder: {class_path: inpaint_module.InpaintEncoder, init_args: {grow_mask_by: 6}}
        layout: {class_path: inpaint_module.base_models.StableDiffusionLayout, init_args: {reduce: max}}
        denoiser: {class_path: inpaint_module.base_models.new_model, init_args: {class_name: UNet2DModel}}
        scheduler: {class_path: diffusers.DDIMScheduler}
        call: {class_path: inpaint_module.base_models.FluxCall}
    seed: 3
"""


def test_a_whole_config() -> None:
    assert today(yaml.safe_load(OLD)) == yaml.safe_load(NEW)
    assert today(yaml.safe_load(NEW)) == yaml.safe_load(NEW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"model": {"init_args": {"encoder": {"init_args": {"posterior": "sample"}}}}},
            {"model": {"init_args": {"base": {"init_args": {"encoder": {"init_args": {"posterior": "sample"}}}}}}},
        ),
        (
            {"model": {"init_args": {"base": {"path": "some/model"}}}},
            {
                "model": {
                    "init_args": {
                        "base": {
                            "class_path": "inpaint_module.base_models.BaseModel",
                            "init_args": {"path": "some/model"},
                        }
                    }
                }
            },
        ),
        (
            {"model": {"init_args": {"base": {"dtype": "float32"}}}},
            {"model": {"init_args": {"base": {"dtype": "float32"}}}},
        ),
        ({"data": {"init_args": {"seed": 1}}}, {"data": {"init_args": {"seed": 1}}}),
        (
            {"model": {"class_path": "other.Module", "init_args": {"encoder": 1}}},
            {"model": {"class_path": "other.Module", "init_args": {"encoder": 1}}},
        ),
    ],
    ids=["an overlay", "a base of today", "part of one", "no model", "another class"],
)
def test_parts_of_configs(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert today(old) == new


def test_options() -> None:
    old = ["--model.encoder.posterior=sample", "--model.init_args.denoiser=null", "--model.encoders=1", "--data.seed=1"]
    new = ["--model.base.encoder.posterior=sample", "--model.base.denoiser=null", "--model.encoders=1", "--data.seed=1"]
    assert today_options(old) == new
