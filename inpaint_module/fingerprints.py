"""Refuse frozen weights that are not those of the other ranks, or of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence


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
