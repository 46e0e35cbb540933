"""Samples: pictures of the user's, painted at the start of a training and at every validation, with the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor

from datamodules.account import Account
from datamodules.decode.conversion import read_given
from datamodules.predict import mask_of
from datamodules.writing.folders import Picture, caption_of, find_pictures
from inpaint_module.batch import DescribedData
from inpaint_module.files import atomic_write_picture
from inpaint_module.inpaint_image import inpaint_image, surroundings, trained_side
from inpaint_module.masks import preset
from inpaint_module.report.pages import to_pil
from inpaint_module.report.report_files import SAMPLES, painted_samples, samples_sheet, write_sample
from inpaint_module.report.validation_report import as_in_validation, is_sharded
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.optimization import step_of
from inpaint_module.training.run_folder import run_folder
from inpaint_module.training.run_record import log_picture
from inpaint_module.weights import ASSETS

EMBEDDED = "embedded:photos"  # four that ship with the package, under painted masks
_MAX_PIXELS = 200_000_000
_LARGEST = 512  # pixels of a side of what is kept


class Sample(NamedTuple):
    """A hole and its surroundings.

    Attributes:
        name: path in the folder, without the ending.
        number: its place by name, of which its noise is a function.
        prompt: the caption.
        image: uint8 (3, H, W).
        mask: bool (1, H, W), true where to paint.
        path: of the picture.
    """

    name: str
    number: int
    prompt: str
    image: Tensor
    mask: Tensor
    path: Path


class Samples(Callback):
    """Paints pictures of a folder when training starts and at every validation, as `inpaint predict` would.

    `NAME.jpg`, its mask `NAME.mask.png` (white = paint) and its prompt `NAME.txt` lie side by side, as in the data. In
    the run folder: `samples/NAME/step_NNNNNN.png`, the hole with its surroundings, and `samples/over_time.png`, all of
    them side by side, in `report.html` too; in the loggers `samples`. Noise is a function of (the module's
    seed, the picture's place by name), so that steps and runs compare. The weights are those that validation uses.
    Training's own random numbers are left alone; rank 0 paints while the others wait.

    Args:
        folder: of the pictures; `embedded:photos` for four that ship, under masks of `lama-medium`.
        preset: a mask recipe to paint the masks with, in place of files.
        most: only so many pictures, the first by name.

    Raises:
        ValueError: when `fit` or `validate` starts, on all ranks: a folder without pictures, or, by name, a picture
            that cannot be read, has no mask or an empty one, or a prompt that is no text.
    """

    def __init__(self, folder: str, *, preset: str | None = None, most: int = 16):
        if most < 1:
            raise ValueError(f"samples: most must be at least 1, got {most}")
        self.folder, self.preset, self.most = folder, preset, most
        self._samples: list[Sample] = []
        self._run = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the pictures on rank 0, and have all ranks refuse what it refuses."""
        self._run, self._samples, refusal = run_folder(trainer), [], ""
        if stage not in ("fit", "validate") or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero:
            try:
                self._samples = self._read(trainer, pl_module)
            except ValueError as error:
                refusal = f"samples: {error}"
        if refusal := trainer.strategy.broadcast(refusal):
            raise ValueError(refusal)

    def _read(self, trainer: Trainer, module: LightningModule) -> list[Sample]:
        if not isinstance(module, InpaintDiffusion) or is_sharded(trainer, module):
            rank_zero_warn(
                "samples: none are painted; expected an InpaintDiffusion whose weights are whole on every rank, got "
                f"{type(module).__name__} under {type(trainer.strategy).__name__}"
            )
            return []
        embedded = self.folder == EMBEDDED
        folder, account = ASSETS / "photos" if embedded else Path(self.folder).expanduser(), Account()
        masks = self.preset or ("lama-medium" if embedded else None)
        pictures = find_pictures(folder, Path(), None, masks is not None, account)
        if len(pictures) > self.most:
            rank_zero_info(f"samples: the first {self.most} of {len(pictures)} pictures in {folder} are painted")
        side = _side(trainer, module)
        return [read_sample(picture, masks, side) for picture in pictures[: self.most]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Paint with the weights that the training starts from."""
        if not trainer.global_step and self._paint(trainer, pl_module):
            rank_zero_info(f"samples: {self._run / SAMPLES / 'over_time.png'}, one more column at every validation")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Paint before the first batch: here the averaged weights are in place, whatever the order of callbacks."""
        if not trainer.sanity_checking and batch_idx == dataloader_idx == 0:
            self._paint(trainer, pl_module)

    def _paint(self, trainer: Trainer, module: LightningModule) -> bool:
        """Whether there was something to paint."""
        if not self._samples or not isinstance(module, InpaintDiffusion):
            return False
        step = step_of(trainer, module)
        with as_in_validation(trainer, module, module.seed), trainer.precision_plugin.val_step_context():
            for sample in self._samples:
                try:
                    hole, fill = _painted(sample, module, trainer)
                except ValueError as error:  # such as NaN, of which a training may recover
                    rank_zero_warn(f"samples: {sample.path} is not painted at step {step}: {error}")
                else:
                    write_sample(self._run, sample.name, sample.prompt, step, hole, fill)
        painted = painted_samples(self._run, step)
        names = {sample.name for sample in self._samples}
        ours = [each for each in painted if each.name in names]
        if not ours:
            return False
        newest = samples_sheet(ours)
        atomic_write_picture(self._run / SAMPLES / "over_time.png", newest)
        log_picture(trainer, SAMPLES, newest, step)
        return True


def read_sample(picture: Picture, masks: str | None, side: int) -> Sample:
    """A picture with its mask and prompt, cut down to what `inpaint_image` looks at.

    Args:
        picture: of `find_pictures`.
        masks: the recipe that paints its mask; None for its file.
        side: see `surroundings`.

    Raises:
        ValueError: naming the file.
    """
    if picture.fault:
        raise ValueError(f"{picture.path}: expected its mask {picture.path.stem}.mask.png beside it, found none")
    pixels = read_given(picture.path, _MAX_PIXELS).rgb
    mask = mask_of(picture, pixels.shape[:2], preset(masks or "sd"), 0)
    region = surroundings(mask, side)
    if region is None:
        raise ValueError(
            f"{picture.mask or picture.path}: expected a mask that is white where to paint, got an empty one"
        )
    box = (..., slice(region.top, region.bottom), slice(region.left, region.right))
    image = torch.from_numpy(pixels).movedim(-1, 0)[box].clone()
    name = picture.out.with_suffix("").as_posix()
    return Sample(name, picture.number, caption_of(picture, ""), image, mask[box].clone(), picture.path)


def _side(trainer: Trainer, module: InpaintDiffusion) -> int:
    """The side of the pictures that the run trains on, in pixels."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, DescribedData):
        return trained_side(module)
    return max(max(size) for sizes in data.image_sizes("fit").values() for size in sizes)


def _painted(sample: Sample, module: InpaintDiffusion, trainer: Trainer) -> tuple[Image.Image, Image.Image]:
    """The hole in grey, and what the model paints."""
    image, mask = sample.image.to(module.device), sample.mask.to(module.device)
    side = _side(trainer, module)
    fill = inpaint_image(module, image, mask, position=sample.number, caption=sample.prompt, working_side=side)
    pictures = to_pil(torch.where(mask, 128, image)), to_pil(fill)
    for picture in pictures:
        picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return pictures
