"""The whole training set, each sample once, on one page: sizes, buckets, captions, masks, copies, bad files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.decode import MaskRequest, SampleDecoder, image_bytes, open_upright, to_rgb, upright
from datamodules.order import Buckets
from datamodules.shards.shard_set import RawSample, ShardSet
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.files import redact
from inpaint_module.report import pages
from inpaint_module.report.pages import fitted, masked_in_red

_SIDE = 144  # pixels of a picture on the page
_STEP, _MOST_ASPECT = 64, 2.0  # of the buckets of a set whose config has none
_BANDS = 5  # of a hash; two that differ in fewer bits have one in common
NEAR = _BANDS - 1  # bits of 64 in which near-duplicates differ at most
_WHITE = 128  # of 255: from here on a mask inpaints
_FLAT = 8  # of 255: a picture with less contrast has no hash worth comparing
_MOST_TAGS, _MOST_GROUPS, _MOST_BAD, _EXAMPLES = 20, 12, 50, 12


class SampleFacts(NamedTuple):
    """What is known of one sample.

    Attributes:
        key: of the sample.
        size: width and height of the upright image in pixels; (0, 0) if it cannot be read.
        caption: "" for none.
        coverage: masked share (0..1) of its own mask; None without one.
        hash: 64 bits that pictures which look alike share, see `dhash`; None for one without contrast.
        fault: why training cannot use it; "" if it can.
    """

    key: str
    size: tuple[int, int] = (0, 0)
    caption: str = ""
    coverage: float | None = None
    hash: int | None = None
    fault: str = ""


class WholeSet(NamedTuple):
    """What is known of a set.

    Attributes:
        facts: of each sample, in the order of the shards; at last pictures of a folder that make no sample.
        buckets: shapes of batches, as the config has them or as `order.bucket_step: 64` would.
        alike: groups of numbers of samples that look alike.
        pictures: of the samples on a page, by number: small, with the mask in red, if there is one.
    """

    facts: list[SampleFacts]
    buckets: Buckets
    alike: list[list[int]]
    pictures: dict[int, Image.Image]

    @property
    def bad(self) -> list[SampleFacts]:
        """Those that training cannot use."""
        return [each for each in self.facts if each.fault]


def dhash(picture: Image.Image) -> int | None:
    """64 bits, one for each of 8 x 8 pixels: is it darker than its right neighbour? None without contrast.

    Source: N. Krawetz, "Kind of Like That", 2013.
    """
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if int(grey.max()) - int(grey.min()) < _FLAT:
        return None
    return int("".join("01"[int(bit)] for bit in (grey[:, :-1] < grey[:, 1:]).flatten()), 2)


def groups_alike(hashes: Sequence[int | None]) -> list[list[int]]:
    """Numbers of hashes that differ in at most `NEAR` bits, directly or by way of others, in groups of two or more."""
    parent = list(range(len(hashes)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    same: dict[int, int] = {}
    for number, value in enumerate(hashes):
        if value is not None:
            parent[number] = same.setdefault(value, number)  # equal ones need no comparison
    for band in range(_BANDS):
        shared = defaultdict(list)
        for value in same:
            shared[value >> (13 * band) & 0x1FFF].append(value)
        for values in shared.values():
            for one, other in combinations(values, 2):
                if (one ^ other).bit_count() <= NEAR:
                    parent[root(same[one])] = root(same[other])
    found = defaultdict(list)
    for number, value in enumerate(hashes):
        if value is not None:
            found[root(number)].append(number)
    return sorted((group for group in found.values() if len(group) > 1), key=len, reverse=True)


class _Looker(Dataset[SampleFacts]):
    """Reads each sample as training does."""

    def __init__(self, shards: ShardSet, decoder: SampleDecoder) -> None:
        self.shards, self.decoder, self.sources = shards, decoder, decoder.masks.sources

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> SampleFacts:
        raw = self.shards.read(number)._replace(position=number)
        try:
            sample = self.decoder(raw)
        except ValueError as error:
            return SampleFacts(raw.key, fault=redact(str(error)))
        return self._look(raw, sample["caption"])

    def _seen(self, raw: RawSample) -> tuple[tuple[int, int], Image.Image, Image.Image | None]:
        """Upright size, small picture and whole mask of a sample that training can use."""
        most = self.decoder.options.max_pixels
        image, _, turn, size = open_upright(image_bytes(raw.fields), most)
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
        request = MaskRequest(raw.fields, size, max_pixels=most, turn=turn)
        masks = (mask for source in self.sources if (mask := source(request)) is not None)
        return size, fitted(to_rgb(upright(image)), _SIDE), next(masks, None)

    def _look(self, raw: RawSample, caption: str) -> SampleFacts:
        size, picture, mask = self._seen(raw)
        coverage = None if mask is None else float((np.asarray(mask) >= _WHITE).mean())
        return SampleFacts(raw.key, size, caption, coverage, dhash(picture))

    def picture(self, number: int) -> Image.Image:
        """A sample's picture for the page."""
        _, picture, mask = self._seen(self.shards.read(number))
        if mask is None:
            return picture
        small = np.asarray(mask.resize(picture.size, Image.Resampling.BOX)) >= _WHITE
        return masked_in_red(picture, torch.from_numpy(small))


