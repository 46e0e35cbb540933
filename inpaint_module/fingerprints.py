"""Refuse frozen weights that are not those of the other ranks, or of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def check_ranks(name: str, digests: Sequence[Sequence[int]]) -> None:
    """Refuse ranks with different frozen models: no strategy broadcasts one that is outside the module tree.

    Args:
        name: what is frozen.
        digests: its fingerprint on each rank, as bytes.

    Raises:
        ValueError: they differ, naming the ranks.
    """
    others = [rank for rank, other in enumerate(digests) if list(other) != list(digests[0])]
    if others:
        raise ValueError(
            f"the {name}'s weights on rank {', '.join(map(str, others))} are not those on rank 0; load the same {name} "
            "in the same dtype on every rank"
        )


def check_saved(name: str, saved: str, here: str) -> None:
    """Refuse a checkpoint that was trained with another frozen model.

    Args:
        name: what is frozen.
        saved: the checkpoint's fingerprint, in hex.
        here: that of this run.

    Raises:
        ValueError: they differ.
    """
    if saved != here:
        raise ValueError(
            f"this checkpoint was trained with a {name} whose weights have sha256 {saved[:16]}..., but this run's has "
            f"{here[:16]}...; load the same {name} in the same dtype"
        )


def check_weights(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model.

    Args:
        saved: the checkpoint's state dict.
        here: that of this run's module.

    Raises:
        ValueError: naming the first weights that differ in name or shape.
    """
    old, new = ({n: tuple(v.shape) for n, v in each.items() if isinstance(v, Tensor)} for each in (saved, here))
    others = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name) and "_extra_state" not in name]
    if others:
        told = "; ".join(f"{name}: {old.get(name, 'none')} there, {new.get(name, 'none')} here" for name in others[:3])
        raise ValueError(
            f"model: expected the weights of the checkpoint's model, got others: {len(others)} of {len(new)} differ, "
            f"such as {told}. Give it the model that it was trained with, or another run a folder of its own"
        )
