"""Pairs: whether image and target lie on each other, and differ where the mask says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.doctor.findings import WARNING, Finding, named
from inpaint_module.batch import Batch
from inpaint_module.pixels import to_unit_float

_APART = 5.0  # of 255: what a second JPEG compression does stays below, a shift by a pixel mostly above
_SAME = 0.5


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


def told(pairs: Pairs) -> str:
    """The figures in a line."""
    worst = pairs.outside.nan_to_num(0).max()
    return (
        f"{len(pairs.keys)} of {pairs.total} samples; image and target differ outside of the mask by "
        f"{pairs.outside.nanmean():.1f} of 255 on average, {worst:.1f} at most, inside by {pairs.inside.nanmean():.1f}"
    )


def check_pairs(pairs: Pairs) -> list[Finding]:
    """What lies outside of the mask is the same in both, and what is inside is not."""
    found = []
    questions = (
        ("misaligned pairs", pairs.own & (pairs.outside > _APART), "outside of the mask", pairs.outside),
        (
            "pairs without their mask",
            ~pairs.own & (pairs.outside > _APART),
            "outside of the painted mask",
            pairs.outside,
        ),
        ("pairs with nothing to change", pairs.own & (pairs.inside < _SAME), "inside of the mask", pairs.inside),
    )
    for title, hits, place, apart in questions:
        if hits.any():
            keys = [key for key, hit in zip(pairs.keys, hits.tolist(), strict=True) if hit]
            came = (
                f"{len(keys)} of {len(pairs.keys)} pairs differ {place} by {apart[hits].mean():.1f} of 255 on average"
            )
            expected, advice = _ADVICE[title]
            found.append(
                Finding(
                    WARNING, title, "target", expected, f"{came}: {named(keys)}", advice, tuple(dict.fromkeys(keys))
                )
            )
    return found


_ADVICE = {
    "misaligned pairs": (
        "image and target alike outside of the mask",
        "look whether the target is shifted, turned, of other colours, or the mask too small: the model learns it all",
    ),
    "pairs without their mask": (
        "a mask of what is to change, NAME.mask.png",
        "without it a random mask is painted, and the model learns to change what it is shown outside of it as well",
    ),
    "pairs with nothing to change": (
        "another picture inside of the mask",
        "look whether the target is a copy of the image, or the mask of another pair",
    ),
}
