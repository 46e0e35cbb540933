"""What a batch holds, and what a data module says of its batches before the first: the contracts between data and
training, which import them from here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Required, TypedDict

import torch
from torch import Tensor

SIZE_FIELDS = ("original_size", "crop", "target_size")


class Batch(TypedDict, total=False):
    """B samples side by side. A plain dict with these keys.

    Attributes:
        image: uint8 (B, 3, H, W).
        mask: bool (B, 1, H, W), true = inpaint.
        position: int64 (B,), places in the stream, of which all random numbers are functions; -1 for a sample that only
            fills up the last batch of an evaluation.
        caption: B texts.
        __key__: the samples' names.
        label: int64 (B,), class numbers, if they are asked for.
        loss_weight: float32 (B,), how much the loss of each sample counts, where sources differ in that; in training.
        target: uint8 (B, 3, H, W), what the images should become inside and outside of their holes, where the set has
            pairs; those of samples without are their images.
        has_target: bool (B,), in a batch of which some samples have a target and others do not.
        latents: (B, C, h, w) of the whole images, or of their targets, unscaled, from a latent cache.
        original_size: int64 (B, 2), rows and columns of the upright photo before anything was done to it; this and the
            next two in training alone, together.
        crop: int64 (B, 2), rows above and columns left of `image` in the photo, once it is resized to the scale of
            `image` and, if `image` is mirrored, mirrored; what further `transforms` move does not count.
        target_size: int64 (B, 2), H and W.
        has_mask: bool (B,), in a batch without all its masks: whose `mask` is there already.
        reference: (B, 3, H, W), uint8 or float in 0..1, what an edit model is shown beside the images, if that is a
            picture of its own, or if text encoders see it; those of samples without are their images.
        has_reference: bool (B,), in a batch of which some samples have a reference and others do not.
        notes: what is worth counting: kind -> a text for each time.
    """

    image: Required[Tensor]
    mask: Tensor
    position: Required[Tensor]
    caption: list[str]
    __key__: list[str]
    label: Tensor
    loss_weight: Tensor
    target: Tensor
    has_target: Tensor
    latents: Tensor
    original_size: Tensor
    crop: Tensor
    target_size: Tensor
    has_mask: Tensor
    reference: Tensor
    has_reference: Tensor
    notes: dict[str, list[str]]


def without_sizes(batch: Batch) -> Batch:
    """The batch as a pipeline sees its images: whole pictures of their own size, not parts of larger ones."""
    return {name: value for name, value in batch.items() if name not in SIZE_FIELDS}  # type: ignore[return-value]


def rescaled_sizes(batch: Batch, start: Tensor, scale: Tensor, size: tuple[int, int]) -> Batch:
    """The batch with its sizes after a part of each image was cut out and enlarged; as it is if it says no sizes.

    Args:
        batch: with `original_size`, `crop` and `target_size`, or without.
        start: (B, 2) or (2,), rows above and columns left of the part in the image.
        scale: float, likewise; how many times larger the part has become.
        size: (H, W) that it has now.
    """
    if "crop" not in batch:
        return batch
    target = torch.stack([torch.full_like(batch["crop"][:, 0], side) for side in size], 1)
    return {**batch, "crop": ((batch["crop"] + start) * scale).round().long(), "target_size": target}


class LatentsTag(NamedTuple):
    """What cached latents are of; the latents themselves are unscaled, and the mode of their posterior.

    Attributes:
        vae_sha256: of the weights of the VAE that made them, in hex.
        image_size: (H, W) pixels of their image.
        shape: (C, h, w).
        dtype: in which they are kept, such as "float32".
        has_sizes: whether each sample has the `original_size` and `crop` of its image.
        target: whether they are of the target, not of the image; of a set, whether those of some samples are.
    """

    vae_sha256: str
    image_size: tuple[int, int]
    shape: tuple[int, ...]
    dtype: str
    has_sizes: bool = False
    target: bool = False

    def __str__(self) -> str:
        height, width = self.image_size
        sizes = ", with original sizes and crops" if self.has_sizes else ""
        of = " of targets" if self.target else ""
        return f"{self.dtype} {self.shape}{of} of {height} x {width} pixels by VAE {self.vae_sha256[:16]}...{sizes}"


class DescribedData(ABC):
    """A data module that says before the first step what its batches will be, so that a model can refuse them then.

    Attributes:
        batch_arrived: when the loader handed over the newest batch, by `time.perf_counter`; None for unknown.
    """

    batch_arrived: float | None = None

    @abstractmethod
    def image_sizes(self, stage: str) -> dict[str, list[tuple[int, int]]]:
        """(H, W) of all images that a stage (fit, validate, test, predict) has, by the argument that sets them."""

    def paint_by_graphs(self) -> bool:
        """Paint the same masks by CUDA graphs, if that is safe and nobody has said otherwise; whether they are now."""
        return False

    @property
    @abstractmethod
    def has_masks(self) -> bool:
        """Whether every batch has masks."""

    @property
    @abstractmethod
    def latents(self) -> LatentsTag | None:
        """What the clean latents in the training batches are of; None if there are none."""


def of_all_samples(batch: Batch, name: str, option: str) -> Tensor:
    """The pictures of this name, which every sample must have.

    Args:
        batch: one that may have them for some of its samples.
        name: target or reference.
        option: of `base.reference`, which needs them.

    Raises:
        ValueError: naming a sample without one.
    """
    known: Any = batch
    has = known[f"has_{name}"].tolist() if f"has_{name}" in known else [name in known] * len(known["image"])
    if not all(has):
        raise ValueError(
            f"base.reference: expected samples that all have a {name} with {option}, got some without, such as "
            f"{known['__key__'][has.index(False)]!r}: add NAME.{name}.png, or take masked"
        )
    return known[name]