def look_at_all(data: WebDatasetDataModule, *, progress: bool = False) -> WholeSet:
    """Read the training set of a data module, each sample once.

    Args:
        data: whose decoder, mask sources, buckets and workers are used.
        progress: show a bar.
    """
    decoder = data.val_decoder if data.latents is None else data.val_decoder.for_cache(data.latents)
    looker = _Looker(data.train_set, decoder)
    loader = DataLoader(looker, batch_size=None, num_workers=data.num_workers, collate_fn=None)
    facts = list(tqdm(loader, total=len(looker), unit="sample", disable=not progress))
    good = [number for number, each in enumerate(facts) if not each.fault]
    alike = groups_alike([each.hash for each in facts])
    spread = good[:: max(1, len(good) // _EXAMPLES)][:_EXAMPLES]
    chosen = {*spread, *(number for group in alike[:_MOST_GROUPS] for number in group[:_EXAMPLES])}
    facts += [SampleFacts(bad.key, fault=redact(bad.reason)) for bad in data.left_out]
    buckets = data.buckets or Buckets(data.train_decoder.image_size, step=_step(data), max_aspect=_MOST_ASPECT)
    return WholeSet(facts, buckets, alike, {number: looker.picture(number) for number in sorted(chosen)})


def _step(data: WebDatasetDataModule) -> int:
    return min(_STEP, *data.train_decoder.image_size)


def summary(found: WholeSet) -> dict[str, str]:
    """The set in words, by what they are about."""
    good = [each for each in found.facts if not each.fault]
    sides = [min(each.size) for each in good]
    aspects = [each.size[0] / each.size[1] for each in good]
    covered = [each.coverage for each in good if each.coverage is not None]
    captions = [each.caption for each in good if each.caption.strip()]
    repeats = Counter(captions).most_common(1)
    copies = sum(len(group) - 1 for group in found.alike)
    words = {"samples": f"{len(found.facts)}, of which {len(found.bad)} cannot be used"}
    if good:
        words["sizes"] = f"shorter side {min(sides)} to {max(sides)} pixels, half of them under {median(sides):.0f}"
        words["aspects"] = f"width / height {min(aspects):.2f} to {max(aspects):.2f}, half under {median(aspects):.2f}"
    words["captions"] = f"{len(captions)} of {len(good)}" + (
        f", half of them under {median(map(len, captions)):.0f} characters, at most {max(map(len, captions))}"
        + (f"; {repeats[0][1]} say {repeats[0][0][:40]!r}" if repeats[0][1] > 1 else "")
        if captions
        else ""
    )
    empty, full = sum(share == 0 for share in covered), sum(share == 1 for share in covered)
    words["masks"] = f"{len(covered)} of {len(good)}" + (
        f", {sum(covered) / len(covered):.1%} masked on average; {empty} empty, {full} full" if covered else ""
    )
    words["near-duplicates"] = f"{copies} samples that look like another, {len(found.alike)} groups of such"
    return words


def _counts(found: WholeSet) -> dict[str, list[tuple[str, int]]]:
    """Titles of the page's tables, and the rows of each."""
    good = [each for each in found.facts if not each.fault]
    places = found.buckets.nearest(torch.tensor([each.size[0] / each.size[1] for each in good]))
    shapes = Counter(places.tolist())
    tags = Counter(tag.strip() for each in good for tag in each.caption.split(",") if tag.strip())
    shares = Counter(min(int(each.coverage * 10), 9) for each in good if each.coverage is not None)
    sides = Counter(min(each.size).bit_length() - 1 for each in good)
    step = found.buckets.step
    return {
        "Shorter side": [(f"{2**power} to {2 ** (power + 1) - 1} pixels", sides[power]) for power in sorted(sides)],
        f"Buckets with order.bucket_step: {step}": [
            (f"{height} x {width}", shapes[number]) for number, (height, width) in enumerate(found.buckets.shapes)
        ],
        "Commonest captions and tags, between commas": tags.most_common(_MOST_TAGS),
        "Masked share": [(f"{10 * tenth} to {10 * (tenth + 1)} %", shares[tenth]) for tenth in sorted(shares)],
    }


def page(found: WholeSet, title: str, maker: str) -> str:
    """One HTML page of it.

    Args:
        found: of `look_at_all`.
        title: what was looked at.
        maker: the command, for `files.check_replaceable`.
    """
    groups = [group[:_EXAMPLES] for group in found.alike[:_MOST_GROUPS]]
    spread = list(found.pictures)[:: max(1, len(found.pictures) // _EXAMPLES)][:_EXAMPLES]
    galleries = {"Some of the samples": [spread] * bool(spread), "Look alike": groups}
    counts = {name: rows for name, rows in _counts(found).items() if rows}
    most = {name: max(1, *(count for _, count in rows)) for name, rows in counts.items()}
    return pages.render(
        "whole_set.html",
        title=title,
        maker=maker,
        words=summary(found),
        tables={name: [(*row, row[1] / most[name]) for row in rows] for name, rows in counts.items()},
        galleries={name: [_figures(found, each) for each in groups] for name, groups in galleries.items() if groups},
        bad=[(each.key, each.fault) for each in found.bad[:_MOST_BAD]],
        unshown=max(0, len(found.bad) - _MOST_BAD),
    )


def _figures(found: WholeSet, numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "key": found.facts[number].key,
            "url": pages.picture_url(found.pictures[number]),
            "size": found.facts[number].size,
        }
        for number in numbers
    ]
