"""Which mask from the data a sample gets, as a function of (seed, position); masks that are mostly white."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from datamodules.checks import check_at_least, check_share
from datamodules.decode.augmentations import Crop, position_draws
from datamodules.decode.mask_sources import FileMask, MaskRequest, MaskSource, image_bytes
from datamodules.decode.reading import OpenedImage, crop_mask, open_upright
from datamodules.shards.shard_set import Contents, RawSample, ShardSet, look_into
from inpaint_module.randomness import Stream

Size = tuple[int, int]
ChooseCrop = Callable[[Size, Size, Sequence[float]], Crop]


@dataclass(frozen=True)
class MaskOptions:
    """Where masks come from beside the mask generator, and how often.

    Args:
        sources: Where masks in the data are looked for, the first that finds one wins: datamodules.FileMask,
            AlphaMask, LabelMap, CocoMask or a subclass of MaskSource. Null for FileMask alone, [] for none.
        share: Share (0..1) of the samples with a mask in the data that get it; the others get a painted one.
        removal_share: Share (0..1) of the samples that get the mask of another sample's object, to learn removal. The
            other sample comes from the same window of shards; where it has no mask, the sample is as without.
        allow_empty: Use masks from the data even where the crop has left nothing of them; false paints one.
        padding_mask_crop: Cut every image, mask and all, to its hole and this many pixels around it, and enlarge it to
            image_size, as diffusers' pipelines do if called with this; null for no such crop. By Pillow, on the CPU.
        cuda_graphs: Paint by CUDA graphs, see `inpaint_module.masks.CudaGraphed`: the same masks, sooner on a GPU.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    sources: list[MaskSource] | None = None
    share: float = 1.0
    removal_share: float = 0.0
    allow_empty: bool = True
    padding_mask_crop: int | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        part = "data.masks"
        check_share(part, share=self.share, removal_share=self.removal_share)
        check_at_least(0, part, padding_mask_crop=self.padding_mask_crop or 0)

    def without_generator(self) -> MaskOptions:
        """For batches that have no masks: none are looked for.

        Raises:
            ValueError: naming the first setting of masks, of which there are none.
        """
        for name in ("sources", "removal_share", "padding_mask_crop", "cuda_graphs"):
            if value := getattr(self, name):
                raise ValueError(
                    f"data.masks.{name}: expected none without masks, got {value}: data.mask_generator is null, so "
                    "that batches have no masks; set a generator, such as inpaint_module.masks.preset"
                )
        return replace(self, sources=[])


class DataMasks:
    """Finds masks in the data; picklable, without state.

    Args:
        options: where they are looked for, and how often they are used.
        seed: seeds the choices.
        max_pixels: refuse masks with more pixels than this.
    """

    def __init__(self, options: MaskOptions, *, seed: int, max_pixels: int = 50_000_000) -> None:
        self.sources: list[MaskSource] = [FileMask()] if options.sources is None else list(options.sources)
        self.seed = seed
        self.share, self.allow_empty = options.share, options.allow_empty
        self.max_pixels = max_pixels

    @property
    def shows_hidden(self) -> bool:
        """Whether images must show the colours that their transparent pixels hide."""
        return any(source.shows_hidden for source in self.sources)

    def _find(self, raw: RawSample, crop: Crop, size: Size, opened: OpenedImage, draw: float) -> Tensor | None:
        """The mask of the first source that has one, through the crop; bool (1, H, W)."""
        request = MaskRequest(raw.fields, opened.size, draw, self.max_pixels, opened.turn, opened.image)
        for source in self.sources:
            if (mask := source(request)) is not None:
                return crop_mask(mask, crop, size, opened.size)
        return None

    def own(
        self, raw: RawSample, crop: Crop, size: Size, opened: OpenedImage, *, always: bool = False
    ) -> Tensor | None:
        """The sample's own mask at `size` (H, W), bool (1, H, W), as often as it is wanted.

        Args:
            raw: the sample.
            crop: of its image, in upright pixels.
            size: the target, (H, W) pixels.
            opened: its image.
            always: whatever the share.
        """
        use, draw = position_draws(self.seed, raw.position, Stream.OWN_MASK, 2)
        own = self._find(raw, crop, size, opened, draw) if always or use < self.share else None
        return own if own is not None and (self.allow_empty or own.any()) else None

    def of_other(self, other: RawSample, position: int, size: Size, choose_crop: ChooseCrop) -> Tensor | None:
        """Another sample's mask through a crop of its own at `size` (H, W); None if it has none there.

        Args:
            other: the sample whose mask it is.
            position: of the sample that gets it.
            size: the target, (H, W) pixels.
            choose_crop: frame (width, height), size, four draws -> crop.

        Raises:
            ValueError: naming that sample, if its mask cannot be used.
        """
        try:
            if other.fault:
                raise ValueError(other.fault)
            draws = position_draws(self.seed, position, Stream.REMOVAL_MASK, 5)
            opened = open_upright(image_bytes(other.fields), self.max_pixels)
            crop = choose_crop(opened.size, size, draws[:4])
            found = self._find(other, crop, size, opened, draws[4])
        except Exception as error:  # as in SampleDecoder
            raise ValueError(f"mask of {other.shard}: sample {other.key!r}: {error}") from error
        return found if found is not None and found.any() else None


