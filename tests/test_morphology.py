"""Dilation against conv2d and by hand; masks on the latent grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.morphology import (
    REDUCTIONS,
    diamond,
    dilate,
    disk,
    mask_leak,
    mask_overcover,
    plan_dilation,
    reduce_mask,
    square,
)


def by_convolution(mask: Tensor, kernel: Tensor) -> Tensor:
    """The reference's way: padded convolution, clamp, cut."""
    padding = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    out = F.conv2d(mask.float(), kernel[None, None].float(), padding=padding)
    return out.clamp(0, 1)[..., : mask.shape[-2], : mask.shape[-1]]


def random_mask(batch: int, height: int, width: int, share: float = 0.03) -> Tensor:
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(batch)) < share


def test_square_of_6_grows_2_up_and_left_and_3_down_and_right() -> None:
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    grown = dilate(mask, square(6))[0, 0]
    assert grown.nonzero().min(0).values.tolist() == [2, 2]
    assert grown.nonzero().max(0).values.tolist() == [7, 7]
    assert grown.sum() == 36


def test_disk_and_diamond_by_hand() -> None:
    assert disk(5).int().tolist() == [
        [0, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0],
    ]
    assert diamond(3).int().tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize("batch", [1, 3, 8, 9, 17])
@pytest.mark.parametrize("shape", [square, disk, diamond])
def test_dilation_equals_convolution(batch: int, shape: object) -> None:
    mask = random_mask(batch, 21, 34)
    for size in (0, 1, 2, 3, 6, 7, 16, 33):
        kernel = shape(size)  # type: ignore[operator]
        expected = by_convolution(mask, kernel)
        assert torch.equal(dilate(mask, kernel).float(), expected)
        assert torch.equal(dilate(mask.float(), kernel), expected)
        assert torch.equal(dilate(mask, plan_dilation(kernel)).float(), expected)


def test_any_kernel_even_with_holes() -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (3, 5), (4, 4), (7, 2), (9, 9)):
        kernel = torch.rand(height, width, generator=generator) < 0.5
        kernel[0, 0] = True
        mask = random_mask(2, 15, 15, 0.1)
        assert torch.equal(dilate(mask, kernel).float(), by_convolution(mask, kernel))


def test_kernel_larger_than_the_mask() -> None:
    mask = random_mask(2, 5, 4, 0.2)
    assert torch.equal(dilate(mask, square(64)).float(), by_convolution(mask, square(64)))


def test_a_kernel_may_be_that_of_a_convolution() -> None:
    assert plan_dilation(disk(5)[None, None]) == plan_dilation(disk(5))


def test_shapes_and_dtypes_are_kept() -> None:
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64):
        for shape in ((6, 7), (2, 6, 7), (2, 3, 1, 6, 7)):
            assert dilate(torch.zeros(shape, dtype=dtype), square(3)).dtype == dtype
            assert dilate(torch.zeros(shape, dtype=dtype), square(3)).shape == shape


def test_no_masks_stay_none() -> None:
    for shape in ((0, 1, 8, 9), (2, 0, 9), (0, 4)):
        for dtype in (torch.bool, torch.float32):
            assert dilate(torch.zeros(shape, dtype=dtype), square(3)).shape == shape


def test_soft_masks_take_the_maximum() -> None:
    assert dilate(torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]), torch.ones(1, 3)).tolist() == [
        [0.25, 0.25, 0.75, 0.75, 0.75]
    ]


def test_dilate_compiles_without_a_graph_break() -> None:
    plan = plan_dilation(disk(9))
    mask = random_mask(3, 24, 16)
    compiled = torch.compile(lambda m: dilate(m, plan), fullgraph=True, backend="eager")
    assert torch.equal(compiled(mask), dilate(mask, plan))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.zeros(3, 3), "no non-zero element"),
        (torch.ones(3), r"kernel must be \(kh, kw\)"),
        (torch.ones(2, 1, 3, 3), r"kernel must be \(kh, kw\)"),
        (torch.ones(0, 3), r"kernel must be \(kh, kw\)"),
    ],
)
def test_bad_kernels_are_refused(kernel: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_dilation(kernel)


@pytest.mark.parametrize("size", [-1, 1025, 2.5, True])
def test_bad_sizes_are_refused(size: object) -> None:
    for shape in (square, disk, diamond):
        with pytest.raises(ValueError, match=r"size must be an int in 0\.\.1024"):
            shape(size)  # type: ignore[arg-type]


def test_one_pixel_on_the_latent_grid() -> None:
    mask = torch.zeros(1, 1, 8, 16)
    mask[..., 0, 0] = 1  # the corner of the first cell
    mask[..., 4, 12] = 1  # the centre of the second
    cells = {how: reduce_mask(mask, 8, how) for how in REDUCTIONS}
    assert cells["max"].flatten().tolist() == [1, 1]
    assert cells["area"].flatten().tolist() == [1 / 64, 1 / 64]
    assert cells["nearest"].flatten().tolist() == [1, 0]
    assert cells["nearest-exact"].flatten().tolist() == [0, 1]
    assert cells["bilinear"].flatten().tolist() == [0, 0.25]
    assert cells["space-to-depth"].shape == (1, 64, 1, 2)
    assert cells["space-to-depth"][0, :, 0, 1].nonzero().item() == 4 * 8 + 4


@pytest.mark.parametrize(("pixels", "told"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_comfyui_looks_at_the_middle_four_pixels(pixels: int, told: int) -> None:
    """Half of them is not enough: it rounds half to even. Its own U-Net of 9 channels was told the same 50 times."""
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 3:5, 3:5] = 0
    mask[..., [3, 3, 4, 4][:pixels], [3, 4, 3, 4][:pixels]] = 1
    assert reduce_mask(mask, 8, "comfyui").item() == told


def test_leak_and_overcover() -> None:
    mask = torch.zeros(2, 1, 8, 16, dtype=torch.bool)
    mask[0, :, :, :12] = True  # one cell and a half
    keep_second = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2).expand(2, 1, 1, 2)
    assert mask_leak(mask, keep_second).tolist() == pytest.approx([1 / 3, 0])
    assert mask_overcover(mask, reduce_mask(mask, 8)).tolist() == [1, 0]
    assert mask_leak(mask, reduce_mask(mask, 8)).tolist() == [0, 0]


def test_bad_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match="reduce must be one of max, area"):
        reduce_mask(torch.zeros(1, 1, 8, 8), 8, "mean")
    with pytest.raises(ValueError, match="sides multiples of 8"):
        reduce_mask(torch.zeros(1, 1, 8, 9), 8)
    with pytest.raises(ValueError, match=r"mask must be \(B, 1, H, W\)"):
        reduce_mask(torch.zeros(8, 8), 8)
