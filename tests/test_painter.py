"""The painter of oriented boxes against a slow one, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from mask_cases import KEYS
from torch import Tensor

from inpaint_module.masks import (
    painter,
    preset,
)


def slow_paint(marks: painter.Marks, height: int, width: int) -> Tensor:
    """Every pixel asked whether its centre is within `radius` of the inner box of any mark, in float64."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    painted = torch.zeros(len(marks.x), 1, height, width, dtype=torch.bool)
    for sample in range(len(marks.x)):
        for m in range(marks.x.shape[1]):
            if not marks.visible[sample, m]:
                continue
            f = [float(field[sample, m]) for field in marks[:7]]
            u = (x - f[0]) * f[4] + (y - f[1]) * f[5]
            v = (y - f[1]) * f[4] - (x - f[0]) * f[5]
            du = (u.abs() - (f[2] - f[6])).clamp_min(0)
            dv = (v.abs() - (f[3] - f[6])).clamp_min(0)
            painted[sample, 0] |= du * du + dv * dv <= f[6] * f[6] + 1e-9
    return painted


def random_marks(batch: int, number: int, rounding: float) -> painter.Marks:
    generator = torch.Generator().manual_seed(0)
    r = torch.rand(8, batch, number, generator=generator)
    along, across, angle = 1 + 20 * r[0], 1 + 12 * r[1], 2 * math.pi * r[2]
    radius = rounding * torch.minimum(along, across)
    cos, sin = angle.cos(), angle.sin()
    return painter.Marks(70 * r[3] - 5, 60 * r[4] - 5, along, across, cos, sin, radius, r[5] < 0.8)


@pytest.mark.parametrize("rounding", [0.0, 0.3, 1.0])
def test_painter_equals_the_slow_one(rounding: float) -> None:
    marks = random_marks(12, 5, rounding)
    fast, slow = painter.paint(marks, 50, 60, 80), slow_paint(marks, 50, 60)
    assert (fast != slow).float().mean() < 1e-4  # float32 against float64 on the very border
    assert slow.any()


def test_painter_on_every_quarter_turn() -> None:
    quarter = torch.tensor([[0.0, 1.0, 0.0, -1.0]])
    one = torch.ones(1, 4)
    places = torch.tensor([[10.0, 30.0, 50.0, 70.0]])
    for radius in (0.0, 1.0, 2.0):
        marks = painter.Marks(places, 10 * one, 6 * one, 2 * one, quarter.roll(1), quarter, radius * one, one > 0)
        assert torch.equal(painter.paint(marks, 20, 80, 20), slow_paint(marks, 20, 80))


def test_a_box_covers_its_columns_and_rows() -> None:
    left, top, width, height = (torch.tensor([[value]]) for value in (2, 1, 3, 2))
    mask = painter.paint(painter.boxes(left, top, width, height, left > 0), 4, 6, 4)[0, 0]
    assert mask.int().tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0] * 6]


def test_a_stroke_has_round_ends() -> None:
    start, end = torch.tensor([[[3.0, 2.0]]]), torch.tensor([[[5.0, 2.0]]])
    mask = painter.paint(painter.strokes(start, end, torch.tensor([[4.0]]), torch.tensor([[True]])), 5, 9, 5)[0, 0]
    assert mask.int().tolist() == [
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
    ]


def test_a_stroke_of_no_length_is_a_disc() -> None:
    point = torch.tensor([[[4.0, 4.0]]])
    mask = painter.paint(painter.strokes(point, point, torch.tensor([[6.0]]), torch.tensor([[True]])), 9, 9, 9)[0, 0]
    y, x = torch.meshgrid(torch.arange(9) - 4, torch.arange(9) - 4, indexing="ij")
    assert torch.equal(mask, y**2 + x**2 <= 9)


def test_painting_in_groups_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = preset("lama-medium")(KEYS, 64, 64)
    monkeypatch.setattr(painter, "MAX_INTERVALS", 5000)
    assert torch.equal(preset("lama-medium")(KEYS, 64, 64), whole)


@pytest.mark.parametrize("shape", [(1, 7), (3, 5, 64), (2, 1, 13, 17)])
def test_between_places_pixels_are_masked(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    places = torch.randint(0, size + 1, (min(size, 60),), generator=torch.Generator().manual_seed(size))
    places = torch.cat([places, places[:3], torch.tensor([0, size])])  # twice changes nothing
    changes = torch.bincount(places, minlength=size + 1)[:size].cumsum(0) % 2 == 1
    painted = painter.between(places.numpy(), shape)
    assert torch.equal(painted, changes.view(shape))
    assert not painter.between(places[:0].numpy(), shape).any()
