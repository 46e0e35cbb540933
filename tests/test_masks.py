"""The painter against a slow one; generators as pure functions of their keys; composition; presets by name."""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from inpaint_module.masks import (
    Blob,
    Boxes,
    Cloud,
    CoverageBetween,
    Curriculum,
    FreeForm,
    Full,
    FullWithProbability,
    Grid,
    Grown,
    Intersection,
    Inverted,
    KeepEvery,
    KeepRegion,
    Lines,
    MaskGenerator,
    Mixture,
    Outpaint,
    Polygon,
    Strokes,
    Union,
    coverage,
    generator,
    painter,
    preset,
    presets,
)
from inpaint_module.masks.__main__ import main
from inpaint_module.masks.components import count_components
from inpaint_module.masks.polygon import fill_polygons
from inpaint_module.morphology import dilate
from inpaint_module.randomness import Stream, key

KEYS = key(0, torch.arange(24), Stream.MASK)
MANY = key(1, torch.arange(2000), Stream.MASK)
FIXED = [name for name in presets() if name.startswith("repaint")]
GENERATORS: dict[str, MaskGenerator] = {name: preset(name) for name in presets()} | {
    "grown": Grown(preset("lama-thick"), (-20, 20)),
    "inverted": Inverted(preset("sd"), 0.5),
    "intersection": Intersection([Cloud(), Boxes()]),
    "union": Union([Outpaint(), Blob()]),
    "bounded": CoverageBetween(Boxes(), (0.2, 0.3), tries=2),
    "curriculum": Curriculum([preset("outpaint"), preset("lama-thin")], [0, 10]),
}
GENERATORS["curriculum"].set_step(4)


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


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [(96, 96), (64, 112), (97, 33), (8, 8)])
def test_a_mask_is_a_function_of_its_key(name: str, size: tuple[int, int]) -> None:
    whole = GENERATORS[name](KEYS, *size)
    assert whole.shape == (24, 1, *size)
    assert whole.dtype == torch.bool
    assert whole.is_contiguous()
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GENERATORS[name](KEYS[shuffled], *size), whole[shuffled])
    assert torch.equal(torch.cat([GENERATORS[name](part, *size) for part in KEYS.split(7)]), whole)


@pytest.mark.parametrize("name", GENERATORS)
def test_masks_vary_and_are_never_empty(name: str) -> None:
    masks = GENERATORS[name](MANY[:200], 64, 48)
    assert masks.flatten(1).any(1).all()
    distinct = len({mask.numpy().tobytes() for mask in masks})
    assert distinct == 1 if name in FIXED else distinct > 100


