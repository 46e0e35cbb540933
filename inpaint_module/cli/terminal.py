"""What a run shows in a terminal: one bar with the time that is left, and no line that its user cannot use."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core import rank_zero

_UNUSED = ("💡 Tip", "TPU available", "HPU available", "`Trainer(limit_", "`Trainer.fit` stopped", "Restor")
_SHOWN = {"train/loss": "loss {:.3f}", "throughput/images_per_s": "{:.3g} images/s", "val/psnr_inside": "PSNR {:.1f}"}
_SECONDS = {True: 0.2, False: 30.0}  # between two states of the bar: in a terminal, in a file


class RunProgress(TQDMProgressBar):
    """Lightning's bar over the optimizer steps of the whole run, on one line: steps, the time left, three metrics."""

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self._drawn = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how large the model is."""
        sizes = dict.fromkeys((True, False), 0)
        for parameter in pl_module.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        frozen = f", {sizes[False] / 1e6:.1f} M are frozen" if sizes[False] else ""
        rank_zero_info(f"model: {sizes[True] / 1e6:.1f} M parameters train{frozen}")
        self._train_progress_bar = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Draw the bar where the run goes on, once all that begins with it has said what it has to say."""
        if self._train_progress_bar is None:
            done = trainer.global_step  # the time left is that of the steps of this start
            looks = {"dynamic_ncols": True, "bar_format": self.BAR_FORMAT, "disable": self.is_disabled}
            self._train_progress_bar = Tqdm(
                desc="step", total=_steps(trainer), initial=done, file=sys.stdout, position=0, **looks
            )

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """One bar serves all epochs."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draw the bar, if it was not drawn just now."""
        bar = self.train_progress_bar
        last = trainer.global_step == bar.total
        if bar.disable or not (last or time.monotonic() - self._drawn > _SECONDS[sys.stdout.isatty()]):
            return
        self._drawn = time.monotonic()
        bar.n = trainer.global_step
        bar.set_postfix_str(_postfix(trainer), refresh=False)
        bar.refresh()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One bar serves all epochs."""

    def on_train_end(self, *_: Any) -> None:
        """Leave the bar as it stands."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def on_validation_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Name the second bar, which goes when the validation ends."""
        super().on_validation_batch_start(trainer, *arguments)
        self.val_progress_bar.set_description("validating", refresh=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the first bar."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if self._train_progress_bar is not None:
            self._train_progress_bar.set_postfix_str(_postfix(trainer))


def quiet() -> None:
    """Leave out what Lightning and torch say of themselves: adverts, devices that are not there, own deprecations."""
    logger = rank_zero.log
    if not any(isinstance(each, _OnlyUseful) for each in logger.filters):
        logger.addFilter(_OnlyUseful())
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning 2.6 on torch's newest pytree


class _OnlyUseful(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_UNUSED)


def _steps(trainer: Trainer) -> int | None:
    """How many the whole run has; None if it is endless."""
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) else None


def _postfix(trainer: Trainer) -> str:
    found = {name: trainer.callback_metrics.get(name) for name in _SHOWN}
    return ", ".join(_SHOWN[name].format(float(value)) for name, value in found.items() if value is not None)
