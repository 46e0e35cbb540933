"""WebDatasetDataModule: shards -> batches on the device, with masks; resumable at every optimizer step."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from datamodules import order as orders
from datamodules.decode import DecoderOptions, InvertedMasksWarning, MaskOptions, SampleDecoder, find_tag
from datamodules.order import LoadingOptions, OrderOptions
from datamodules.shards import Shard, ShardSet, aside_line, find_shards, look_into
from datamodules.stream_datamodule import StreamDataModule, add_masks, check_batch, check_trainer, memory_of
from datamodules.writing.folder_shards import PictureFolders
from inpaint_module.batch import DescribedData, LatentsTag
from inpaint_module.cli.older_configs import takes_older_arguments
from inpaint_module.masks.generator import LAST_STEP, MaskGenerator, graph_masks, has_graphs, is_ours
from inpaint_module.parsing import check_at_least
from inpaint_module.pixels import padding_mask_crop
from inpaint_module.training.run_folder import run_folder


def check_image_size(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of one number for squares, or of two; anything but positive numbers is refused."""
    size = (value, value) if isinstance(value, int) else tuple(value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"data.image_size: expected positive pixels, one number or [height, width], got {size}")
    return size[0], size[1]


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
            https://, s3:// or gs://, embedded:train, or a list of these. A folder of pictures, with what lies beside
            them as make_shards reads it, is read as the shards that make_shards would make of it. Of shards by
            datamodules.cache_latents the images are taken as they are: cropped, flipped and augmented already.
        val_shards: Likewise; null for no validation.
        batch_size: Samples of one batch on one device.
        image_size: Pixels, one number for squares or [height, width].
        mask_generator: Paints a mask for every sample that gets none from the data. Null, for training that reads no
            masks such as an autoencoder's: batches have none, and none are looked for in the data.
        seed: Seeds order, crops, flips and masks.
        num_workers: Processes that decode, per device; 0 decodes in the training process.
        val_batch_size: As batch_size, for validation; null for the same.
        order: How samples are mixed, and in which shapes they come, see `datamodules.OrderOptions`.
        decoder: Crops, augmentations, captions and labels, see `datamodules.DecoderOptions`.
        masks: Masks from the data, see `datamodules.MaskOptions`.
        loading: Bad samples, stalls, and the cache of remote shards, see `datamodules.LoadingOptions`.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    @takes_older_arguments
    def __init__(
        self,
        train_shards: str | list[str],
        val_shards: str | list[str] | None = None,
        *,
        batch_size: int,
        image_size: int | tuple[int, int],
        mask_generator: MaskGenerator | None = None,
        seed: int = 0,
        num_workers: int = 0,
        val_batch_size: int | None = None,
        order: OrderOptions = OrderOptions(),  # noqa: B008, immutable as the others
        decoder: DecoderOptions = DecoderOptions(),  # noqa: B008
        masks: MaskOptions = MaskOptions(),  # noqa: B008
        loading: LoadingOptions = LoadingOptions(),  # noqa: B008
    ) -> None:
        super().__init__()
        size, val_batch_size = check_image_size(image_size), batch_size if val_batch_size is None else val_batch_size
        check_at_least(1, "data", batch_size=batch_size, val_batch_size=val_batch_size)
        check_at_least(0, "data", num_workers=num_workers)
        self.train_shards, self.val_shards = train_shards, val_shards
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.seed, self.num_workers, self.order, self.loading = seed, num_workers, order, loading
        self.masks = masks if mask_generator else masks.without_generator()
        self.mask_generator = graph_masks(mask_generator) if mask_generator and masks.cuda_graphs else mask_generator
        self.buckets, self.cache = order.buckets(size), loading.cache()
        options: dict[str, Any] = {"image_size": size, "seed": seed, "options": decoder, "masks": self.masks}
        self.train_decoder = SampleDecoder(augment=True, **options)
        self.val_decoder = SampleDecoder(augment=False, **options)
        self._inverted_masks, home = InvertedMasksWarning(), self.cache.folder / "folders"
        self._folders = {
            "train": PictureFolders("data.train_shards", home, loading.max_bad_share),
            "val": PictureFolders("data.val_shards", home, 0.0),  # evaluation is of all samples
        }
        self._loaders: dict[str, orders.BatchLoader] = {}  # the newest of each kind, asked why a worker died

    @cached_property
    def train_sources(self) -> list[list[Shard]]:
        """The shards of each entry of `train_shards`, indexed at first use."""
        entries = [self.train_shards] if isinstance(self.train_shards, str) else self.train_shards
        return [find_shards(entry, self.cache, self._folders["train"]) for entry in entries]

    @cached_property
    def train_set(self) -> ShardSet:
        """All training shards."""
        self.train_decoder.options.check_sources(len(self.train_sources))
        shards = [shard for source in self.train_sources for shard in source]
        return self._opened("data.train_shards", shards, list(map(len, self.train_sources)))

    @property
    def left_out(self) -> list[orders.BadSample]:
        """The pictures of training folders that cannot be used and are no samples."""
        return self._folders["train"].refused if self.train_set else []

    @cached_property
    def train_order(self) -> orders.Order:
        """Which training sample stands at each position."""
        options: dict[str, Any] = {"options": self.order, "buckets": self.buckets, "seed": self.seed}
        sources = list(map(len, self.train_sources))
        return orders.stream_order(self.train_set, sources, batch_size=self.batch_size, **options)

    @cached_property
    def latents(self) -> LatentsTag | None:
        """What the clean latents in the training shards are of, see `cache_latents`; None if there are none.

        Raises:
            ValueError: if they are not in all sources, or of images of another size.
        """
        sources, bucketed = list(map(len, self.train_sources)), self.buckets is not None
        return find_tag(self.train_set, sources, self.train_decoder.image_size, bucketed=bucketed)

    def paint_by_graphs(self) -> bool:
        """See `DescribedData`; a generator of another package may wait for the GPU, which no graph can."""
        if self.masks.cuda_graphs is None and self.mask_generator is not None and is_ours(self.mask_generator):
            self.mask_generator = graph_masks(self.mask_generator)
        return self.mask_generator is not None and has_graphs(self.mask_generator)

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
        return {"data.order.bucket_step": self.buckets.shapes, "data.image_size": [size] if validates else []}

    @cached_property
    def val_set(self) -> ShardSet:
        """The validation shards, indexed at first use.

        Raises:
            ValueError: if there are none.
        """
        if self.val_shards is None:
            raise ValueError("data.val_shards: expected shards to evaluate on, got null")
        return self._opened("data.val_shards", find_shards(self.val_shards, self.cache, self._folders["val"]))

    def _opened(self, name: str, shards: list[Shard], sources: list[int] | None = None) -> ShardSet:
        """Shards to read from; says how many members of their tars are left aside."""
        if line := aside_line(shards, name):
            rank_zero_info(line)
        return ShardSet(shards, self.cache, sources)

    def setup(self, stage: str) -> None:
        """Without validation shards, train without validation. Make the plan, with which a checkpoint is compared."""
        if stage == "fit" and self.trainer is not None:
            self.trainer.limit_val_batches = self.trainer.limit_val_batches if self.val_shards is not None else 0
            self.plan()

    def _stream(self, shards: ShardSet, order: orders.Order, **options: Any) -> orders.SampleStream:
        """This rank's part of the stream."""
        share = self.masks.removal_share
        removals = orders.RemovalMasks(order, seed=self.seed, probability=share) if share else None
        rank, world = self.rank_and_world()
        return orders.SampleStream(shards, order, rank=rank, world=world, removals=removals, **options)

    def train_dataloader(self) -> orders.StreamLoader:
        """An endless loader that starts at the stream's position."""
        if self.trainer is not None:
            check_trainer(self.trainer)
            memory = memory_of(self.trainer.strategy.root_device)
            check_batch(self.batch_size, sum(self.train_set.counts), self.train_decoder.image_size, memory)
            self._inverted_masks.begin(self.train_set, self.train_decoder.masks.file_share)
            self._folders["train"].begin(run_folder(self.trainer), self.rank_and_world()[0])
        self._expect_pairs(self.train_decoder, self.train_set)
        self.begin()
        loader = orders.StreamLoader(
            self._stream(self.train_set, self.train_order, batch_size=self.batch_size),
            self.train_decoder if self.latents is None else self.train_decoder.for_cache(self.latents),
            num_workers=self.num_workers,
            position=self.next_position,
            seed=self.seed,
            folder=self._run_folder(),
            max_bad_share=self.loading.max_bad_share,
            stall_timeout=self.loading.stall_timeout,
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
        options: dict[str, Any] = {"num_workers": self.num_workers, "stall_timeout": self.loading.stall_timeout}
        loader = orders.EvaluationLoader(stream, self.val_decoder, steps=steps, folder=self._run_folder(), **options)
        self._loaders["val"] = loader
        return loader

    def test_dataloader(self) -> orders.EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> orders.EvaluationLoader:
        """As validation."""
        return self.val_dataloader()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `StreamDataModule`; names the files of a folder of pictures that have changed since."""
        trainer, folders = self.trainer, self._folders["train"]
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and self.plan() and folders.states:
            folders.name_changes(run_folder(trainer))
        super().load_state_dict(state_dict)

    def on_exception(self, exception: BaseException) -> None:
        """Keep the position; if a worker has died, add to the error which sample it was decoding."""
        super().on_exception(exception)
        for loader in self._loaders.values():
            loader.explain(exception)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note the time, for `Throughput`. Look at the first masks from the data: mostly white ones get a warning."""
        self.batch_arrived = time.perf_counter()
        if "mask" in batch:
            self._inverted_masks(batch)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Paint the masks, on the device that the batch is on; a curriculum is at its end in evaluation.

        Then, where it is asked for, `padding_mask_crop`.
        """
        if self.mask_generator is None:
            return batch
        step = None  # in a loop without a trainer, the one that its author has set
        if self.trainer is not None:
            step = self.global_step() if self.trainer.training else LAST_STEP
        masked = add_masks(batch, self.mask_generator, self.seed, step)
        padding = self.masks.padding_mask_crop
        return masked if padding is None else padding_mask_crop(masked, padding)

    def plan(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample; other masks get a warning alone."""
        return dict(self._plan)

    @cached_property
    def _plan(self) -> dict[str, Any]:
        masks = self.mask_generator.fingerprint(*self.train_decoder.image_size) if self.mask_generator else None
        return {
            "plan_version": orders.PLAN_VERSION,
            "seed": self.seed,
            "window": self.order.window,
            "dataset_fingerprint": self.train_set.fingerprint,
            "masks_sha256": masks,
            **self.train_order.plan(),
        }
