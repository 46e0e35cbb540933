"""WebDatasetDataModule: shards -> batches on the device, with masks; resumable at every optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
import webdataset as wds
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.samples import SampleDecoder
from datamodules.shards import ShardSet, open_shards
from datamodules.stream import PLAN_VERSION, SampleOrder, SampleStream, evaluation_steps
from inpaint_module.masks import MaskGenerator
from inpaint_module.randomness import Stream, key


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> one batch; `has_mask` bool (B,) is there only if some samples have own masks and others do not."""
    batch: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "position": torch.tensor([sample["position"] for sample in samples]),
        "caption": [sample["caption"] for sample in samples],
        "__key__": [sample["__key__"] for sample in samples],
    }
    has_mask = torch.tensor(["mask" in sample for sample in samples])
    if has_mask.any():
        empty = torch.zeros(1, *batch["image"].shape[-2:], dtype=torch.bool)
        batch["mask"] = torch.stack([sample.get("mask", empty) for sample in samples])
        if not has_mask.all():
            batch["has_mask"] = has_mask
    return batch


def add_masks(batch: dict[str, Any], mask_generator: MaskGenerator, seed: int) -> dict[str, Any]:
    """Give every sample of a batch a mask, on the device of its positions; a mask from the shard wins.

    Args:
        batch: of `collate`.
        mask_generator: keys int64 (B,) -> bool (B, 1, H, W).
        seed: seeds the masks.

    Returns:
        The batch with "mask" bool (B, 1, H, W), without "has_mask".
    """
    has_mask = batch.get("has_mask")
    if "mask" in batch and has_mask is None:
        return batch
    height, width = batch["image"].shape[-2:]
    mask = mask_generator(key(seed, batch["position"], Stream.MASK), height, width)
    if has_mask is not None:
        mask = torch.where(has_mask[:, None, None, None], batch["mask"], mask)
    return {name: value for name, value in batch.items() if name != "has_mask"} | {"mask": mask}


