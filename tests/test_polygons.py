"""Polygons: pixels by their centres, by hand and against an equation."""

import numpy as np
import pytest

from datamodules.decode import coco_masks as polygons
from datamodules.decode.annotations import RunLengths


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    return polygons.fill_polygons([points], height, width)


def fill(points: list[tuple[float, float]], height: int = 6, width: int = 7) -> np.ndarray:
    return fill_polygon(np.array(points, dtype=np.float64), height, width)


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_a_box_is_its_pixels_and_equals_its_run_lengths() -> None:
    mask = fill(box(2, 1, 5, 4))
    assert np.argwhere(mask).tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4)]
    assert np.array_equal(mask, polygons.unite_rle([RunLengths([13, 3, 3, 3, 3, 3, 14], 6, 7)]))


def test_subpixel_corners() -> None:
    assert np.argwhere(fill(box(1.6, 0, 3.4, 1))).tolist() == [[0, 2]]
    assert np.argwhere(fill(box(1.4, 0, 3.6, 1))).tolist() == [[0, 1], [0, 2], [0, 3]]
    assert not fill(box(1.6, 1.6, 2.4, 2.4)).any()


def test_a_triangle_by_hand() -> None:
    expected = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert fill([(0, 0), (3.9, 0), (0, 3.9)], 4, 4).astype(int).tolist() == expected
    assert fill([(0, 3.9), (3.9, 0), (0, 0)], 4, 4).astype(int).tolist() == expected


def test_even_odd() -> None:
    """An outline that goes round a hole, and one that crosses itself."""
    ring = fill([*box(0, 0, 6, 6), (0, 0), *box(2, 2, 4, 4), (2, 2)])
    assert ring[0, :6].all()
    assert not ring[2:4, 2:4].any()
    assert ring.sum() == 32


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, 0.7), (-40.0, 10.0), (500.0, 0.0)])
def test_a_circle_wherever_it_lies(shift: tuple[float, float]) -> None:
    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    centre = np.array([30.0, 20.0]) + shift
    y, x = np.mgrid[:40, :60] + 0.5
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 17.23**2
    mask = fill_polygon(centre + 17.23 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 40, 60)
    assert np.array_equal(mask, disc)


def test_neighbours_share_no_pixel_and_leave_none() -> None:
    generator = np.random.default_rng(1)
    middle = generator.uniform(5, 25, 2)
    corners = np.array(box(0, 0, 30, 30))
    parts = [fill_polygon(np.stack([corners[i], corners[(i + 1) % 4], middle]), 30, 30) for i in range(4)]
    assert (np.sum(parts, axis=0) == 1).all()


def test_polygons_are_united_as_each_is_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty that cross themselves and each other; also if a few spans at a time are united."""
    many = np.random.default_rng(0).uniform(-5, 40, (60, 5, 2))
    expected = np.any([fill_polygon(points, 30, 35) for points in many], axis=0)
    assert 0 < expected.mean() < 1
    assert np.array_equal(polygons.fill_polygons(many, 30, 35), expected)
    monkeypatch.setattr(polygons, "_MERGED", 20)
    assert np.array_equal(polygons.fill_polygons(many, 30, 35), expected)


def test_polygons_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 corners that go up and down over 1000 rows would meet them 100 million times."""
    points = np.stack([np.linspace(0, 1000, 100_000), np.arange(100_000) % 2 * 1000.0], axis=1)
    with pytest.raises(ValueError, match="expected polygons whose edges meet at most 4194304 pixel rows"):
        fill_polygon(points, 1000, 1000)
    monkeypatch.setattr(polygons, "_MOST_CROSSINGS", 100)
    square = np.array(box(0, 0, 10, 10), dtype=np.float64)
    assert polygons.fill_polygons([square] * 5, 10, 10).all()
    with pytest.raises(ValueError, match="expected polygons whose edges meet at most 100 pixel rows, got more"):
        polygons.fill_polygons([square] * 6, 10, 10)
