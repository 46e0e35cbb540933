"""Batches: samples side by side, and a mask for each of them, painted on the device."""

from __future__ import annotations

from typing import Any

import torch

from inpaint_module.masks import MaskGenerator
from inpaint_module.randomness import Stream, key


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> one batch, with two fields that most batches lack.

    `has_mask` bool (B,) is there if some samples have own masks and others do not; `notes`, kind -> texts, if something
    was noted of a sample ("bad", "substituted" and what else the decoder tells).
    """
    batch: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "position": torch.tensor([sample["position"] for sample in samples]),
        "caption": [sample["caption"] for sample in samples],
        "__key__": [sample["__key__"] for sample in samples],
    }
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
    if "latents" in samples[0]:
        batch["latents"] = torch.stack([sample["latents"] for sample in samples])
    has_mask = torch.tensor(["mask" in sample for sample in samples])
    if has_mask.any():
        empty = torch.zeros(1, *batch["image"].shape[-2:], dtype=torch.bool)
        batch["mask"] = torch.stack([sample.get("mask", empty) for sample in samples])
        if not has_mask.all():
            batch["has_mask"] = has_mask
    notes: dict[str, list[str]] = {}
    for kind, text in (note for sample in samples for note in sample.get("notes", ())):
        notes.setdefault(kind, []).append(text)
    return {**batch, "notes": notes} if notes else batch


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
