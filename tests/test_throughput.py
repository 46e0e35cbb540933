"""Throughput: the shares are those of what really took the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import tiny_batch, tiny_module
from torch.utils.data import DataLoader, IterableDataset

from inpaint_module.batch import DescribedData
from inpaint_module.training.speed import SHARES, HostTimer, Stopwatch, Throughput

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


class Clock:
    """Goes on only when it is told to: on a busy machine real pauses are lost among all else that waits."""

    now = 1.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that throughput is measured by."""
    clock = Clock()
    monkeypatch.setattr(HostTimer, "mark", lambda self: clock.now)
    return clock


class SlowBatches(IterableDataset[dict[str, Any]]):
    """Batches of 2, each after a pause."""

    def __init__(self, pause: Callable[[], object]):
        self.pause = pause

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in count():
            self.pause()
            yield tiny_batch(first=2 * step)


def no_pause() -> None:
    """Batches come at once."""


class Seen(Callback):
    """Keeps what was logged."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.metrics = {name: float(value) for name, value in trainer.logged_metrics.items()}


def logged(
    source: Callable[[], object] | LightningDataModule, steps: int = 6, device: str = "cpu", **options: Any
) -> dict[str, float]:
    seen, module = Seen(), tiny_module()
    settings = {"accelerator": device, "devices": 1, "log_every_n_steps": 3, **options}
    trainer = quiet_trainer(steps, callbacks=[Throughput(), seen], **settings)
    is_data = isinstance(source, LightningDataModule)
    trainer.fit(module, source if is_data else DataLoader(SlowBatches(source), batch_size=None))
    assert not module.encoder._forward_hooks
    assert not module.denoiser._forward_hooks
    return {name.removeprefix("throughput/"): value for name, value in seen.metrics.items() if "throughput" in name}


class SlowMasks(LightningDataModule, DescribedData):
    """Batches at once; between the loader and the step, a pause."""

    latents = None
    has_masks = True

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def image_sizes(self, stage: str) -> dict[str, list[tuple[int, int]]]:
        return {}

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(SlowBatches(no_pause), batch_size=None)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.batch_arrived = self.clock.now
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.clock.sleep(0.2)
        return batch


def test_masks_are_not_waiting(clock: Clock) -> None:
    found = logged(SlowMasks(clock))
    assert found["preparing"] == pytest.approx(1)
    assert found["waiting"] == 0


def test_a_slow_source_is_waited_for(clock: Clock) -> None:
    found = logged(partial(clock.sleep, 0.2))
    assert found["waiting"] == pytest.approx(1)
    assert found["preparing"] == 0
    assert found["images_per_s"] == pytest.approx(2 / 0.2)


@pytest.mark.parametrize("window", [1, 2])
def test_shares_add_up_to_the_whole(window: int) -> None:
    found = logged(no_pause, accumulate_grad_batches=window)
    assert sum(found[name] for name in (*SHARES, "other")) == pytest.approx(1, abs=1e-6)
    assert all(found[name] > 0 for name in ("encoder", "denoiser", "optimizer"))


def test_images_are_those_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 2 on each of 3 ranks in 4 seconds."""
    callback, seen, clock = Throughput(), dict[str, float](), SimpleNamespace(now=0.0)
    trainer: Any = SimpleNamespace(world_size=3, log_every_n_steps=1, accumulate_grad_batches=2)
    trainer.fit_loop = SimpleNamespace(total_batch_idx=0)
    trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module: Any = SimpleNamespace(log=lambda name, value, **options: seen.update({name: value}))
    monkeypatch.setattr(HostTimer, "mark", lambda self: clock.now)
    callback.on_train_start(trainer, module)
    for number in range(2):
        clock.now, trainer.fit_loop.total_batch_idx = 2.0 * (number + 1), number
        callback.on_train_batch_end(trainer, module, None, tiny_batch(2), 0)
    assert seen["throughput/images_per_s"] == 2 * 2 * 3 / 4


def test_stopwatch_sums_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = HostTimer()
    now = iter([0.0, 2.0, 10.0, 11.0, 20.0])
    monkeypatch.setattr(timer, "mark", lambda: next(now))
    watch = Stopwatch(timer)
    for _ in range(2):
        watch.start("a")
        watch.stop("a")
    watch.start("b")
    watch.forget("b")
    watch.stop("b")
    assert watch.take() == {"a": 3.0}
    assert watch.take() == {}


@pytest.mark.cuda
def test_on_a_gpu_the_shares_are_the_device_s() -> None:
    found = logged(no_pause, device="gpu")
    assert all(0 < found[name] < 1 for name in ("encoder", "denoiser", "optimizer"))
