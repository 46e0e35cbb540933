"""What the data module refuses: arguments out of range, and checkpoints of another stream. All raise ValueError."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn


def check_at_least(low: int, **values: float) -> None:
    """Refuse numbers under `low`, naming the argument."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"data.{name}: expected at least {low}, got {value}")


def check_share(**values: float) -> None:
    """Refuse numbers outside 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"data.{name}: expected 0 to 1, got {value}")


def check_image_size(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of one number for squares, or of two; anything but positive numbers is refused."""
    size = (value, value) if isinstance(value, int) else tuple(value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"data.image_size: expected positive pixels, one number or [height, width], got {size}")
    return size[0], size[1]


def check_colour(background: tuple[int, ...]) -> None:
    """Refuse anything but three numbers 0..255."""
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ValueError(f"data.background: expected three numbers 0 to 255, got {background}")


def check_plan(here: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint whose position would mean other samples here; of other masks, `masks_sha256`, warn."""
    if (there := checkpoint.get("masks_sha256")) != (painted := here.get("masks_sha256")):
        known = "masks that it does not name" if there is None else f"masks {there[:16]}..."
        rank_zero_warn(
            f"data mask_generator: the checkpoint was trained with {known}, and this run paints "
            f"{str(painted)[:16]}...; it goes on with these, not to the bit. The configuration was changed, or the "
            "version of this package: CHANGELOG.md says which presets paint other masks"
        )
    for name in [*here, *sorted(checkpoint.keys() - here.keys())]:
        if name not in ("position", "masks_sha256") and (there := checkpoint.get(name)) != (value := here.get(name)):
            others = "data.train_shards holds other samples than then, and " if name == "dataset_fingerprint" else ""
            raise ValueError(
                f"data {name}: expected {there!r} as in the checkpoint, got {value!r}: {others}the stream cannot go on "
                "where it was; restore it, or give this run a folder of its own"
            )
