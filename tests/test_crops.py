"""Crops: inside the image, of the right shape, and functions of the draws."""

import pytest
import torch

from datamodules.decode.augmentations import centre_crop, crop_numbers, grid_of, largest_box, random_crop
from inpaint_module.randomness import Stream, key, uniform


def test_largest_box() -> None:
    assert largest_box(40, 20, 1.0) == (20, 20)
    assert largest_box(40, 20, 4.0) == (40, 10)


def test_centre_crop() -> None:
    assert centre_crop(40, 20, (10, 10)).box == (10, 0, 30, 20)


def test_random_crop_by_hand() -> None:
    crop = random_crop(100, 60, (30, 30), [0.5, 0.999, 0.0, 0.4], min_scale=0.5, flip=0.5)
    assert crop.box == (55, 0, 100, 45)
    assert crop.flip
    assert not random_crop(100, 60, (30, 30), [0.5, 0.999, 0.0, 0.4], min_scale=0.5, flip=0.4).flip


def test_crops_that_shrink_lie_on_the_grid_of_a_reduced_jpeg() -> None:
    assert [grid_of(width, (99, 20)) for width in (20, 39.9, 40, 80, 160, 999)] == [1, 1, 2, 4, 8, 8]
    assert random_crop(100, 60, (20, 20), [0.5, 0.999, 0.0, 0.4], min_scale=0.5, flip=0.5).box == (56, 0, 100, 44)
    assert centre_crop(103, 61, (20, 20)).box == (22, 0, 82, 60)
    for position in range(100):
        box = random_crop(1023, 767, (64, 64), crop_numbers(3, position), 0.2, 0.5).box
        step = grid_of(box[2] - box[0], (64, 64))
        assert step in (2, 4, 8)
        assert all(side % step == 0 for side in box)


def test_every_place_is_equally_likely() -> None:
    """Of a crop of 3 in 5 pixels there are three places."""
    lefts = [random_crop(5, 3, (3, 3), [0.0, n / 300, 0.0, 0.9], 0.5, 0.5).box[0] for n in range(300)]
    assert [lefts.count(left) for left in (0, 1, 2)] == [100, 100, 100]


def test_random_crop_is_not_enlarged_unless_the_image_is_too_small() -> None:
    assert random_crop(100, 60, (54, 54), [0.0, 0.0, 0.0, 0.9], 0.5, 0.5).box == (0, 0, 54, 54)
    assert random_crop(100, 60, (90, 90), [0.0, 0.0, 0.0, 0.9], 0.5, 0.5).box == (0, 0, 60, 60)
    assert random_crop(1, 1, (90, 90), [0.0, 0.9, 0.9, 0.9], 0.5, 0.5).box == (0, 0, 1, 1)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_random_crops_stay_inside_and_keep_the_aspect(size: tuple[int, int]) -> None:
    for position in range(200):
        left, top, right, bottom = random_crop(470, 310, size, crop_numbers(3, position), 0.2, 0.5).box
        assert 0 <= left < right <= 470
        assert 0 <= top < bottom <= 310
        assert (right - left) / size[1] == pytest.approx((bottom - top) / size[0], rel=0.13)
        assert right - left >= size[1]
        assert bottom - top >= size[0]


def test_draws_are_those_of_the_position() -> None:
    positions = torch.tensor([0, 63, 64, 10**12])
    place = uniform(key(9, positions, Stream.CROP), 3).tolist()
    flip = uniform(key(9, positions, Stream.FLIP), 1).tolist()
    assert [crop_numbers(9, int(p)) for p in positions] == [a + b for a, b in zip(place, flip, strict=True)]
