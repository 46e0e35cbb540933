"""Own masks: which mask from the data a sample gets, as a function of (seed, position)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from datamodules.images.crops import Crop
from datamodules.images.draws import position_draws
from datamodules.images.reading import Turn, crop_mask, open_image, read_turn, upright_size
from datamodules.own_masks.mask_sources import FileMask, MaskRequest, MaskSource, image_bytes
from datamodules.shards.shard_set import RawSample
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

    def own(self, raw: RawSample, crop: Crop, size: Size, frame: Size, turn: Turn) -> Tensor | None:
        """The sample's own mask at `size` (H, W), bool (1, H, W), as often as it is wanted.

        Args:
            raw: the sample.
            crop: of its image, in pixels of the frame.
            size: the target, (H, W) pixels.
            frame: width and height of the upright image.
            turn: what its EXIF says.
        """
        use, draw = position_draws(self.seed, raw.position, Stream.OWN_MASK, 2)
        own = self._find(raw, crop, size, frame, turn, draw) if use < self.probability else None
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
