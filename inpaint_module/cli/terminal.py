"""What a run shows in a terminal: one bar with the time that is left, and no line that its user cannot use."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import textwrap
import time
import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core import rank_zero

from inpaint_module.cli.errors import debugging

_UNUSED: tuple[str, ...] = ("💡 Tip", "TPU available", "HPU available", "GPU available: False", "`Trainer(limit_")
_UNUSED += ("`Trainer.fit` stopped", "Restor", "`weights_only` was not set", "Found current_model_state")
_UNUSED_WARNINGS = (  # regular expressions of their beginnings
    ".*LeafSpec.*is deprecated",  # Lightning 2.6 on torch's newest pytree
    "The number of training batches .* is smaller than the logging interval",  # steps are counted over the whole run
)
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

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """While training, the one bar tells of the validation; else it has a bar of its own."""
        if self._train_progress_bar is None:
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Name the bar of a validation that is not within a training."""
        if self._train_progress_bar is None:
            super().on_validation_batch_start(trainer, *arguments)
            self.val_progress_bar.set_description("validating", refresh=False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say in the one bar how far the validation is."""
        if self._train_progress_bar is None:
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        elif not self._train_progress_bar.disable and time.monotonic() - self._drawn > _SECONDS[sys.stdout.isatty()]:
            self._drawn = time.monotonic()
            self.has_dataloader_changed(dataloader_idx)  # notes which one it is
            total = self.total_val_batches_current_dataloader
            of = f"/{int(total)}" if math.isfinite(total) else ""
            self._train_progress_bar.set_postfix_str(f"validating {batch_idx + 1}{of}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the bar."""
        self.reset_dataloader_idx_tracker()
        if self._train_progress_bar is None:
            self.val_progress_bar.close()
        elif not self._train_progress_bar.disable:
            self._train_progress_bar.set_postfix_str(_postfix(trainer))


def quiet() -> None:
    """Leave out what Lightning and torch say of themselves: adverts, devices that are not there, own deprecations.

    Warnings are shown without file and line, unless `--debug` is given.
    """
    logger = rank_zero.log
    if not any(isinstance(each, _OnlyUseful) for each in logger.filters):
        logger.addFilter(_OnlyUseful())
    for message in _UNUSED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if not debugging():
        warnings.formatwarning = _plain_warning


def _plain_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning without the file and the line of source that it comes from, which say nothing to a user."""
    text = f"warning: {message}"
    return f"{in_width(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text}\n"


class _OnlyUseful(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if sys.stderr.isatty():
            record.msg, record.args = in_width(message, shutil.get_terminal_size().columns), ()
        return not message.startswith(_UNUSED)


def in_width(text: str, columns: int) -> str:
    """A text whose lines are broken between words, the rest indented, where a terminal would break them anywhere."""
    broken = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join("\n".join(textwrap.wrap(line, columns - 1, **broken)) for line in text.split("\n"))  # type: ignore[arg-type]


def _steps(trainer: Trainer) -> int | None:
    """How many the whole run has; None if it is endless."""
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) else None


def _postfix(trainer: Trainer) -> str:
    found = {name: trainer.callback_metrics.get(name) for name in _SHOWN}
    return ", ".join(_SHOWN[name].format(float(value)) for name, value in found.items() if value is not None)
