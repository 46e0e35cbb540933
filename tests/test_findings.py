"""The doctor's checks alone, on measures made by hand."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.doctor.command import telling_first
from datamodules.doctor.data_measures import Captions, Masks, Pixels, Sizes, StalledError, items_in_time
from datamodules.doctor.findings import (
    Finding,
    check_captions,
    check_finite,
    check_grid,
    check_inverted,
    check_latents,
    check_loss,
    check_notes,
    check_painted,
    check_range,
    check_sizes,
)
from datamodules.doctor.model_measures import (
    Grid,
    Latents,
    Speeds,
    autocast,
    data_from_configs,
    denoiser_factor,
    faster,
    precision_of,
)


def pixels(dtype: str, low: float, high: float) -> Pixels:
    return Pixels(dtype, low, high, [0.0] * 3, [], [], 4)


def test_ranges() -> None:
    assert not check_range(pixels("uint8", 0, 255))
    assert not check_range(pixels("float32", 0, 1))
    assert "float32 in 0..255" in check_range(pixels("float32", 0, 255))[0].came
    assert check_range(pixels("int64", 0, 1))
    assert check_range(pixels("float16", float("nan"), 1))


def masks(coverage: float, border: float, own: bool = True, count: int = 8) -> Masks:
    shares = torch.full((2, count), coverage)
    shares[1] = border
    return Masks(["k"] * count, shares[0], shares[1], torch.full((count,), own))


def test_polarity() -> None:
    assert check_inverted(masks(0.95, 0.5))[0].severity == "error"
    assert check_inverted(masks(0.8, 1.0))[0].severity == "warning"
    assert not check_inverted(masks(0.5, 1.0))  # outpainting
    assert not check_inverted(masks(0.95, 1.0, own=False))
    assert check_painted(masks(0.95, 1.0, own=False))
    assert not check_painted(masks(0.95, 1.0))


def test_captions_matter_to_a_model_that_reads_them() -> None:
    empty, equal = Captions(8, 5, 0, "", 0, 9, True), Captions(8, 0, 5, "a dog", 5, 9, True)
    assert [check_captions(each)[0].title for each in (empty, equal)] == ["empty captions", "equal captions"]
    assert not check_captions(empty._replace(used=False)) + check_captions(equal._replace(used=False))
    assert not check_captions(Captions(8, 4, 4, "a dog", 5, 9, True))


def test_notes() -> None:
    assert [f.title for f in check_notes({"animated": ["a"], "upscaled": ["a", "b"]}, 16)] == [
        "small images",
        "animated images",
    ]
    assert not check_notes({"upscaled": ["a"]}, 16)


def test_sizes() -> None:
    assert not check_sizes(Sizes([(512, 768)], 8, 8))
    assert [f.severity for f in check_sizes(Sizes([(520, 512), (100, 512)], 8, 8))] == ["warning", "error"]


def latents(mean: float, std: float, psnr: float) -> Latents:
    return Latents(2, "float32", mean, std, (std, std), [psnr, psnr], [])


@pytest.mark.parametrize(
    ("found", "severities"),
    [
        (latents(0.0, 1.0, 30.0), []),
        (latents(0.0, 0.5, 30.0), ["warning"]),
        (latents(0.0, 5.0, 30.0), ["error"]),
        (latents(1.5, 1.0, 18.0), ["warning", "warning"]),
        (latents(3.0, 1.0, 9.0), ["error", "error"]),
    ],
)
def test_latents_off_scale(found: Latents, severities: list[str]) -> None:
    assert [finding.severity for finding in check_latents(found)] == severities


def test_leak_and_loss() -> None:
    grid = {"nearest": Grid(0.2, 0.1), "max": Grid(0.0, 0.3)}
    assert "20.0% of the masked pixels" in check_grid(grid, "nearest")[0].came
    assert not check_grid(grid, "max")
    assert check_loss(float("nan"))
    assert not check_loss(0.3)


def test_the_coarsest_grid_of_a_denoiser() -> None:
    unet, transformer = ({"down_block_types": ["DownBlock2D"] * 3}, {"patch_size": 2})
    assert [denoiser_factor(SimpleNamespace(config=config)) for config in (unet, transformer, {})] == [4, 2, 1]


def test_what_would_be_faster() -> None:
    def said(
        decode: float,
        encode: float,
        step: float,
        workers: int,
        cached: bool = False,
        gpu: bool = False,
        masks: float = 1e9,
    ) -> str:
        speeds = Speeds(masks, None, decode, encode, step)
        return faster(speeds, Sizes([(512, 512)], 8, 8), workers=workers, cores=8, cached=cached, gpu=gpu)

    assert "set data.num_workers: 5" in said(10, 100, 100, 2)
    assert "13 workers were needed on 8 cores" in said(4, 100, 100, 2)
    assert said(100, 100, 100, 0).startswith("decoding takes 33% of the time")
    assert said(100, 100, 100, 2).startswith("the VAE takes 50% of a step")
    assert said(100, 100, 100, 2, cached=True).startswith("the denoiser and its optimizer take 50% of a step")
    assert said(100, 0, 0, 2) == ""
    assert said(100, 100, 100, 2, gpu=True).endswith("--model.compile=true compiles for a GPU")
    assert said(100, 100, 100, 2, gpu=True, masks=200).startswith("painting masks takes 20% of a step")
    assert said(100, 100, 100, 2, masks=200).startswith("the VAE takes 40% of a step")


def test_patience() -> None:
    assert [value for value, _ in items_in_time(lambda: [1, 2], 5)] == [1, 2]
    with pytest.raises(StalledError, match=r"nothing came for 0.05 s"):
        list(items_in_time(lambda: iter(lambda: time.sleep(0.5), 1), 0.05))
    with pytest.raises(ZeroDivisionError):
        list(items_in_time(lambda: (1 // number for number in (1, 0)), 5))


def test_nan_in_another_dtype_is_no_overflow() -> None:
    found = latents(0.0, 1.0, 30.0)
    assert not check_finite(found)
    assert check_finite(found._replace(lost=["a"], dtype="bfloat16"))[0].title == "NaN from the VAE"
    assert check_finite(found._replace(lost=["a"], dtype="float16"))[0].title == "overflow in the VAE"


def test_precision(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text("trainer: {precision: bf16-mixed}\n")
    overlay.write_text("trainer: {max_steps: 3}\n")
    assert precision_of([base, overlay]) == "bf16-mixed"
    assert precision_of([overlay]) == "32-true"
    with autocast("bf16-mixed", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast("32-true", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"config: expected data in .*base\.yaml, got none"):
        data_from_configs([base])


def test_the_sheet_shows_something_of_each_finding_first() -> None:
    def found(*keys: str) -> Finding:
        return Finding("error", "t", "w", "e", "c", "a", keys)

    order = telling_first(["a", "b", "a", "c", "d", "e"], [found("d", "d", "c"), found("e"), found()])
    assert order == ["d", "e", "c", "a", "b"]