class StreamLoader(wds.WebLoader):
    """A WebLoader over a stream, whose endless form asks for its first position whenever it starts anew."""

    def __init__(self, stream: SampleStream, position: Callable[[], int], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stream = stream
        self._position = position

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._stream.start = self._position()
        return super().__iter__()


class EvaluationLoader(wds.WebLoader):
    """A WebLoader of known length, in batches of this rank."""

    def __init__(self, steps: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps


class WebDatasetDataModule(LightningDataModule):
    """Batches of images, captions and masks from webdataset shards.

    Training is one endless stream in which every sample comes once per pass, shuffled anew each time. What stands at
    each position (sample, crop, flip, mask) depends on the seed alone: not on batch size, workers, ranks or restarts.
    So set `trainer.max_steps`, leave `max_epochs` at -1, give `val_check_interval` as a number of batches
    and set `use_distributed_sampler: false`. A checkpoint resumes at the sample after the last optimizer step's, for
    any number of ranks and workers.

    Validation, test and prediction go through the validation shards in their order, centre crops, with fixed masks.
    Samples that fill up the last batch have position -1 and count for nothing.

    A batch is {"image": uint8 (B,3,H,W), "mask": bool (B,1,H,W) with 1 = inpaint, "position": int64 (B,),
    "caption": list of B texts, "__key__": list of B texts}.

    Args:
        train_shards: A folder of tars, a path, a pattern such as data/{000..099}.tar or data/*.tar, embedded:train,
            or a list of these.
        val_shards: Likewise; null for no validation.
        batch_size: Samples of one batch on one device.
        image_size: Pixels, one number for squares or [height, width].
        mask_generator: Paints a mask for every sample that has none in its shard (mask.png or mask.webp).
        seed: Seeds order, crops, flips and masks.
        val_batch_size: As batch_size, for validation; null for the same.
        num_workers: Processes that decode, per device; 0 decodes in the training process.
        window: Shards whose samples are mixed with each other.
        min_scale: Smallest side of a random crop, 0..1 of the largest crop that fits. Crops are never enlarged
            unless the image itself is too small.
        flip: Probability of mirroring a training sample.
        upscale: Enlarge images smaller than image_size; false refuses them.
        background: RGB, 0..255, laid under transparent pixels.
        max_pixels: Refuse larger images.
        max_caption_bytes: Refuse longer captions.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    def __init__(
        self,
        train_shards: str | list[str],
        val_shards: str | list[str] | None = None,
        *,
        batch_size: int,
        image_size: int | tuple[int, int],
        mask_generator: MaskGenerator,
        seed: int = 0,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        window: int = 8,
        min_scale: float = 0.5,
        flip: float = 0.5,
        upscale: bool = True,
        background: tuple[int, int, int] = (255, 255, 255),
        max_pixels: int = 50_000_000,
        max_caption_bytes: int = 16384,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        _check_image_size(size)
        _check_at_least(1, batch_size=batch_size, window=window, max_pixels=max_pixels)
        _check_at_least(1, val_batch_size=batch_size if val_batch_size is None else val_batch_size)
        _check_at_least(0, num_workers=num_workers, max_caption_bytes=max_caption_bytes)
        _check_share(min_scale=min_scale, flip=flip)
        _check_colour(background)
        self.train_shards = train_shards
        self.val_shards = val_shards
        self.batch_size = batch_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.mask_generator = mask_generator
        self.seed = seed
        self.num_workers = num_workers
        self.window = window
        common: dict[str, Any] = {"upscale": upscale, "background": tuple(background), "max_pixels": max_pixels}
        common |= {"image_size": size, "seed": seed, "max_caption_bytes": max_caption_bytes}
        self.train_decoder = SampleDecoder(augment=True, min_scale=min_scale, flip=flip, **common)
        self.val_decoder = SampleDecoder(augment=False, **common)
        self._start = 0
        self._start_step: int | None = None  # the trainer's global_step at position _start

    # Data

    @cached_property
    def train_set(self) -> ShardSet:
        """The training shards, indexed at first use."""
        return open_shards(self.train_shards)

    @cached_property
    def val_set(self) -> ShardSet:
        """The validation shards, indexed at first use.

        Raises:
            ValueError: if there are none.
        """
        if self.val_shards is None:
            raise ValueError("data.val_shards: expected shards to evaluate on, got null")
        return open_shards(self.val_shards)

    def setup(self, stage: str) -> None:
        """Without validation shards, train without validation."""
        if stage == "fit" and self.val_shards is None and self.trainer is not None:
            self.trainer.limit_val_batches = 0

    def _rank_and_world(self) -> tuple[int, int]:
        """Rank and number of ranks as to data: tensor-parallel ranks share theirs."""
        options = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        return options["rank"], options["num_replicas"]

    def _pipeline(self, stream: SampleStream, decoder: SampleDecoder) -> tuple[wds.DataPipeline, dict[str, Any]]:
        """The pipeline up to batches, and how the loader runs it (a worker computes on one thread as it is)."""
        pipeline = wds.DataPipeline(
            stream, wds.map(decoder), wds.batched(stream.batch_size, collation_fn=collate, partial=False)
        )
        options = {
            "batch_size": None,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # the loader's own draw must not move the global one
        }
        return pipeline, options

    def train_dataloader(self) -> StreamLoader:
        """An endless loader that starts at the stream's position."""
        self._check_accumulation()
        if self._start_step is None:
            self._start_step = self._global_step()
        rank, world = self._rank_and_world()
        order = SampleOrder(self.train_set.counts, seed=self.seed, window=self.window)
        stream = SampleStream(self.train_set, order, batch_size=self.batch_size, rank=rank, world=world)
        pipeline, options = self._pipeline(stream, self.train_decoder)
        return StreamLoader(stream, self._next_position, pipeline, **options)

    def val_dataloader(self) -> EvaluationLoader:
        """The validation samples in their order, equally many batches on every rank."""
        rank, world = self._rank_and_world()
        order = SampleOrder(self.val_set.counts, shuffle=False)
        steps = evaluation_steps(len(order), batch_size=self.val_batch_size, world=world)
        stream = SampleStream(self.val_set, order, batch_size=self.val_batch_size, rank=rank, world=world, steps=steps)
        pipeline, options = self._pipeline(stream, self.val_decoder)
        return EvaluationLoader(steps, pipeline, persistent_workers=self.num_workers > 0, **options)

    def test_dataloader(self) -> EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Paint the masks, on the device that the batch is on."""
        return add_masks(batch, self.mask_generator, self.seed)

    # Position and resume

    def _global_step(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    def position(self) -> int:
        """The first position that no optimizer step has used; batches inside an accumulation window do not count."""
        if self.trainer is None or self._start_step is None:
            return self._start
        steps = self._global_step() - self._start_step
        samples = self.trainer.accumulate_grad_batches * self._rank_and_world()[1] * self.batch_size
        return self._start + steps * samples

    def _next_position(self) -> int:
        """Where the training loader starts anew: `trainer.overfit_batches` repeats the first batches."""
        repeat = self.trainer and self.trainer.overfit_batches  # type: ignore[attr-defined]
        return self._start if repeat else self.position()

    def _settle(self) -> None:
        """Make the position independent of the trainer, which is about to go."""
        self._start, self._start_step = self.position(), None

    def teardown(self, stage: str) -> None:
        """Keep the position: another fit goes on from there."""
        if stage == "fit":
            self._settle()

    def on_exception(self, exception: BaseException) -> None:
        """Keep the position: another fit goes on from there."""
        self._settle()

    def _plan(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample."""
        return {
            "plan_version": PLAN_VERSION,
            "seed": self.seed,
            "window": self.window,
            "dataset_fingerprint": self.train_set.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream and what it refers to."""
        return {"position": self.position(), **self._plan()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a checkpoint's position; evaluation ignores it.

        Raises:
            ValueError: if the checkpoint's seed, window, dataset or order is not this run's.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for name, here in self._plan().items():
            if (there := state_dict.get(name)) != here:
                raise ValueError(
                    f"data {name}: expected {there!r} as in the checkpoint, got {here!r}: the stream cannot go on "
                    "where it was; restore it, or start without ckpt_path"
                )
        self._start, self._start_step = state_dict["position"], None

    def _check_accumulation(self) -> None:
        """An epoch that ends inside an accumulation window steps early, and positions could not be counted."""
        if self.trainer is None:
            return
        limit, window = self.trainer.limit_train_batches, self.trainer.accumulate_grad_batches
        if isinstance(limit, int) and limit % window:
            raise ValueError(
                f"trainer.limit_train_batches: expected a multiple of accumulate_grad_batches ({window}), got {limit}"
            )


def _check_at_least(low: int, **values: int) -> None:
    for name, value in values.items():
        if value < low:
            raise ValueError(f"data.{name}: expected at least {low}, got {value}")


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"data.{name}: expected 0 to 1, got {value}")


def _check_image_size(size: tuple[int, ...]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"data.image_size: expected positive pixels, one number or [height, width], got {size}")


def _check_colour(background: tuple[int, ...]) -> None:
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ValueError(f"data.background: expected three numbers 0 to 255, got {background}")