EMPTY = "with an empty mask: nothing in it is white"
FULL = "with a full mask: all of it is white"
INVERTED = "with a mask that looks inverted: white is what is inpainted"
_ENOUGH = 64
_MOSTLY = 0.9
_MUCH, _EDGE = 0.6, 0.8  # shares of a mask and of its border


def look_inverted(coverages: Sequence[float]) -> bool:
    """Whether so large a share (0..1) of each mask is masked, on average, that 1 seems to mean keep."""
    return sum(coverages) > _MOSTLY * len(coverages)


def why_look(mask: np.ndarray) -> str | None:
    """What is odd about one mask, bool (H, W), as a kind of an account; None if nothing is."""
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if not mask.any():
        return EMPTY
    if mask.all():
        return FULL
    return INVERTED if mask.mean() > _MOSTLY or (mask.mean() > _MUCH and edges.mean() > _EDGE) else None


def how_often_line(contents: Contents, share: float) -> str | None:
    """What to tell of masks in the shards, which a mask generator is not asked for; None if there are none.

    Args:
        contents: of the training shards.
        share: how often (0..1) a mask of a sample's own is used.
    """
    masks, looked = contents.account.found["masks"], contents.account.taken
    if not masks or not share:
        return None
    of = f"{masks} of {looked}" if contents.whole else f"{masks} of {looked} looked at, of {contents.samples} in all"
    return (
        f"data: {masks / looked:.0%} of the training samples ({of}) have a mask of their own, which is used in place "
        f"of data.mask_generator's at {share:.0%} of their visits (data.masks.share: {share:g}); "
        "0 there leaves them out"
    )


class InvertedMasksWarning:
    """Looks at the first 64 masks from the data and warns once; to be called where batches arrive, on the CPU."""

    def __init__(self) -> None:
        self.coverages: list[float] = []
        self._begun = False

    def begin(self, shards: ShardSet, masks: DataMasks) -> None:
        """Say once, as training begins, which share of its samples brings a mask file."""
        if not self._begun and any(isinstance(source, FileMask) for source in masks.sources):
            from lightning.pytorch.utilities import rank_zero_info  # as below

            if told := how_often_line(look_into(shards), masks.share):
                rank_zero_info(told)
        self._begun = True

    def __call__(self, batch: dict[str, Any]) -> None:
        """Note the masks of a batch of `collate`, in which `has_mask` tells the painted from the own ones."""
        if "mask" not in batch or len(self.coverages) >= _ENOUGH:
            return
        own = batch["mask"][batch["has_mask"]] if "has_mask" in batch else batch["mask"]
        self.coverages += own.float().mean(dim=(1, 2, 3)).tolist()
        if len(self.coverages) >= _ENOUGH and look_inverted(self.coverages):
            from lightning.pytorch.utilities import rank_zero_warn  # seconds, which make_shards need not wait

            share = sum(self.coverages) / len(self.coverages)
            rank_zero_warn(
                f"the first {len(self.coverages)} masks from the shards are {share:.0%} white, up to sample "
                f"{batch['__key__'][-1]!r}; white is what is inpainted. If yours mark what to keep, set "
                "`inverted: true` of the source in data.masks.sources"
            )
