"""Buckets: shapes worked out by hand, and the nearest one by log aspect."""

import math

import pytest
import torch

from datamodules.order.bucket_order import Buckets, bucket_shapes


def test_512_by_hand() -> None:
    """64 squares of 64 pixels: 8 x 8, 7 x 9 = 63, 6 x 10 = 60; 5 x 12 would be wider than 2."""
    assert Buckets((512, 512)).shapes == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]


def test_1024_by_hand() -> None:
    """256 squares: 16 x 16, 15 x 17 = 255, 14 x 18 = 252, 13 x 19 = 247, 12 x 21 = 252, 11 x 22 = 242 at aspect 2."""
    wide = [(960, 1088), (896, 1152), (832, 1216), (768, 1344), (704, 1408)]
    tall = [(width, height) for height, width in reversed(wide)]
    assert Buckets((1024, 1024)).shapes == [*tall, (1024, 1024), *wide]


def test_a_wide_budget_has_the_same_shapes_as_a_square_of_its_area() -> None:
    assert Buckets((256, 1024)).shapes == Buckets((512, 512)).shapes


def test_only_squares() -> None:
    assert Buckets((500, 500), step=64, max_aspect=1.0).shapes == [(448, 448)]


@pytest.mark.parametrize("step", [8, 16, 64])
@pytest.mark.parametrize("max_aspect", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("pixels", [64 * 64, 200 * 300, 512 * 512])
def test_no_shape_can_grow(step: int, max_aspect: float, pixels: int) -> None:
    shapes = bucket_shapes(pixels, step=step, max_aspect=max_aspect)
    aspects = [width / height for height, width in shapes]
    assert aspects == sorted(set(aspects))
    assert sorted(shapes) == sorted((width, height) for height, width in shapes)

    def allowed(height: int, width: int) -> bool:
        return height * width <= pixels and max(height / width, width / height) <= max_aspect

    for height, width in shapes:
        assert allowed(height, width)
        assert height % step == width % step == 0
        grown = ((height + step, width), (height, width + step), (height + step, width + step))
        assert not any(allowed(*shape) for shape in grown)


def test_every_shape_uses_most_of_the_budget() -> None:
    for pixels in (512**2, 768**2, 1024**2):
        shapes = bucket_shapes(pixels, step=64, max_aspect=2.0)
        assert min(height * width for height, width in shapes) > 0.93 * pixels


def test_nearest_by_log_aspect() -> None:
    buckets = Buckets((1024, 1024))
    aspects = torch.logspace(-1, 1, 1001)
    distance = (aspects.double().log()[:, None] - torch.tensor([math.log(w / h) for h, w in buckets.shapes])).abs()
    assert buckets.nearest(aspects).equal(distance.argmin(dim=1))


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        (1.0, (512, 512)),
        (1.5, (384, 640)),
        (4 / 3, (448, 576)),
        (9 / 16, (640, 384)),
        (5.0, (384, 640)),
        (0.1, (640, 384)),
    ],
)
def test_nearest_by_hand(aspect: float, shape: tuple[int, int]) -> None:
    """3:2 lies between 9:7 and 10:6, whose geometric mean is 1.46."""
    buckets = Buckets((512, 512))
    assert buckets.shapes[int(buckets.nearest(torch.tensor([aspect])))] == shape


def test_a_tie_goes_to_the_taller() -> None:
    """Shapes 1:4, 2:2 and 4:1 of 4 squares; 2 is as far from 1 as from 4 in ratio."""
    buckets = Buckets((2, 2), step=1, max_aspect=4.0)
    assert buckets.shapes == [(4, 1), (2, 2), (1, 4)]
    assert buckets.nearest(torch.tensor([0.5, 2.0, 2.0001])).tolist() == [0, 1, 2]
    assert len(buckets) == 3


def test_a_budget_below_one_step() -> None:
    message = r"data\.image_size: expected at least 64 x 64 pixels in all, one order.bucket_step each way, got 32 x 48"
    with pytest.raises(ValueError, match=message):
        Buckets((32, 48))


@pytest.mark.parametrize("step", [0, -8])
def test_step_is_positive(step: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.order\.bucket_step: expected at least 1 pixel, got {step}"):
        Buckets((64, 64), step=step)


@pytest.mark.parametrize("max_aspect", [0.5, math.nan, math.inf])
def test_max_aspect_is_at_least_one(max_aspect: float) -> None:
    with pytest.raises(ValueError, match=r"data\.order\.bucket_max_aspect: expected at least 1 and finite, got "):
        Buckets((64, 64), max_aspect=max_aspect)
