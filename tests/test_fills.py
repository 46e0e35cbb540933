"""Fills without a model: the smooth one against the Laplace equation solved by elimination, the mean colour by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from inpaint_module.fills import mean_colour_fill, seamless, smooth_fill, telea_fill
from inpaint_module.masks import preset
from inpaint_module.metrics import seam_error
from inpaint_module.randomness import Stream, key


def eliminated(image: Tensor, hole: Tensor) -> Tensor:
    """The smooth fill of (C, H, W) with a hole (H, W), by a linear system with a row for each pixel of the hole."""
    known, where = image.double().numpy(), np.argwhere(hole.numpy())
    index = {tuple(pixel): number for number, pixel in enumerate(where)}
    matrix, right = np.zeros((len(where),) * 2), np.zeros((len(where), len(known)))
    for number, (row, column) in enumerate(where):
        for there in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if not (0 <= there[0] < hole.shape[0] and 0 <= there[1] < hole.shape[1]):
                continue
            matrix[number, number] += 1
            if there in index:
                matrix[number, index[there]] -= 1
            else:
                right[number] += known[:, *there]
    known[:, *where.T] = np.linalg.solve(matrix, right).T
    return torch.from_numpy(known).float()


def waves(batch: int, height: int, width: int) -> Tensor:
    """Smooth pictures with some texture, 0..1."""
    rows, columns = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    shift = torch.arange(batch * 3.0).reshape(batch, 3, 1, 1)
    return (0.5 + 0.4 * (rows + shift).sin() * (columns - shift / 2).cos()) * (1 - 0.1 * (40 * rows * columns).sin())


@pytest.mark.parametrize("name", ["lama-medium", "outpaint", "repaint-half", "grid"])
@pytest.mark.parametrize("size", [(32, 32), (33, 21)])
def test_the_smooth_fill_solves_the_laplace_equation(name: str, size: tuple[int, int]) -> None:
    holes = preset(name)(key(3, torch.arange(3), Stream.MASK), *size)
    images = waves(3, *size)
    filled = smooth_fill(images, holes)
    for image, hole, made in zip(images, holes[:, 0], filled, strict=True):
        assert torch.equal(made[:, ~hole], image[:, ~hole])
        assert not hole.any() or hole.all() or (made - eliminated(image, hole)).abs().max() < 0.004


def test_a_ramp_goes_on_through_the_hole() -> None:
    """By hand: a plane is its own mean everywhere."""
    ramp = torch.linspace(0, 1, 48).expand(1, 1, 48, 48)
    hole = torch.zeros(1, 1, 48, 48)
    hole[..., 10:30, 14:40] = 1
    made = smooth_fill(torch.where(hole > 0, 9.0, ramp), hole)
    assert (made - ramp).abs().max() < 0.002


def test_a_hole_at_the_edge_takes_what_it_touches_and_a_whole_one_is_grey() -> None:
    image = torch.rand(2, 3, 16, 16)
    image[0, :, :, 7] = 0.25
    hole = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    hole[0, ..., :8] = False
    made = smooth_fill(image, hole)
    assert torch.allclose(made[0, :, :, 8:], torch.tensor(0.25), atol=1e-3)
    assert made[1].unique().tolist() == [0.5]


def test_the_fill_does_not_see_the_hole_nor_the_other_pictures() -> None:
    images, holes = torch.rand(3, 3, 24, 40), torch.rand(3, 1, 24, 40) > 0.4
    alone = torch.cat([smooth_fill(image[None], hole[None]) for image, hole in zip(images, holes, strict=True)])
    assert torch.equal(smooth_fill(torch.where(holes, 7, images), holes), smooth_fill(images, holes))
    assert torch.allclose(smooth_fill(images, holes), alone, atol=1e-6)
    assert torch.equal(smooth_fill(images, holes[:1]), smooth_fill(images, holes[:1].expand(3, -1, -1, -1)))


def test_a_fill_that_is_off_meets_the_photo() -> None:
    image, hole = waves(1, 40, 40), torch.zeros(1, 1, 40, 40)
    hole[..., 8:30, 12:36] = 1
    joined = seamless(image * 0.8 + 0.1, image, hole)
    assert torch.equal(torch.where(hole > 0, 0, joined), torch.where(hole > 0, 0, image))
    added = seamless(image * 0.1, image, hole, reach=0)
    assert torch.allclose(added, seamless(smooth_fill(image, hole) + image * 0.1, image, hole, reach=0), atol=0.02)
    before = seam_error(torch.where(hole > 0, image * 0.8 + 0.1, image), image, hole)
    assert seam_error(joined, image, hole) < before / 2
    assert torch.allclose(seamless(image + 0.2, image, hole).clamp(max=1), image.clamp(max=1), atol=2e-3)


def test_where_nothing_is_known_a_fill_stays_as_it_is() -> None:
    filled = torch.rand(1, 3, 9, 9)
    assert torch.equal(seamless(filled, torch.zeros_like(filled), torch.ones(1, 1, 9, 9)), filled)
    assert seamless(filled * 0, filled, torch.ones(1, 1, 9, 9), 0, 0.5).unique().tolist() == [0.5]


def test_telea_in_bytes() -> None:
    pytest.importorskip("cv2")
    image, hole = torch.full((2, 3, 16, 16), 0.4), torch.zeros(1, 1, 16, 16)
    hole[..., 4:9, 5:12] = 1
    made = telea_fill(torch.where(hole > 0, 0.9, image), hole)
    assert made is not None
    nothing_known = telea_fill(image, torch.ones(2, 1, 16, 16))
    assert nothing_known is not None
    assert nothing_known.unique().tolist() == [0.5]
    assert torch.allclose(made, image, atol=2.1 / 255)  # OpenCV's own rounding; the hidden 0.9 is not seen


def test_mean_colour_is_that_of_the_known_pixels() -> None:
    image = torch.zeros(2, 3, 2, 2)
    image[:, 0, 0, 0], image[:, 0, 0, 1] = 1.0, 0.5
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, :, 1] = 1
    mask[1] = 1
    filled = mean_colour_fill(image, mask)
    assert filled.shape == image.shape
    assert filled[0, :, 1, 1].tolist() == [0.75, 0, 0]
    assert filled[1].unique().tolist() == [0.5]