@pytest.mark.parametrize("name", GENERATORS)
def test_what_a_gpu_does_without_reading_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU only what is needed is painted; a GPU paints it all and selects."""
    expected = GENERATORS[name](KEYS[:8], 64, 48)
    for module in (generator, painter, coverage):
        monkeypatch.setattr(module, "cheap_to_read", lambda x: False)
    assert torch.equal(GENERATORS[name](KEYS[:8], 64, 48), expected)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_compile_without_a_graph_break(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(GENERATORS[name].paint, fullgraph=True, backend="eager")
    assert torch.equal(compiled(KEYS[:3], 40, 48), GENERATORS[name](KEYS[:3], 40, 48))


@pytest.mark.parametrize("name", ["lama-thick", "sd", "deepfill", "polygon", "cloud"])
def test_sizes_scale_with_the_short_side(name: str) -> None:
    small, large, long = (
        GENERATORS[name](MANY[:500], *size).float().mean() for size in ((64, 64), (160, 160), (64, 80))
    )
    assert abs(small - large) < 0.02
    assert abs(small - long) < 0.07


GOLDEN = {
    "lama-thin": "14b736ce7a47ebce",
    "lama-medium": "842881391dacdc26",
    "lama-thick": "1dcdfcb99348e545",
    "sd": "9ae816caa53d8994",
    "sdxl": "e07303095f96f2cd",
    "deepfill": "749824d6954e9348",
    "comodgan": "43c82593f347577a",
    "mat": "a6c7017195f0cede",
    "outpaint": "c5daa9aae9a5381e",
    "brushnet": "ae01ed687d9da8f6",
    "cloud": "38dd4981258141bb",
    "blob": "77d6051a61a87d8f",
    "polygon": "ab368e1f8da6c57c",
    "repaint-half": "a6eaf9ed46bbb2e9",
    "repaint-expand": "46a2e459954b51fe",
    "repaint-every-second-line": "a4abea69c5e1922c",
    "repaint-superres": "8617ab3a52ebf246",
    "grid": "e0b7cdb1bb52d930",
    "grown": "b98bd056ed39cf04",
    "inverted": "025410cdabcf06db",
    "intersection": "ba19dbdd0bbfedaa",
    "union": "37c1140fbc83d8c1",
    "bounded": "b1051c430ec1e8ac",
    "curriculum": "e23bd48def0e80f7",
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_golden_masks(name: str, device: str) -> None:
    digest = hashlib.sha256()
    for size in ((128, 128), (512, 384)):
        digest.update(GENERATORS[name](KEYS[:8].to(device), *size).cpu().numpy().tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[name]


@pytest.mark.cuda
@pytest.mark.parametrize("name", GENERATORS)
def test_a_gpu_is_never_waited_for(name: str) -> None:
    keys = KEYS.cuda()
    GENERATORS[name](keys, 128, 128)
    torch.cuda.set_sync_debug_mode("error")
    try:
        GENERATORS[name](keys, 128, 128)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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


def test_mixture_draws_per_sample() -> None:
    small, large = Boxes((1, 1), (4, 4), margin=0, resolution=16), Boxes((1, 1), (8, 8), margin=0, resolution=16)
    area = Mixture([small, large], [0.25, 0.75])(MANY, 16, 16).sum((1, 2, 3))
    assert set(area.tolist()) == {16, 64}
    assert abs((area == 16).float().mean().item() - 0.25) < 0.03


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_full_masks(probability: float) -> None:
    full = FullWithProbability(Boxes(), probability)(MANY, 16, 16).flatten(1).all(1).float().mean()
    assert abs(full - probability) < 0.03 * (0 < probability < 1) + 1e-6


def test_set_operations() -> None:
    left, right = KeepRegion(0.5, 0, 0.5, 1), KeepRegion(0, 0, 0.5, 1)  # mask the left half, and the right one
    top = KeepRegion(0, 0.5, 1, 0.5)
    both = left(KEYS, 8, 8) & top(KEYS, 8, 8)
    assert Union([left, right])(KEYS, 8, 8).all()
    assert torch.equal(Intersection([left, top])(KEYS, 8, 8), both)
    assert torch.equal(Intersection([left, right])(KEYS, 8, 8), left(KEYS, 8, 8))  # else it would be empty
    assert torch.equal(Inverted(left)(KEYS, 8, 8), right(KEYS, 8, 8))
    assert Inverted(Full())(KEYS, 8, 8).all()


def test_parts_draw_by_themselves() -> None:
    assert not torch.equal(Union([Boxes(), Boxes()])(KEYS, 64, 64), Boxes()(KEYS, 64, 64))


def test_growth_is_a_chain_of_discs() -> None:
    masks = Union([preset("lama-medium")])(KEYS, 128, 128)
    grown = Grown(preset("lama-medium"), (3, 3), resolution=128)(KEYS, 128, 128)
    assert torch.equal(grown, dilate(dilate(masks, disk_of(1)), disk_of(2)))
    shrunk = Grown(preset("lama-medium"), (-3, -3), resolution=128)(KEYS, 128, 128)
    assert torch.equal(shrunk, ~dilate(dilate(~masks, disk_of(1)), disk_of(2)))
    assert torch.equal(Grown(preset("lama-medium"), (0, 0))(KEYS, 128, 128), masks)
    assert torch.equal(Grown(KeepEvery(2, 1), (-9, -9))(KEYS, 16, 16), KeepEvery(2, 1)(KEYS, 16, 16))


def disk_of(radius: int) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1)] * 2, indexing="ij")
    return y * y + x * x <= radius * radius


@pytest.mark.parametrize("share", [(0.2, 0.25), (0.9, 1.0), (0.25, 0.25), (0.0, 0.01)])
def test_coverage_is_kept(share: tuple[float, float]) -> None:
    masks = CoverageBetween(preset("lama-medium"), share, tries=3)(MANY[:300], 48, 64)
    covered = masks.flatten(1).sum(1)
    assert covered.min() >= max(1, share[0] * 48 * 64)
    assert covered.max() <= share[1] * 48 * 64


def test_coverage_leaves_fitting_masks_alone() -> None:
    masks = CoverageBetween(Boxes((0, 1), (8, 8), margin=0, resolution=16), (0.0, 1.0), tries=1)(MANY[:100], 16, 16)
    assert set(masks.flatten(1).sum(1).tolist()) == {1, 64}  # one pixel in place of none


def test_curriculum_follows_the_step() -> None:
    course = Curriculum([Boxes((1, 1), (4, 4), resolution=64), Full(), Outpaint()], [0, 100, 200])
    assert not course(MANY, 16, 16).flatten(1).all(1).any()
    wrapped, early = Union([course]), set()
    for step, share in ((25, 0.25), (50, 0.5), (100, 1.0)):
        wrapped.set_step(step)
        full = course(MANY, 16, 16).flatten(1).all(1)
        assert abs(full.float().mean() - share) < 0.03
        assert early <= set(full.nonzero()[:, 0].tolist())  # nobody goes back
        early = set(full.nonzero()[:, 0].tolist())
    course.set_step(10**6)
    assert not course(MANY, 16, 16).flatten(1).all(1).any()
    course.set_step(25)
    resumed = Curriculum([Boxes((1, 1), (4, 4), resolution=64), Full(), Outpaint()], [0, 100, 200])
    resumed.set_step(25)
    assert torch.equal(course(MANY, 16, 16), resumed(MANY, 16, 16))


def test_pieces_by_hand() -> None:
    picture = ["##..#", ".....", "#.#.#", "###.#", "...#."]
    mask = torch.tensor([[char == "#" for char in line] for line in picture])
    snail = torch.tensor([[char == "#" for char in line] for line in ["#####", "....#", "###.#", "#...#", "#####"]])
    masks = torch.stack([mask, snail, torch.zeros(5, 5, dtype=torch.bool), ~snail])[:, None]
    assert count_components(masks) == [3, 1, 0, 1]


YAML = """
mask_generator:
  class_path: inpaint_module.masks.FullWithProbability
  init_args:
    probability: 0.1
    generator:
      class_path: inpaint_module.masks.Mixture
      init_args:
        probabilities: [0.5, 0.5]
        generators:
          - {class_path: inpaint_module.masks.preset, init_args: {name: sd}}
          - class_path: inpaint_module.masks.Grown
            init_args: {generator: {class_path: inpaint_module.masks.Cloud}, pixels: [-4, 4]}
