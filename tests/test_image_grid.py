"""Pictures on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CometLogger
from PIL import Image
from tiny_models import tiny_batch, tiny_module

from inpaint_module.report.pages import to_pil
from inpaint_module.training.run_record import ImageGrid, PredictionWriter, grid_image, log_picture


def test_grid_has_a_row_per_photo_and_a_column_per_field() -> None:
    result = tiny_module().inpaint(tiny_batch(3))
    sheet = np.asarray(grid_image(result))
    assert sheet.shape == (3 * 32 + 14, 6 * 48, 3)
    first = (result.image[0] * 255).round().byte().movedim(0, -1).numpy()
    assert (sheet[14:46, :48] == first).all()
    assert (sheet[14:46, 48:96] == 255 * result.mask[0, 0].numpy()[..., None]).all()


def test_comet_is_shown_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comet's package is not needed for it: Lightning's logger without what it wraps."""
    shown: list[tuple[Any, ...]] = []
    experiment = SimpleNamespace(log_image=lambda picture, name, step: shown.append((picture.size, name, step)))
    monkeypatch.setattr(CometLogger, "experiment", experiment)
    trainer: Any = SimpleNamespace(loggers=[object.__new__(CometLogger)])
    log_picture(trainer, "val/grid", Image.new("RGB", (8, 4)), 7)
    assert shown == [((8, 4), "val/grid", 7)]


def test_to_pil_rounds() -> None:
    assert np.asarray(to_pil(torch.tensor([0.5, 1.2, -1.0]).reshape(3, 1, 1)))[0, 0].tolist() == [128, 255, 0]


def test_predictions_are_named_by_key_without_the_padding(tmp_path: Path) -> None:
    batch = tiny_batch(3) | {"__key__": ["a", "b/c", "a"], "position": torch.tensor([0, 1, -1])}
    writer = PredictionWriter(str(tmp_path))
    result = tiny_module().inpaint(batch)
    writer.on_predict_batch_end(SimpleNamespace(), SimpleNamespace(), result, batch, 0)  # type: ignore[arg-type]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == ["a.png", "b/c.png"]
    assert (np.asarray(Image.open(tmp_path / "a.png")) == np.asarray(to_pil(result.composite[0]))).all()


def test_keys_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    batch = tiny_batch(1) | {"__key__": ["../../a"]}
    with pytest.raises(ValueError, match="leads out of the folder"):
        PredictionWriter(str(tmp_path)).on_predict_batch_end(
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            tiny_module().inpaint(batch),
            batch,
            0,
        )


def test_grid_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        ImageGrid(0)
