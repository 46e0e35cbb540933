"""Every mask generator is a pure function of its keys, on any device and compiled, and paints what it always did."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from mask_cases import GENERATORS, KEYS, MANY

from inpaint_module import masks as public
from inpaint_module.masks import (
    Blob,
    Boxes,
    Cloud,
    CoverageBetween,
    CudaGraphed,
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
    composition,
    generator,
    painter,
    preset,
    presets,
    shapes,
    smooth,
)

FIXED = [name for name in presets() if name.startswith("repaint")]


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
@pytest.mark.parametrize(
    ("count", "size"),
    [
        (8, (64, 48)),
        (24, (61, 67)),
        (24, (9, 5)),
        (3, (2, 130)),
        *(pytest.param(2000 // side, (side, side + 7), marks=pytest.mark.slow) for side in (2, 13, 64, 127, 400)),
    ],
)
def test_what_a_gpu_does_without_reading_back(
    name: str, count: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU only what is needed is painted, and filled by words of bits; a GPU paints it all and selects."""
    expected = GENERATORS[name](MANY[:count], *size)
    for module in (generator, painter, composition, shapes, smooth):
        monkeypatch.setattr(module, "cheap_to_read", lambda x: False)
    assert torch.equal(GENERATORS[name](MANY[:count], *size), expected)


COMPILED = [
    preset("sd"),
    Blob(),
    Boxes(rounded=0.5),
    Cloud(octaves=2),
    CoverageBetween(Outpaint(), (0.2, 0.3), tries=2),
    CudaGraphed(Outpaint()),
    Curriculum([Outpaint(), Grid()], [0, 10]),
    FreeForm((1, 2), (1, 2)),
    Full(),
    FullWithProbability(Outpaint(), 0.5),
    Grid(),
    Grown(Outpaint(), (-20, 20)),
    Intersection([Outpaint(), Grid()]),
    Inverted(Outpaint(), 0.5),
    KeepEvery(2, 1),
    KeepRegion(0.25, 0.25, 0.5, 0.5),
    Lines((1, 2)),
    Mixture([Outpaint(), Grid()]),
    Outpaint(),
    Polygon(),
    Strokes((1, 2), segments=2),
    Strokes((1, 2), segments=2, discs=0.3, squares=0.3),
    Union([Outpaint(), Grid()]),
]


@pytest.mark.parametrize(
    "masks",  # Cloud and Blob are one code
    [pytest.param(each, marks=[pytest.mark.slow] * isinstance(each, Blob)) for each in COMPILED],
    ids=lambda masks: type(masks).__name__,
)
def test_generators_compile_without_a_graph_break(masks: MaskGenerator) -> None:
    torch.compiler.reset()
    compiled = torch.compile(masks.paint, fullgraph=True, backend="eager")
    assert torch.equal(compiled(KEYS[:3], 40, 48), masks(KEYS[:3], 40, 48))


def test_every_class_is_compiled() -> None:
    classes = {each for each in vars(public).values() if isinstance(each, type) and issubclass(each, MaskGenerator)}
    assert {type(masks) for masks in COMPILED} == classes - {MaskGenerator}


@pytest.mark.parametrize("name", ["lama-thick", "sd", "deepfill", "polygon", "cloud"])
def test_sizes_scale_with_the_short_side(name: str) -> None:
    small, large, long = (
        GENERATORS[name](MANY[:250], *size).float().mean() for size in ((64, 64), (160, 160), (64, 80))
    )
    assert abs(small - large) < 0.02
    assert abs(small - long) < 0.07


GOLDEN = {
    "lama-thin": "275663ff2cdf4a7c",
    "lama-medium": "d0c1bbafa9635fab",
    "lama-thick": "7717e4941bd6640f",
    "lama-train": "54216712cbedf733",
    "sd": "9ae816caa53d8994",
    "sdxl": "722fd24361a88aa0",
    "deepfill": "749824d6954e9348",
    "comodgan": "7a3a906935639963",
    "mat": "b9a278f83a0d4e45",
    "outpaint": "c5daa9aae9a5381e",
    "brushnet": "ae01ed687d9da8f6",
    "cloud": "38dd4981258141bb",
    "blob": "77d6051a61a87d8f",
    "polygon": "ab368e1f8da6c57c",
    "repaint-half": "a6eaf9ed46bbb2e9",
    "repaint-expand": "46a2e459954b51fe",
    "repaint-every-second-line": "a4abea69c5e1922c",
    "repaint-superres": "8617ab3a52ebf246",
    "boxes": "a2ccf2f40d1efa40",
    "grid": "e0b7cdb1bb52d930",
    "grown": "8059e292bdcb1d96",
    "inverted": "025410cdabcf06db",
    "intersection": "ba19dbdd0bbfedaa",
    "union": "37c1140fbc83d8c1",
    "bounded": "b1051c430ec1e8ac",
    "curriculum": "e8fb494927df4ba0",
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_golden_masks(name: str, device: str) -> None:
    digest = hashlib.sha256()
    for size in ((128, 128), (512, 384)):
        digest.update(GENERATORS[name](KEYS[:8].to(device), *size).cpu().numpy().tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", GENERATORS)
def test_no_keys_no_masks(name: str) -> None:
    assert GENERATORS[name](KEYS[:0], 16, 24).shape == (0, 1, 16, 24)


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        MaskGenerator()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preset("lama"), "unknown mask preset 'lama'; known are lama-thin, lama-medium, .*, grid"),
        (lambda: preset("lama-medum"), r"unknown mask preset 'lama-medum'; .*; did you mean lama-medium\?"),
        (lambda: Boxes()(KEYS[None], 64, 64), r"keys must be int64 \(B,\)"),
        (lambda: Boxes()(KEYS.int(), 64, 64), r"keys must be int64 \(B,\), got torch.int32"),
        (lambda: Boxes()(KEYS, 0, 64), "height and width must be at least 1, got 0 x 64"),
    ],
)
def test_bad_calls_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
