"""WebDatasetDataModule: shards -> batches on the device, with masks; resumable at every optimizer step."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from datamodules import order as orders
from datamodules.checks import (
    check_at_least,
    check_batch,
    check_colour,
    check_image_size,
    check_masks,
    check_share,
    check_trainer,
    memory_of,
)
from datamodules.decode import MaskSource, PolarityWatch, SampleDecoder, check_use, find_tag
from datamodules.shards import Shard, ShardCache, ShardSet, aside_line, find_shards, look_into
from datamodules.stream_datamodule import StreamDataModule
from inpaint_module import masks
from inpaint_module.batch import DescribedData, LatentsTag
from inpaint_module.masks.generator import LAST_STEP, MaskGenerator
from inpaint_module.sizing import padding_mask_crop
from inpaint_module.training.run_folder import run_folder


class WebDatasetDataModule(StreamDataModule, DescribedData):
    """Batches of images, captions and masks from webdataset shards.

    Training is one endless stream in which every sample comes once per pass, shuffled anew each time. What stands at
    each position (sample, crop, flip, mask) depends on the seed alone: not on batch size, workers, ranks or restarts.
    So set `trainer.max_steps`, leave `max_epochs` at -1, give `val_check_interval` as a number of batches
    and set `use_distributed_sampler: false`. A checkpoint resumes at the sample after the last optimizer step's, for
    any number of ranks and workers.

    Validation, test and prediction go through the validation shards in their order, centre crops, with fixed masks.
    Samples that fill up the last batch have position -1 and count for nothing.

    A batch is {"image": uint8 (B,3,H,W), "mask": bool (B,1,H,W) with 1 = inpaint, "position": int64 (B,),
    "caption": list of B texts, "__key__": list of B texts}; in training also "original_size", "crop" and "target_size",
    what was cut from which photo, and from a latent cache "latents" (B,C,h,w); where samples have targets, "target"
    uint8 (B,3,H,W), what their images should become. See `inpaint_module.batch.Batch`.

    Args:
        train_shards: A folder of tars, a path, a pattern such as data/{000..099}.tar or data/*.tar, the same at
            https://, s3:// or gs://, embedded:train, or a list of these. Of shards by datamodules.cache_latents the
            images are taken as they are: cropped, flipped and augmented already.
        val_shards: Likewise; null for no validation.
        batch_size: Samples of one batch on one device.
        image_size: Pixels, one number for squares or [height, width].
        mask_generator: Paints a mask for every sample that gets none from the data. Null, for training that reads no
            masks such as an autoencoder's: batches have none, and none are looked for in the data.
        graph_masks: Paint them by CUDA graphs, see `inpaint_module.masks.CudaGraphed`: the same masks, sooner on a GPU.
        seed: Seeds order, crops, flips and masks.
        val_batch_size: As batch_size, for validation; null for the same.
        num_workers: Processes that decode, per device; 0 decodes in the training process.
        window: Shards whose samples are mixed with each other.
        source_weights: How often each entry of train_shards is drawn from, such as [3, 1]; null draws every sample
            equally often.
        bucket_step: Train in batches of one shape each, of about the pixels of image_size, sides multiples of this;
            null crops all to image_size. The index must hold image sizes, as make_shards and index_shards write it.
        bucket_max_aspect: Longest side of a bucket, in times its shortest.
        min_scale: Smallest side of a random crop, 0..1 of the largest crop that fits. Crops are never enlarged
            unless the image itself is too small.
        flip: Probability of mirroring a training sample.
        transforms: Further augmentations of training samples, of torchvision.transforms.v2, on uint8 image and mask;
            their random numbers are functions of (seed, position) too.
        upscale: Enlarge images smaller than image_size; false refuses them.
        background: RGB, 0..255, laid under transparent pixels, unless AlphaMask is among the mask_sources.
        max_pixels: Refuse larger images.
        reducing_gap: How many times larger than its target, along a side, a JPEG is still decoded, at least 1. Against
            the full decode, 2 kept 42 dB PSNR in all crops that were measured, 1.5 kept 40 dB in 98 of 100.
        max_caption_bytes: Refuse longer captions.
        caption_key: Where in NAME.json the caption is, if there is no NAME.txt.
        label_key: Put class numbers into the batch, from NAME.cls or from this key of NAME.json; a sample without one
            is refused. Null for none.
        mask_sources: Where masks in the data are looked for, the first that finds one wins: datamodules.FileMask,
            AlphaMask, LabelMap, CocoMask or a subclass of MaskSource. Null for FileMask alone, [] for none.
        own_mask_probability: Share of the samples with a mask in the data that get it; the others get a painted one.
        transfer_probability: Share of the samples that get the mask of another sample's object, to learn removal. The
            donor comes from the same window of shards; where it has no mask, the sample is as without transfer.
        allow_empty_masks: Use masks from the data even where the crop has left nothing of them; false paints one.
        padding_mask_crop: Cut every image, mask and all, to its hole and this many pixels around it, and enlarge it to
            image_size, as diffusers' pipelines do if called with this; null for no such crop. By Pillow, on the CPU.
        max_bad_share: Training samples that cannot be used are replaced by others of their window and written to
            quarantine.jsonl in the run folder, up to this share (0..1); above it the run ends. 0 ends it at the first.
            Evaluation refuses every one.
        stall_timeout: Seconds without a batch from the workers after which the run ends; 0 waits for ever.
        cache_dir: Where remote shards are kept; null for INPAINT_CACHE or ~/.cache/inpaint_module/shards.
        cache_bytes: Size of that cache; the longest unused shards go first.

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
        mask_generator: MaskGenerator | None = None,
        graph_masks: bool = False,
        seed: int = 0,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        window: int = 8,
        source_weights: list[float] | None = None,
        bucket_step: int | None = None,
        bucket_max_aspect: float = 2.0,
        min_scale: float = 0.5,
        flip: float = 0.5,
        transforms: list[nn.Module] | None = None,
        upscale: bool = True,
        background: tuple[int, int, int] = (255, 255, 255),
        max_pixels: int = 50_000_000,
        reducing_gap: float = 2.0,
        max_caption_bytes: int = 16384,
        caption_key: str = "caption",
        label_key: str | None = None,
        mask_sources: list[MaskSource] | None = None,
        own_mask_probability: float = 1.0,
        transfer_probability: float = 0.0,
        allow_empty_masks: bool = True,
        padding_mask_crop: int | None = None,
        max_bad_share: float = 0.01,
        stall_timeout: float = 0.0,
        cache_dir: str | None = None,
        cache_bytes: int = 50_000_000_000,
    ) -> None:
        super().__init__()
        size = check_image_size(image_size)
        val_batch_size = batch_size if val_batch_size is None else val_batch_size
        check_at_least(1, batch_size=batch_size, val_batch_size=val_batch_size, window=window)
        check_at_least(1, max_pixels=max_pixels, reducing_gap=reducing_gap)
        check_at_least(0, num_workers=num_workers, stall_timeout=stall_timeout)
        check_at_least(0, max_caption_bytes=max_caption_bytes, padding_mask_crop=padding_mask_crop or 0)
        check_share(min_scale=min_scale, flip=flip, max_bad_share=max_bad_share)
        check_share(own_mask_probability=own_mask_probability, transfer_probability=transfer_probability)
        check_colour(background)
        if mask_generator is None:
            check_masks(mask_sources=mask_sources, transfer_probability=transfer_probability)
            check_masks(padding_mask_crop=padding_mask_crop, graph_masks=graph_masks)
            mask_sources = []
        self.train_shards, self.val_shards = train_shards, val_shards
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.mask_generator = masks.graph_masks(mask_generator) if graph_masks and mask_generator else mask_generator
        self.seed, self.window, self.source_weights = seed, window, source_weights
        self.buckets = (
            None if bucket_step is None else orders.Buckets(size, step=bucket_step, max_aspect=bucket_max_aspect)
        )
        self.num_workers, self.stall_timeout, self.max_bad_share = num_workers, stall_timeout, max_bad_share
        self.transfer_probability, self.padding_mask_crop = transfer_probability, padding_mask_crop
        self.cache = ShardCache(cache_dir, max_bytes=cache_bytes)
        common: dict[str, Any] = {"upscale": upscale, "background": tuple(background), "max_pixels": max_pixels}
        common |= {"image_size": size, "seed": seed, "max_caption_bytes": max_caption_bytes}
        common |= {"caption_key": caption_key, "label_key": label_key, "mask_sources": mask_sources}
        common |= {"own_mask_probability": own_mask_probability, "allow_empty_masks": allow_empty_masks}
        common["reducing_gap"] = reducing_gap
        self.train_decoder = SampleDecoder(
            augment=True, min_scale=min_scale, flip=flip, transforms=transforms, **common
        )
        self.val_decoder = SampleDecoder(augment=False, **common)
        self._watch_polarity = PolarityWatch()
        self._loaders: dict[str, orders.BatchLoader] = {}  # the newest of each kind, asked why a worker died

    @cached_property
    def train_sources(self) -> list[list[Shard]]:
        """The shards of each entry of `train_shards`, indexed at first use."""
        entries = [self.train_shards] if isinstance(self.train_shards, str) else self.train_shards
        return [find_shards(entry, self.cache) for entry in entries]

    @cached_property
    def train_set(self) -> ShardSet:
        """All training shards."""
        return self._opened("data.train_shards", [shard for shards in self.train_sources for shard in shards])

    @cached_property
    def train_order(self) -> orders.Order:
        """Which training sample stands at each position."""
        options: dict[str, Any] = {"weights": self.source_weights, "buckets": self.buckets, "window": self.window}
        shards = list(map(len, self.train_sources))
        return orders.stream_order(self.train_set, shards, batch_size=self.batch_size, seed=self.seed, **options)

    @cached_property
    def latents(self) -> LatentsTag | None:
        """What the clean latents in the training shards are of, see `cache_latents`; None if there are none.

        Raises:
            ValueError: if they are not in all sources, or of images of another size.
        """
        tag = find_tag(self.train_set, list(map(len, self.train_sources)))
        if tag is not None:
            check_use(tag, self.train_decoder.image_size, bucketed=self.buckets is not None)
        return tag

    @property
    def has_masks(self) -> bool:
        """See `DescribedData`."""
        return self.mask_generator is not None

    def image_sizes(self, stage: str) -> dict[str, list[tuple[int, int]]]:
        """See `DescribedData`."""
        size = self.train_decoder.image_size
        if stage != "fit" or self.buckets is None:
            return {"data.image_size": [size]}
        validates = self.val_shards is not None and not (self.trainer and self.trainer.limit_val_batches == 0)
        return {"data.bucket_step": self.buckets.shapes, "data.image_size": [size] if validates else []}

    @cached_property
    def val_set(self) -> ShardSet:
        """The validation shards, indexed at first use.

        Raises:
            ValueError: if there are none.
        """
        if self.val_shards is None:
            raise ValueError("data.val_shards: expected shards to evaluate on, got null")
        return self._opened("data.val_shards", find_shards(self.val_shards, self.cache))

    def _opened(self, name: str, shards: list[Shard]) -> ShardSet:
        """Shards to read from; members of their tars that are left aside are told."""
        if told := aside_line(shards, name):
            rank_zero_info(told)
        return ShardSet(shards, self.cache)

    def setup(self, stage: str) -> None:
        """Without validation shards, train without validation."""
        if stage == "fit" and self.val_shards is None and self.trainer is not None:
            self.trainer.limit_val_batches = 0

    def _stream(self, shards: ShardSet, order: orders.Order, **options: Any) -> orders.SampleStream:
        """This rank's part of the stream."""
        donors = (
            orders.Donors(order, seed=self.seed, probability=share) if (share := self.transfer_probability) else None
        )
        rank, world = self.rank_and_world()
        return orders.SampleStream(shards, order, rank=rank, world=world, donors=donors, **options)

    def train_dataloader(self) -> orders.StreamLoader:
        """An endless loader that starts at the stream's position."""
        if self.trainer is not None:
            check_trainer(self.trainer)
            memory = memory_of(self.trainer.strategy.root_device)
            check_batch(self.batch_size, sum(self.train_set.counts), self.train_decoder.image_size, memory)
            self._watch_polarity.begin(self.train_set, self.train_decoder.masks)
        self._expect_pairs(self.train_decoder, self.train_set)
        self.begin()
        loader = orders.StreamLoader(
            self._stream(self.train_set, self.train_order, batch_size=self.batch_size),
            self.train_decoder if self.latents is None else self.train_decoder.for_cache(self.latents),
            num_workers=self.num_workers,
            position=self.next_position,
            seed=self.seed,
            folder=self._run_folder(),
            max_bad_share=self.max_bad_share,
            stall_timeout=self.stall_timeout,
        )
        self._loaders["train"] = loader
        return loader

    def _expect_pairs(self, decoder: SampleDecoder, shards: ShardSet) -> None:
        """Where samples have targets, give every batch some, and refuse transforms that do not fit."""
        decoder.pairs = look_into(shards).account.found.get("targets", 0) > 0
        if decoder.pairs:
            decoder.augmentations.check_pairs(decoder.image_size)

    def _run_folder(self) -> Path | None:
        """Where `quarantine.jsonl` and `crashes.jsonl` go: beside the logs; nowhere without a trainer."""
        return run_folder(self.trainer) if self.trainer else None

    def val_dataloader(self) -> orders.EvaluationLoader:
        """The validation samples in their order, equally many batches on every rank."""
        self._expect_pairs(self.val_decoder, self.val_set)
        order = orders.SampleOrder(self.val_set.counts, shuffle=False)
        steps = orders.evaluation_steps(len(order), batch_size=self.val_batch_size, world=self.rank_and_world()[1])
        stream = self._stream(self.val_set, order, batch_size=self.val_batch_size, steps=steps)
        options: dict[str, Any] = {"num_workers": self.num_workers, "stall_timeout": self.stall_timeout}
        loader = orders.EvaluationLoader(stream, self.val_decoder, steps=steps, folder=self._run_folder(), **options)
        self._loaders["val"] = loader
        return loader

    def test_dataloader(self) -> orders.EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> orders.EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def on_exception(self, exception: BaseException) -> None:
        """Keep the position; if a worker has died, add to the error which sample it was decoding."""
        super().on_exception(exception)
        for loader in self._loaders.values():
            loader.explain(exception)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note the time, for `Throughput`. Look at the first masks from the data: mostly white ones get a warning."""
        self.batch_arrived = time.perf_counter()
        self._watch_polarity(batch)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Paint the masks, on the device that the batch is on; a curriculum is at its end in evaluation.

        Then, where it is asked for, `padding_mask_crop`.
        """
        if self.mask_generator is None:
            return batch
        if self.trainer is not None:
            self.mask_generator.set_step(self.global_step() if self.trainer.training else LAST_STEP)
        masked = orders.add_masks(batch, self.mask_generator, self.seed)
        return masked if self.padding_mask_crop is None else padding_mask_crop(masked, self.padding_mask_crop)

    @cached_property
    def _masks_sha256(self) -> str | None:
        return self.mask_generator.fingerprint(*self.train_decoder.image_size) if self.mask_generator else None

    def plan(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample; other masks are told and no more."""
        return {
            "plan_version": orders.PLAN_VERSION,
            "seed": self.seed,
            "window": self.window,
            "dataset_fingerprint": self.train_set.fingerprint,
            "masks_sha256": self._masks_sha256,
            **self.train_order.plan(),
        }