"""


def test_generators_come_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mask_generator", type=MaskGenerator)
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name until jsonargparse 4.49
    made = build(parser.parse_string(YAML)).mask_generator
    expected = FullWithProbability(Mixture([preset("sd"), Grown(Cloud(), (-4, 4))], [0.5, 0.5]), 0.1)
    assert torch.equal(made(KEYS, 64, 64), expected(KEYS, 64, 64))
    line = ["--mask_generator", "inpaint_module.masks.preset", "--mask_generator.name", "cloud"]
    assert isinstance(build(parser.parse_args(line)).mask_generator, Cloud)


def test_the_gallery_draws_presets_and_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "masks.yaml"
    config.write_text("trainer: {logger: {class_path: x.Y}}\ndata:\n  init_args:\n" + textwrap.indent(YAML, "    "))
    for source in (["--preset", "sd"], ["--config", str(config)]):
        out = tmp_path / "sheets" / "sheet.png"
        main([*source, "--out", str(out), "--number", "33", "--size", "64"])
        assert capsys.readouterr().out == f"{out}\n"
        with Image.open(out) as sheet:
            assert len(set(sheet.convert("RGB").resize((64, 64)).get_flattened_data())) > 500
        out.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "nope"], "unknown mask preset 'nope'; known are lama-thin"),
        (["--preset", "sd", "--photos", "/nowhere"], r"no photos \(.jpg, .* in /nowhere; name a folder with --photos"),
        (["--config", "pyproject.yaml"], "must hold a mask_generator, or a class_path with init_args"),
    ],
)
def test_the_gallery_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.yaml").write_text("trainer: {max_steps: 3}")
    with pytest.raises(SystemExit):
        main([*arguments, "--out", "sheet.png"])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preset("lama"), "unknown mask preset 'lama'; known are lama-thin, lama-medium, .*, grid"),
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
        (lambda: Mixture([]), "at least one mask generator"),
        (lambda: Mixture([Boxes(), Boxes()], [0.5, 0.6]), "2 numbers >= 0 that sum to 1"),
        (lambda: Mixture([Boxes()], [0.5, 0.5]), "1 numbers >= 0 that sum to 1"),
        (lambda: Union([]), "at least one mask generator"),
        (lambda: Intersection([]), "at least one mask generator"),
        (lambda: Inverted(Boxes(), 2), r"probability must be in 0\.\.1, got 2"),
        (lambda: FullWithProbability(Boxes(), -0.1), r"probability must be in 0\.\.1, got -0\.1"),
        (lambda: Grown(Boxes(), (3, -3)), r"pixels must be \[low, high\] with low <= high, got \[3, -3\]"),
        (lambda: CoverageBetween(Boxes(), (0.5, 0.4)), r"share must be \[low, high\]"),
        (lambda: CoverageBetween(Boxes(), tries=0), "tries must be at least 1, got 0"),
        (
            lambda: CoverageBetween(Boxes(), (0.501, 0.51))(KEYS, 4, 4),
            r"share \[0\.501, 0\.51\] of 4 x 4 .* widen the bounds",
        ),
        (lambda: Curriculum([Boxes()], [0, 5]), "steps must be one per generator, got 2 for 1"),
        (lambda: Curriculum([Boxes(), Full()], [5, 0]), r"steps must rise from 0, got \[5, 0\]"),
        (lambda: Curriculum([Boxes()], [0]).set_step(-1), "step must be at least 0, got -1"),
        (lambda: Boxes()(KEYS[None], 64, 64), r"keys must be int64 \(B,\)"),
        (lambda: Boxes()(KEYS.int(), 64, 64), r"keys must be int64 \(B,\), got torch.int32"),
        (lambda: Boxes()(KEYS, 0, 64), "height and width must be at least 1, got 0 x 64"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        MaskGenerator()  # type: ignore[abstract]
