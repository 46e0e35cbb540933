"""What the report says and does where something is missing or wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from quiet_trainer import QUIET
from reported_runs import data, fit, model, numbers, report, trainer_of
from tiny_models import tiny_batch

from inpaint_module.report.validation_report import ValidationReport, finite, photos_of

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]


def test_fewer_photos_than_asked_are_reported_on(tmp_path: Path) -> None:
    trainer_of(tmp_path, 2, report(), limit_val_batches=1).validate(model(), data(), verbose=False)
    assert len(numbers(tmp_path)["photos"]) == 2


def test_other_ranks_do_nothing(tmp_path: Path) -> None:
    callback, trainer = report(), trainer_of(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer), "is_global_zero", False)
        callback.on_validation_batch_end(trainer, model(), {}, tiny_batch(3), 0)
        callback.on_fit_end(trainer, model())
    assert not callback._found
    assert not list(tmp_path.iterdir())


def test_no_validation_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no validation has run since this start, so there is no report"):
        fit(tmp_path, 1, report(), num_sanity_val_steps=0)
    assert not (tmp_path / "report.html").exists()


def test_sharded_weights_and_other_modules_are_said(tmp_path: Path) -> None:
    callback, sharded = report(), model()
    sharded._device_mesh = object()  # type: ignore[assignment]
    callback._found = photos_of(tiny_batch(3))
    for module, name in ((sharded, "InpaintDiffusion"), (BoringModel(), "BoringModel")):
        with pytest.warns(UserWarning, match=f"no report; it expects .* got 3 photos and {name} under SingleDevice"):
            callback.on_fit_end(trainer_of(tmp_path, 1), module)
        callback._reported = None


def test_values_that_are_not_finite_are_said_and_count() -> None:
    """A mean would leave a NaN out, as it does what a mask does not show."""
    image = torch.tensor([[[[0.5, math.nan, math.inf]]]])
    with pytest.warns(UserWarning, match="ValidationReport: fish under sd: 2 values are not finite and count as black"):
        assert finite(image, "fish under sd").tolist() == [[[[0.5, 0, 0]]]]
    assert finite(image[..., :1], "fish").tolist() == [[[[0.5]]]]


def test_a_model_that_went_wrong_is_scored(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            torch.nn.init.constant_(pl_module.denoiser.conv_out.bias, math.nan)  # type: ignore

    with pytest.warns(UserWarning, match="under outpaint: .* values are not finite"):
        fit(tmp_path, 2, report(photos=1, presets=["outpaint"]), Poison())
    assert {"psnr_inside", "ssim_inside", "seam"} <= numbers(tmp_path)["presets"]["outpaint"].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presets": []}, r"ValidationReport presets must be different names, at least one, got \[\]"),
        ({"presets": ["sd", "sd"]}, r"presets must be different names, at least one, got \['sd', 'sd'\]"),
        ({"presets": ["nothing"]}, "unknown mask preset 'nothing'; known are lama-thin"),
        ({"photos": 0}, "ValidationReport photos must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValidationReport(**options)
