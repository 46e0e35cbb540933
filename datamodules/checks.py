"""What the arguments of the data module may be."""

from __future__ import annotations


def check_at_least(low: int, part: str, **values: float) -> None:
    """Refuse numbers under `low`, naming the argument of this part, such as `data.order`."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"{part}.{name}: expected at least {low}, got {value}")


def check_share(part: str, **values: float) -> None:
    """Refuse numbers outside 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{part}.{name}: expected 0 to 1, got {value}")


def check_image_size(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of one number for squares, or of two; anything but positive numbers is refused."""
    size = (value, value) if isinstance(value, int) else tuple(value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"data.image_size: expected positive pixels, one number or [height, width], got {size}")
    return size[0], size[1]


def check_colour(part: str, **values: tuple[int, ...]) -> None:
    """Refuse anything but three numbers 0..255."""
    for name, value in values.items():
        if len(value) != 3 or not all(0 <= each <= 255 for each in value):
            raise ValueError(f"{part}.{name}: expected three numbers 0 to 255, got {value}")
