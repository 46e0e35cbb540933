"""Batches: samples side by side, and a mask for each of them, painted on the device."""

from __future__ import annotations

from typing import Any

import torch

from inpaint_module.batch import Batch
from inpaint_module.masks import MaskGenerator
from inpaint_module.randomness import Stream, key


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples -> one batch.

    `has_mask` is there if some samples have own masks and others do not; `notes` if something was noted of a sample
    ("bad", "substituted" and what else the decoder tells).
    """
    batch: Batch = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "position": torch.tensor([sample["position"] for sample in samples]),
        "caption": [sample["caption"] for sample in samples],
        "__key__": [sample["__key__"] for sample in samples],
    }
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
    if "latents" in samples[0]:
        batch["latents"] = torch.stack([sample["latents"] for sample in samples])
    if "original_size" in samples[0]:
        batch["original_size"] = torch.tensor([sample["original_size"] for sample in samples])
        batch["crop"] = torch.tensor([sample["crop"] for sample in samples])
        batch["target_size"] = torch.tensor([sample["image"].shape[-2:] for sample in samples])
    has_mask = torch.tensor(["mask" in sample for sample in samples])
    if has_mask.any():
        empty = torch.zeros(1, *batch["image"].shape[-2:], dtype=torch.bool)
        batch["mask"] = torch.stack([sample.get("mask", empty) for sample in samples])
        if not has_mask.all():
            batch["has_mask"] = has_mask
    notes: dict[str, list[str]] = {}
    for kind, text in (note for sample in samples for note in sample.get("notes", ())):
        notes.setdefault(kind, []).append(text)
    if notes:
        batch["notes"] = notes
    return batch


def add_masks(batch: Batch, mask_generator: MaskGenerator, seed: int) -> Batch:
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
    masked: Batch = {**batch, "mask": mask}
    masked.pop("has_mask", None)
    return masked
