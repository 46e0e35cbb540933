"""What each mask generator that draws shapes may draw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mask_cases import KEYS, MANY

from inpaint_module.masks import (
    Blob,
    Boxes,
    Cloud,
    FreeForm,
    Grid,
    KeepEvery,
    KeepRegion,
    Lines,
    Outpaint,
    Polygon,
    Strokes,
    preset,
)
from inpaint_module.masks.polygon import fill_polygons


def test_boxes_keep_sizes_and_margin() -> None:
    masks = Boxes((1, 1), (30, 60), margin=10, resolution=128)(KEYS, 256, 300)[:, 0]
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        height, width = (int(v[-1] - v[0]) + 1 for v in (rows, columns))
        assert 60 <= height <= 120
        assert 60 <= width <= 120
        assert int(mask.sum()) == height * width
        assert rows[0] >= 20
        assert rows[-1] < 236
        assert columns[0] >= 20
        assert columns[-1] < 280


def test_outpainting_leaves_one_rectangle_in_the_middle() -> None:
    for mask in Outpaint((0.25, 0.25))(KEYS, 16, 32)[:, 0]:
        known = ~mask
        rows, columns = known.any(1), known.any(0)
        assert torch.equal(known, rows[:, None] & columns)
        assert rows[4:12].all()
        assert columns[8:24].all()
        assert int(rows.sum()) in (8, 12, 16)
        assert not known.all()


def test_repaint_masks_by_hand() -> None:
    rows, pixels, half, middle = (
        preset(name)(KEYS[:1], 4, 4)[0, 0].int().tolist()
        for name in ("repaint-every-second-line", "repaint-superres", "repaint-half", "repaint-expand")
    )
    assert rows == [[0] * 4, [1] * 4] * 2
    assert pixels == [[0, 1, 0, 1], [1] * 4] * 2
    assert half == [[0, 0, 1, 1]] * 4
    assert middle == [[1] * 4, [1, 0, 1, 1], [1] * 4, [1] * 4]


@pytest.mark.parametrize(("make", "low", "high"), [(Cloud, 0.1, 0.6), (Blob, 0.2, 0.8)])
def test_clouds_and_blobs_cover_what_is_drawn(make: type[Cloud] | type[Blob], low: float, high: float) -> None:
    share = make((low, high))(MANY[:300], 64, 64).flatten(1).float().mean(1)
    assert low - 1e-3 <= share.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < share.max() <= high + 1e-3
    exact = make((0.25, 0.25))(KEYS, 128, 128).flatten(1).float().mean(1)
    assert (exact - 0.25).abs().max() < 1e-3  # but for ties


def test_a_polygon_by_hand() -> None:
    x, y = torch.tensor([[0.5, 4.5, 4.5, 9.0]]), torch.tensor([[-0.5, -0.5, 3.5, 9.0]])
    triangle = fill_polygons(x, y, torch.tensor([[3]]), 5, 6)[0, 0]
    assert triangle.int().tolist() == [
        [0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 0],
        [0] * 6,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boxes((-1, 2)), r"count must be \[low, high\] with 0 <= low <= high, got \[-1, 2\]"),
        (lambda: Boxes(size=(9, 3)), r"size must be \[low, high\] with 1 <= low <= high, got \[9, 3\]"),
        (lambda: Boxes(size=(-9, 3)), r"size must be \[low, high\] with 1 <= low <= high, got \[-9, 3\]"),
        (lambda: Boxes(margin=128), r"margin must be in 0\.\.127 at resolution 256, got 128"),
        (lambda: Boxes(hang=1.5), r"hang must be in 0\.\.1, got 1\.5"),
        (lambda: Boxes(corner=(3, 1)), r"corner must be \[low, high\]"),
        (lambda: Strokes(length=(-5, 3)), r"length must be \[low, high\]"),
        (lambda: Strokes(segments=0), "segments must be at least 1, got 0"),
        (lambda: Strokes(discs=0.7, squares=0.7), r"discs_and_squares must be in 0\.\.1, got 1\.4"),
        (lambda: Lines(width=(0, 3)), r"width must be \[low, high\] with 1 <= low"),
        (lambda: FreeForm(turns=(4, 2)), r"turns must be \[low, high\]"),
        (lambda: Outpaint((0.5, 1.2)), r"share must be \[low, high\] with 0 <= low <= high <= 1, got \[0\.5, 1\.2\]"),
        (lambda: Grid((1, 4)), r"step must be \[low, high\] with 2 <= low"),
        (lambda: KeepEvery(1, 1), "rows and columns must not both be 1"),
        (lambda: KeepEvery(2, 1)(KEYS, 1, 8), "of 1 x 8 pixels, one in 2 x 1 leaves none to mask"),
        (lambda: KeepRegion(0, 0, 1, 1), "must not cover the image"),
        (lambda: KeepRegion(left=2), r"left must be in 0\.\.1, got 2"),
        (lambda: Polygon((2, 5)), r"corners must be \[low, high\] with 3 <= low"),
        (lambda: Cloud((0.6, 0.1)), r"share must be \[low, high\]"),
        (lambda: Cloud(octaves=0), "octaves must be at least 1, got 0"),
        (lambda: Blob(warp=-1), "warp must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
