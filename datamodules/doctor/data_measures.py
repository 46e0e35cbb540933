"""Measures of what the data brought, and in time: pixels, masks, captions, and the files behind them."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.decode.mask_files import why_look
from datamodules.decode.mask_sources import FileMask, MaskRequest, MaskSource
from datamodules.decode.reading import image_bytes, open_upright
from datamodules.shards.shard_set import Contents, RawSample, ShardSet, look_into
from datamodules.shards.tar_index import MASK_FIELDS
from inpaint_module.batch import Batch
from inpaint_module.pixels import to_unit_float

T = TypeVar("T")
_FLAT = 8 / 255  # a picture whose values differ by less is blank
_DARK = 16 / 255
_GREY = slice(5, 251)  # neither black nor white
_MAX_PIXELS = 50_000_000
_SOFT = 0.1  # a larger share of grey is meant so


class Pixels(NamedTuple):
    """Of images: dtype, range and mean of each channel in their own units; keys of blank ones, and which are black."""

    dtype: str
    low: float
    high: float
    means: list[float]
    constant: list[str]
    black: list[bool]
    total: int


class Masks(NamedTuple):
    """Of masks: masked share of each and of its border, float (N,) in 0..1, and whether it is from the data."""

    keys: list[str]
    coverage: Tensor
    border: Tensor
    own: Tensor


class Captions(NamedTuple):
    """Of captions: how many, empty, and equal to the commonest `text`; characters; whether the model reads them."""

    total: int
    empty: int
    commonest: int
    text: str
    median: float
    longest: int
    used: bool


class StoredSamples(NamedTuple):
    """Of undecoded samples: groups of keys with the same file, keys of lossy and of soft masks, decoding images/s."""

    total: int
    duplicates: list[list[str]]
    jpeg_masks: list[str]
    jpeg_grey: float
    soft_masks: list[str]
    per_second: float


class Sizes(NamedTuple):
    """(H, W) of the images; along a side, pixels per latent, latents per pixel of the denoiser's coarsest features."""

    seen: list[tuple[int, int]]
    ratio: int
    factor: int


def measure_pixels(batches: Sequence[Batch]) -> Pixels:
    """Look at `image` (B, C, H, W) of each batch, of any dtype."""
    images = [batch["image"].detach().cpu() for batch in batches]
    span = 255 if images[0].dtype == torch.uint8 else 1
    flat = [image.flatten(1) for image in images]
    low, high = (torch.cat([getattr(image, name)(1) for image in flat]).double() for name in ("amin", "amax"))
    blank = ((high - low) < _FLAT * span).tolist()
    keys = [key for batch in batches for key in batch["__key__"]]
    means = torch.cat([image.float().mean((2, 3)) for image in images]).mean(0).tolist()
    constant = [key for key, hit in zip(keys, blank, strict=True) if hit]
    dark = [value < _DARK * span for value, hit in zip(high.tolist(), blank, strict=True) if hit]
    dtype = str(images[0].dtype).removeprefix("torch.")
    return Pixels(dtype, low.min().item(), high.max().item(), means, constant, dark, len(keys))


def measure_masks(batches: Sequence[Batch], own: Sequence[Tensor]) -> Masks:
    """Look at `mask` (B, 1, H, W) of each batch; `own`, bool (B,), says of each which are from the data."""
    masks = [batch["mask"].detach().cpu() > 0.5 for batch in batches]
    coverage = torch.cat([mask.flatten(1).float().mean(1) for mask in masks])
    border = torch.cat([_border(mask[:, 0]).float().mean(1) for mask in masks])
    return Masks([key for batch in batches for key in batch["__key__"]], coverage, border, torch.cat(list(own)))


def _border(masks: Tensor) -> Tensor:
    """The outermost pixels of (B, H, W): (B, 2 H + 2 W)."""
    return torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], dim=1)


def masks_of_the_data(batch: Batch) -> Tensor:
    """Which masks of a batch that came from the loader are from the data, bool (B,)."""
    count = len(batch["image"])
    none = torch.zeros(count, dtype=torch.bool)
    return batch.get("has_mask", ~none) if "mask" in batch else none


def measure_captions(batches: Sequence[Batch], used: bool) -> Captions:
    """Look at `caption` of each batch; none are there if the key is missing."""
    texts = [text for batch in batches for text in batch.get("caption", [""] * len(batch["image"]))]
    (common, count), lengths = Counter(texts).most_common(1)[0], [len(text) for text in texts]
    empty = sum(not text.strip() for text in texts)
    return Captions(len(texts), empty, count if common.strip() else 0, common, median(lengths), max(lengths), used)


def measure_stored(samples: Sequence[RawSample], decode: Callable[[RawSample], Any]) -> StoredSamples:
    """Look at samples as they are in the shards; the loader names those that cannot be decoded."""
    names: dict[bytes, list[tuple[str, str]]] = {}
    grey: dict[str, float] = {}
    jpeg = []
    for raw in samples:
        group = names.setdefault(hashlib.sha256(image_bytes(raw.fields)).digest(), [])
        if (raw.shard, raw.key) not in group:  # a small set comes round again
            group.append((raw.shard, raw.key))
        field = next((name for name in MASK_FIELDS if name in raw.fields), None)
        if field is not None:
            grey[raw.key] = _grey_share(raw)
            jpeg += [raw.key] * (field in ("mask.jpg", "mask.jpeg"))
    soft = [key for key, share in grey.items() if share > _SOFT and key not in jpeg]
    mean_grey = sum(grey[key] for key in jpeg) / max(len(jpeg), 1)
    copies = [[key for _, key in group] for group in names.values() if len(group) > 1]
    return StoredSamples(len(samples), copies, jpeg, mean_grey, soft, _decoded_per_second(samples, decode))


