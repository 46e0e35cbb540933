"""What of Lightning and torch is leaned on without a promise is there still: a new version fails here first."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from quiet_trainer import quiet_trainer
from torch.optim import lr_scheduler as schedulers

from inpaint_module import randomness
from inpaint_module.training.lightning_private import TESTED, keep_name, mark_saved, saves_by_time, write_csv_into
from inpaint_module.weights import NEEDS_CONTENT, LiveBytes, no_content, runnable


def test_the_version_is_one_that_was_tested() -> None:
    assert lightning.__version__.startswith(TESTED), "run the slow tests with it, then change TESTED"


def test_kernels_for_a_gpu_can_be_named_without_one() -> None:
    """By the jiterator of torch, tested with 2.14; what they compute is for a GPU, see `pytest -m cuda`."""
    assert [callable(each) for each in randomness._cuda_kernels.__wrapped__()] == [True, True]


def test_tensors_without_content() -> None:
    """Torch's fake tensors, tested with 2.14: shapes are computed, numbers are not there, and freed bytes count off."""
    model = torch.nn.Linear(4, 8, device="meta")
    with no_content(), LiveBytes() as bytes_:
        out = runnable(model)(torch.zeros(2, 4))
        assert out.shape == (2, 8)
        with pytest.raises(NEEDS_CONTENT):
            out.sum().item()
        assert bytes_.now >= out.nbytes
        del out
    assert bytes_.now < bytes_.peak


def test_names_on_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trainer = quiet_trainer(1)
    sgd = torch.optim.SGD([torch.zeros(1)])
    chained = schedulers.ChainedScheduler([schedulers.LinearLR(sgd)])
    sequential = schedulers.SequentialLR(sgd, [schedulers.LinearLR(sgd)] * 2, [1])
    names: list[tuple[Any, str]] = [
        (ModelCheckpoint(), "_enable_version_counter _train_time_interval _last_global_step_saved"),
        (ModelParallelStrategy(), "_save_distributed_checkpoint"),
        (trainer.fit_loop, "_data_fetcher"),
        (trainer.fit_loop.epoch_loop, "_should_check_val_fx"),
        (trainer._logger_connector, "_first_loop_iter"),
        (trainer.fit_loop.epoch_loop.val_loop, "_has_run"),
        (EMAWeightAveraging(), "_average_model _device _kwargs _swap_models"),
        (CSVLogger(tmp_path), "_version _experiment"),
        (TensorBoardLogger(tmp_path), "_version"),
        (WandbLogger(save_dir=tmp_path, offline=True), "_id _experiment _wandb_init"),
        (MLFlowLogger(tracking_uri=f"file:{tmp_path}"), "_run_id _mlflow_client"),
        (chained, "_schedulers"),
        (sequential, "_schedulers _milestones"),
    ]
    missing = [f"{type(each).__name__}.{n}" for each, all_of in names for n in all_of.split() if not hasattr(each, n)]
    assert not missing


def test_what_is_set_is_still_read() -> None:
    """An attribute that Lightning no longer reads could be set for ever without effect."""
    callback = ModelCheckpoint(train_time_interval=None)
    assert not saves_by_time(callback)
    keep_name(callback)
    mark_saved(callback, 7)
    source = inspect.getsource(ModelCheckpoint)
    assert source.count("self._enable_version_counter") > 1
    assert "self._last_global_step_saved ==" in source or "self._last_global_step_saved !=" in source
    assert callback._last_global_step_saved == 7


def test_a_csv_logger_writes_where_it_is_told(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "own")
    (tmp_path / "other").mkdir()
    write_csv_into(logger, tmp_path / "other")
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    assert (tmp_path / "other" / "metrics.csv").exists()
