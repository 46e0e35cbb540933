"""The painter against a slow one, and generators as pure functions of their keys."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from inpaint_module.masks import Boxes, MaskGenerator, Mixture, Strokes, painter
from inpaint_module.randomness import Stream, key

KEYS = key(0, torch.arange(64), Stream.MASK)
GENERATORS = {
    "boxes": Boxes(),
    "strokes": Strokes(),
    "thin": Strokes((4, 70), (10, 109), (5, 24), resolution=512),
    "mixture": Mixture([Boxes(), Strokes()], [0.3, 0.7]),
}


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


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [(96, 96), (64, 112), (97, 33)])
def test_a_mask_is_a_function_of_its_key(name: str, size: tuple[int, int]) -> None:
    generator = GENERATORS[name]
    whole = generator(KEYS, *size)
    assert whole.shape == (64, 1, *size)
    assert whole.dtype == torch.bool
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generator(KEYS[shuffled], *size), whole[shuffled])
    assert torch.equal(torch.cat([generator(part, *size) for part in KEYS.split(7)]), whole)


@pytest.mark.parametrize("name", GENERATORS)
def test_masks_vary_and_are_never_empty(name: str) -> None:
    masks = GENERATORS[name](KEYS, 128, 128)
    assert masks.flatten(1).any(1).all()
    assert len({mask.numpy().tobytes() for mask in masks}) == len(KEYS)


GOLDEN = {
    "boxes": "00da0bcda0d3d26b",
    "strokes": "4c861b45f9aa0ad9",
    "thin": "d4d54d7a1ad7eb7a",
    "mixture": "9947272324adf9c4",
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_golden_masks(name: str, device: str) -> None:
    digest = hashlib.sha256()
    for size in ((128, 128), (512, 384)):
        digest.update(GENERATORS[name](KEYS.to(device), *size).cpu().numpy().tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[name]


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


def test_mixture_draws_per_sample() -> None:
    keys = key(1, torch.arange(2000), Stream.MASK)
    small, large = Boxes((1, 1), (4, 4), margin=0, resolution=16), Boxes((1, 1), (8, 8), margin=0, resolution=16)
    area = Mixture([small, large], [0.25, 0.75])(keys, 16, 16).sum((1, 2, 3))
    assert set(area.tolist()) == {16, 64}
    assert abs((area == 16).float().mean().item() - 0.25) < 0.03


def test_generators_compile_without_a_graph_break() -> None:
    for generator in GENERATORS.values():
        compiled = torch.compile(generator.paint, fullgraph=True, backend="eager")
        assert torch.equal(compiled(KEYS[:3], 40, 48), generator(KEYS[:3], 40, 48))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boxes((0, 2)), r"count must be \[low, high\] with 1 <= low <= high, got \[0, 2\]"),
        (lambda: Boxes(size=(9, 3)), r"size must be \[low, high\] with 1 <= low <= high, got \[9, 3\]"),
        (lambda: Boxes(margin=128), r"margin must be in 0\.\.127 at resolution 256, got 128"),
        (lambda: Strokes(length=(-5, 3)), r"length must be \[low, high\]"),
        (lambda: Strokes(segments=0), "segments must be at least 1, got 0"),
        (lambda: Mixture([]), "at least one mask generator"),
        (lambda: Mixture([Boxes(), Boxes()], [0.5, 0.6]), "2 numbers >= 0 that sum to 1"),
        (lambda: Mixture([Boxes()], [0.5, 0.5]), "1 numbers >= 0 that sum to 1"),
        (lambda: Boxes()(KEYS[None], 64, 64), r"keys must be int64 \(B,\)"),
        (lambda: Boxes()(KEYS.int(), 64, 64), r"keys must be int64 \(B,\), got torch.int32"),
        (lambda: Boxes()(KEYS, 0, 64), "height and width must be at least 1, got 0 x 64"),
    ],
)
def test_bad_arguments_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        MaskGenerator()  # type: ignore[abstract]