def measure_contents(shards: ShardSet, samples: Sequence[RawSample], sources: Sequence[MaskSource]) -> Contents:
    """The account of a set; empty, full and inverted masks are counted among the samples that were read."""
    contents, seen = look_into(shards), set()
    files = [source for source in sources if isinstance(source, FileMask)]
    for raw in samples:
        if files and (raw.shard, raw.key) not in seen and (mask := _grey_mask(raw, files[0])) is not None:
            for kind in filter(None, [why_look(np.asarray(mask) >= 128)]):
                contents.account.note(kind, raw.key)
        seen.add((raw.shard, raw.key))
    return contents


def _grey_mask(raw: RawSample, source: FileMask) -> Image.Image | None:
    """The mask of a sample's file, upright; None if there is none that can be read: the loader names it."""
    try:
        opened = open_upright(image_bytes(raw.fields), _MAX_PIXELS)
        return source(MaskRequest(raw.fields, opened.size, max_pixels=_MAX_PIXELS, turn=opened.turn))
    except Exception:  # Pillow raises many kinds on damaged files
        return None


def _grey_share(raw: RawSample) -> float:
    """Share of a mask's pixels that are neither black nor white, read as in training; 0 if it cannot be read."""
    grey = _grey_mask(raw, FileMask())
    counts = grey.histogram() if grey is not None else [1]
    return sum(counts[_GREY]) / sum(counts)


def _decoded_per_second(samples: Sequence[RawSample], decode: Callable[[RawSample], Any]) -> float:
    begin, done = time.perf_counter(), 0
    for raw in samples:
        try:
            decode(raw)
        except ValueError:
            continue
        done += 1
    return done / (time.perf_counter() - begin) if done else 0.0


class Pairs(NamedTuple):
    """Of pairs, a row each: mean distance of image and target over pixels and channels, 0..255, outside and inside of
    the mask (NaN where there is no such pixel), and whether the mask is from the data. `total` counts all samples."""

    keys: list[str]
    outside: Tensor
    inside: Tensor
    own: Tensor
    total: int


def measure_pairs(batches: Sequence[Batch], own: Sequence[Tensor]) -> Pairs | None:
    """Look at `image`, `target` and `mask` of each batch; None if there are no pairs.

    Args:
        batches: with their masks.
        own: of each, bool (B,): which masks are from the data.
    """
    rows: list[tuple[str, float, float, bool]] = []
    for batch, from_data in zip(batches, own, strict=True):
        if "target" not in batch:
            continue
        apart = (to_unit_float(batch["image"][:, :3]) - to_unit_float(batch["target"])).abs().mean(1) * 255
        hole = batch["mask"][:, 0] > 0.5
        paired = batch.get("has_target", torch.ones(len(hole), dtype=torch.bool)).tolist()
        for number, key in enumerate(batch["__key__"]):
            if paired[number]:
                parts = (apart[number][~hole[number]].mean().item(), apart[number][hole[number]].mean().item())
                rows.append((key, *parts, bool(from_data[number])))
    if not rows:
        return None
    keys, outside, inside, masked = zip(*rows, strict=True)
    total = sum(len(batch["image"]) for batch in batches)
    return Pairs(list(keys), torch.tensor(outside), torch.tensor(inside), torch.tensor(masked), total)


def describe_pairs(pairs: Pairs) -> str:
    """The figures in a line."""
    worst = pairs.outside.nan_to_num(0).max()
    return (
        f"{len(pairs.keys)} of {pairs.total} samples; image and target differ outside of the mask by "
        f"{pairs.outside.nanmean():.1f} of 255 on average, {worst:.1f} at most, inside by {pairs.inside.nanmean():.1f}"
    )


class StalledError(TimeoutError):
    """Nothing came in time."""


class _Item(NamedTuple):
    value: Any = None
    seconds: float = 0.0
    error: BaseException | None = None
    last: bool = False


def items_in_time(source: Callable[[], Iterable[T]], timeout: float) -> Iterator[tuple[T, float]]:
    """What `source()` yields, each with the seconds it took, read on a thread that is left behind if it stalls.

    Raises:
        StalledError: after `timeout` seconds without an item.
        Exception: of the source.
    """
    items: queue.Queue[_Item] = queue.Queue()

    def read() -> None:
        try:
            begin = time.perf_counter()
            for value in source():
                items.put(_Item(value, time.perf_counter() - begin))
                begin = time.perf_counter()
            items.put(_Item(last=True))
        except Exception as error:
            items.put(_Item(error=error))

    threading.Thread(target=read, name="timed reader", daemon=True).start()
    while True:
        try:
            item = items.get(timeout=timeout)
        except queue.Empty:
            raise StalledError(f"nothing came for {timeout:g} s") from None
        if item.error is not None:
            raise item.error
        if item.last:
            return
        yield item.value, item.seconds
