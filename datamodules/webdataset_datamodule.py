"""WebDatasetDataModule: shards -> batches on the device, with masks; resumable at every optimizer step."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from datamodules.argument_checks import check_at_least, check_colour, check_image_size, check_share
from datamodules.batches import add_masks
from datamodules.donors import Donors
from datamodules.loaders import EvaluationLoader, StreamLoader
from datamodules.mask_sources import MaskSource
from datamodules.polarity import PolarityWatch
from datamodules.samples import SampleDecoder
from datamodules.shard_specs import open_shards
from datamodules.shards import ShardSet
from datamodules.stream import PLAN_VERSION, SampleOrder, SampleStream, evaluation_steps
from datamodules.stream_datamodule import StreamDataModule
from datamodules.trainer_checks import check_trainer
from inpaint_module.masks import MaskGenerator

_LAST_STEP = 2**62  # later than any optimizer step


class WebDatasetDataModule(StreamDataModule):
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
        mask_generator: Paints a mask for every sample that gets none from the data.
        seed: Seeds order, crops, flips and masks.
        val_batch_size: As batch_size, for validation; null for the same.
        num_workers: Processes that decode, per device; 0 decodes in the training process.
        window: Shards whose samples are mixed with each other.
        min_scale: Smallest side of a random crop, 0..1 of the largest crop that fits. Crops are never enlarged
            unless the image itself is too small.
        flip: Probability of mirroring a training sample.
        upscale: Enlarge images smaller than image_size; false refuses them.
        background: RGB, 0..255, laid under transparent pixels, unless AlphaMask is among the mask_sources.
        max_pixels: Refuse larger images.
        max_caption_bytes: Refuse longer captions.
        mask_sources: Where masks in the data are looked for, the first that finds one wins: datamodules.FileMask,
            AlphaMask, LabelMap, CocoMask or a subclass of MaskSource. Null for FileMask alone, [] for none.
        own_mask_probability: Share of the samples with a mask in the data that get it; the others get a painted one.
        transfer_probability: Share of the samples that get the mask of another sample's object, to learn removal. The
            donor comes from the same window of shards; where it has no mask, the sample is as without transfer.
        allow_empty_masks: Use masks from the data even where the crop has left nothing of them; false paints one.

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
        mask_sources: list[MaskSource] | None = None,
        own_mask_probability: float = 1.0,
        transfer_probability: float = 0.0,
        allow_empty_masks: bool = True,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        check_image_size(size)
        check_at_least(1, batch_size=batch_size, window=window, max_pixels=max_pixels)
        check_at_least(1, val_batch_size=batch_size if val_batch_size is None else val_batch_size)
        check_at_least(0, num_workers=num_workers, max_caption_bytes=max_caption_bytes)
        check_share(min_scale=min_scale, flip=flip)
        check_share(own_mask_probability=own_mask_probability, transfer_probability=transfer_probability)
        check_colour(background)
        self.train_shards = train_shards
        self.val_shards = val_shards
        self.batch_size = batch_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.mask_generator = mask_generator
        self.seed = seed
        self.num_workers = num_workers
        self.window = window
        self.transfer_probability = transfer_probability
        common: dict[str, Any] = {"upscale": upscale, "background": tuple(background), "max_pixels": max_pixels}
        common |= {"image_size": size, "seed": seed, "max_caption_bytes": max_caption_bytes}
        common |= {"mask_sources": mask_sources, "own_mask_probability": own_mask_probability}
        common["allow_empty_masks"] = allow_empty_masks
        self.train_decoder = SampleDecoder(augment=True, min_scale=min_scale, flip=flip, **common)
        self.val_decoder = SampleDecoder(augment=False, **common)
        self._watch_polarity = PolarityWatch()

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

    def _stream(self, shards: ShardSet, order: SampleOrder, **options: Any) -> SampleStream:
        """This rank's part of the stream."""
        donors = Donors(order, seed=self.seed, probability=share) if (share := self.transfer_probability) else None
        rank, world = self.rank_and_world()
        return SampleStream(shards, order, rank=rank, world=world, donors=donors, **options)

    def train_dataloader(self) -> StreamLoader:
        """An endless loader that starts at the stream's position."""
        if self.trainer is not None:
            check_trainer(self.trainer)
        self.begin()
        order = SampleOrder(self.train_set.counts, seed=self.seed, window=self.window)
        stream = self._stream(self.train_set, order, batch_size=self.batch_size)
        return StreamLoader(stream, self.train_decoder, num_workers=self.num_workers, position=self.next_position)

    def val_dataloader(self) -> EvaluationLoader:
        """The validation samples in their order, equally many batches on every rank."""
        order = SampleOrder(self.val_set.counts, shuffle=False)
        steps = evaluation_steps(len(order), batch_size=self.val_batch_size, world=self.rank_and_world()[1])
        stream = self._stream(self.val_set, order, batch_size=self.val_batch_size, steps=steps)
        return EvaluationLoader(stream, self.val_decoder, num_workers=self.num_workers, steps=steps)

    def test_dataloader(self) -> EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at the first masks from the data: mostly white ones get a warning."""
        self._watch_polarity(batch)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Paint the masks, on the device that the batch is on; a curriculum is at its end in evaluation."""
        if self.trainer is not None:
            self.mask_generator.set_step(self.global_step() if self.trainer.training else _LAST_STEP)
        return add_masks(batch, self.mask_generator, self.seed)

    def plan(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample."""
        return {
            "plan_version": PLAN_VERSION,
            "seed": self.seed,
            "window": self.window,
            "dataset_fingerprint": self.train_set.fingerprint,
        }
