"""What each mask generator that draws shapes may draw."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from mask_cases import KEYS, MANY
from torch import Tensor

from inpaint_module.masks import (
    Blob,
    Boxes,
    Cloud,
    FreeForm,
    Grid,
    KeepEvery,
    KeepRegion,
    Lines,
    MaskGenerator,
    Outpaint,
    Polygon,
    Strokes,
    painter,
    preset,
    presets,
    smooth,
)
from inpaint_module.masks.shapes import fill_polygons


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


def test_boxes_are_drawn_to_fit_and_not_cut() -> None:
    masks = Boxes((1, 1), (100, 511), margin=10, resolution=512)(MANY, 128, 128)[:, 0]
    side = masks.any(1).sum(1)  # LaMa: uniform up to the 492 of 512 pixels between the margins
    assert (side.min(), side.max()) == (25, 123)
    assert (side == 123).float().mean() < 0.02
    assert abs(side.float().mean() / 128 - 296 / 512) < 0.01


def test_margins_leave_room_in_a_small_image() -> None:
    masks = Boxes((1, 1), (30, 40), margin=10, resolution=None)(KEYS, 12, 90)[:, 0]
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    assert rows.tolist() == [2] * 24  # of 12, that is 5 from the border
    assert columns.min() >= 30


@pytest.mark.parametrize("width", [5, 8, 20, 101])
def test_lamas_brush_is_as_wide_as_opencvs(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, plain = [], painter.strokes

    def noted(start: Tensor, end: Tensor, across: Tensor, visible: Tensor) -> painter.Marks:
        lines.extend(torch.cat([start, end], -1)[:, 0].round().int().tolist())
        return plain(start.round(), end.round(), across, visible)

    monkeypatch.setattr(painter, "strokes", noted)
    make = partial(Strokes, (1, 1), (100, 200), (width, width), segments=1, directions=360, resolution=None)
    masks, thin = (make(opencv=opencv)(MANY[:200], 256, 256) for opencv in (True, False))
    drawn = np.zeros((200, 256, 256), np.uint8)
    for image, (x0, y0, x1, y1) in zip(drawn, lines, strict=False):
        cv2.line(image, (x0, y0), (x1, y1), 1, width)
    area = drawn.sum(dtype=int)
    assert abs(int(masks.sum()) / area - 1) < 0.02
    assert int(thin.sum()) / area < 0.99
    assert (masks.numpy()[:, 0] & (drawn > 0)).sum() > 0.97 * area


@pytest.mark.parametrize("make", [Boxes, FreeForm, Lines, Strokes])
def test_sizes_in_pixels_do_not_scale(make: Callable[..., MaskGenerator]) -> None:
    pixels, scaled = make((1, 1), resolution=None), make((1, 1), resolution=96)
    assert torch.equal(pixels(KEYS, 96, 96), scaled(KEYS, 96, 96))
    covered = [generator(MANY[:200], 192, 192).float().mean() for generator in (pixels, scaled)]
    assert covered[0] < 0.8 * covered[1]


def test_tiny_rounded_boxes_are_not_empty() -> None:
    for side in (1, 2, 3, 4):
        masks = Boxes((1, 1), (side, side), margin=0, rounded=1.0, corner=(1, 9), resolution=None)(KEYS, 8, 8)
        assert masks.flatten(1).any(1).all()


@pytest.mark.parametrize("name", sorted({*presets()} - {"cloud", "blob", "polygon"}))
def test_presets_in_pixels_are_those_of_their_size(name: str) -> None:
    side = 256 if name in ("deepfill", "lama-train", "boxes") else 512
    for size in ((side, side), (side, side + 64)):
        assert torch.equal(preset(name, in_pixels=True)(KEYS[:2], *size), preset(name)(KEYS[:2], *size))


@pytest.mark.parametrize("name", presets())
def test_presets_in_pixels_paint_images_of_any_size(name: str) -> None:
    for size in ((8, 8), (17, 40), (640, 24)):
        assert preset(name, in_pixels=True)(KEYS[:8], *size).flatten(1).any(1).all()


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
        (lambda: Boxes(margin=-1, resolution=None), "margin must be at least 0, got -1"),
        (lambda: Boxes(resolution=0), "resolution must be at least 1, got 0"),
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


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999, 1.0])
def test_the_threshold_is_what_counting_bit_by_bit_finds(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = torch.randint(0, 40, (3, 8, 9), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    fields = torch.cat([fields, 50_000 * fields, torch.full((1, 8, 9), 2**21 - 1), torch.full((1, 8, 9), 2**21)]).int()
    shares = torch.full((len(fields),), share, dtype=torch.float64)
    selected = smooth.highest_share(fields, shares)
    monkeypatch.setattr(smooth, "cheap_to_read", lambda _: False)
    assert torch.equal(selected, smooth.highest_share(fields, shares))
