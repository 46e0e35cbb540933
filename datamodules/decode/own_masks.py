"""Which mask from the data a sample gets, as a function of (seed, position); masks that are mostly white."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from datamodules.decode.augmentations import Crop, position_draws
from datamodules.decode.mask_sources import FileMask, MaskRequest, MaskSource, image_bytes
from datamodules.decode.reading import Turn, crop_mask, open_image, read_turn, upright_size
from datamodules.shards.shard_set import Contents, RawSample, ShardSet, look_into
from inpaint_module.randomness import Stream

Size = tuple[int, int]
ChooseCrop = Callable[[Size, Size, Sequence[float]], Crop]


class OwnMasks:
    """Finds masks in the data; picklable, without state.

    Args:
        sources: where masks are looked for; the first that finds one wins; None for FileMask alone.
        seed: seeds the choices.
        probability: the share (0..1) of positions at which an own mask is used.
        allow_empty: use own masks without a masked pixel in the crop; else they count as none.
        max_pixels: refuse masks with more pixels than this.
    """

    def __init__(
        self,
        sources: Sequence[MaskSource] | None,
        *,
        seed: int,
        probability: float = 1.0,
        allow_empty: bool = True,
        max_pixels: int = 50_000_000,
    ) -> None:
        self.sources = [FileMask()] if sources is None else list(sources)
        self.seed = seed
        self.probability = probability
        self.allow_empty = allow_empty
        self.max_pixels = max_pixels

    @property
    def shows_hidden(self) -> bool:
        """Whether images must show the colours that their transparent pixels hide."""
        return any(source.shows_hidden for source in self.sources)

    def _find(self, raw: RawSample, crop: Crop, size: Size, frame: Size, turn: Turn, draw: float) -> Tensor | None:
        """The mask of the first source that has one, through the crop; bool (1, H, W)."""
        request = MaskRequest(raw.fields, frame, draw, self.max_pixels, turn)
        for source in self.sources:
            if (mask := source(request)) is not None:
                return crop_mask(mask, crop, size, frame)
        return None

    def own(
        self, raw: RawSample, crop: Crop, size: Size, frame: Size, turn: Turn, *, always: bool = False
    ) -> Tensor | None:
        """The sample's own mask at `size` (H, W), bool (1, H, W), as often as it is wanted.

        Args:
            raw: the sample.
            crop: of its image, in pixels of the frame.
            size: the target, (H, W) pixels.
            frame: width and height of the upright image.
            turn: what its EXIF says.
            always: whatever the probability.
        """
        use, draw = position_draws(self.seed, raw.position, Stream.OWN_MASK, 2)
        own = self._find(raw, crop, size, frame, turn, draw) if always or use < self.probability else None
        return own if own is not None and (self.allow_empty or own.any()) else None

    def donated(self, donor: RawSample, position: int, size: Size, choose_crop: ChooseCrop) -> Tensor | None:
        """The donor's mask through a crop of its own at `size` (H, W); None if it has none there.

        Args:
            donor: the sample that lends it.
            position: of the sample that gets it.
            size: the target, (H, W) pixels.
            choose_crop: frame (width, height), size, four draws -> crop.

        Raises:
            ValueError: naming the donor, if its mask cannot be used.
        """
        try:
            draws = position_draws(self.seed, position, Stream.DONOR_MASK, 5)
            image = open_image(image_bytes(donor.fields), self.max_pixels)
            frame = upright_size(image)
            crop = choose_crop(frame, size, draws[:4])
            found = self._find(donor, crop, size, frame, read_turn(image), draws[4])
        except Exception as error:  # as in SampleDecoder
            raise ValueError(f"mask of {donor.shard}: sample {donor.key!r}: {error}") from error
        return found if found is not None and found.any() else None


EMPTY = "with an empty mask: nothing in it is white"
FULL = "with a full mask: all of it is white"
INVERTED = "with a mask that looks inverted: white is what is inpainted"
_ENOUGH = 64
_MOSTLY = 0.9
_MUCH, _EDGE = 0.6, 0.8  # shares of a mask and of its border


def suspicious_polarity(coverages: Sequence[float]) -> bool:
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


def own_masks_told(contents: Contents, probability: float) -> str | None:
    """What to tell of masks in the shards, which a mask generator is not asked for; None if there are none.

    Args:
        contents: of the training shards.
        probability: how often (0..1) a mask of a sample's own is used.
    """
    masks, looked = contents.account.found["masks"], contents.account.taken
    if not masks or not probability:
        return None
    of = f"{masks} of {looked}" if contents.whole else f"{masks} of {looked} looked at, of {contents.samples} in all"
    return (
        f"data: {masks / looked:.0%} of the training samples ({of}) have a mask of their own, which is used in place "
        f"of data.mask_generator's at {probability:.0%} of their visits (data.own_mask_probability: {probability:g}); "
        "0 there leaves them out"
    )


class PolarityWatch:
    """Looks at the first 64 masks from the data and warns once; to be called where batches arrive, on the CPU."""

    def __init__(self) -> None:
        self.coverages: list[float] = []
        self._begun = False

    def begin(self, shards: ShardSet, masks: OwnMasks) -> None:
        """Say once, as training begins, which share of its samples brings a mask file."""
        if not self._begun and any(isinstance(source, FileMask) for source in masks.sources):
            from lightning.pytorch.utilities import rank_zero_info  # as below

            if told := own_masks_told(look_into(shards), masks.probability):
                rank_zero_info(told)
        self._begun = True

    def __call__(self, batch: dict[str, Any]) -> None:
        """Note the masks of a batch of `collate`, in which `has_mask` tells the painted from the own ones."""
        if "mask" not in batch or len(self.coverages) >= _ENOUGH:
            return
        own = batch["mask"][batch["has_mask"]] if "has_mask" in batch else batch["mask"]
        self.coverages += own.float().mean(dim=(1, 2, 3)).tolist()
        if len(self.coverages) >= _ENOUGH and suspicious_polarity(self.coverages):
            from lightning.pytorch.utilities import rank_zero_warn  # seconds, which make_shards need not wait

            share = sum(self.coverages) / len(self.coverages)
            rank_zero_warn(
                f"the first {len(self.coverages)} masks from the shards are {share:.0%} white, up to sample "
                f"{batch['__key__'][-1]!r}; white is what is inpainted. If yours mark what to keep, set "
                "`inverted: true` of the source in data.mask_sources"
            )
