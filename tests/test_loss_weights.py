"""Loss weights on grids of 4 x 4 cells, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.morphology import square
from inpaint_module.objectives.loss import Huber, LossWeights, seam_of, weighted_loss

CORNER = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
LEFT = [[1, 1, 0, 0]] * 4
NONE, ALL = [[0] * 4] * 4, [[1] * 4] * 4


def pixels(*cells: list[list[int]]) -> Tensor:
    """Masks of 8 x 8 pixels whose touched cells of 2 x 2 these are: only the lower right pixel of each is set."""
    grid = torch.tensor(cells, dtype=torch.float32)[:, None]
    mask = torch.zeros(len(cells), 1, 8, 8)
    mask[..., 1::2, 1::2] = grid
    return mask


def weigh(cells: list[list[int]], **options: Any) -> list[list[float]]:
    return LossWeights(**options)(pixels(cells), 2)[0, 0].tolist()


def test_hole_and_outside() -> None:
    assert weigh(CORNER, mask=3.0, outside=0.5) == [[3, 0.5, 0.5, 0.5], [0.5] * 4, [0.5] * 4, [0.5] * 4]


def test_the_seam_counts_on_top() -> None:
    assert weigh(CORNER, mask=1, outside=1, seam=2) == [[3, 3, 1, 1], [3, 3, 1, 1], [1] * 4, [1] * 4]
    assert weigh(LEFT, mask=2, outside=0, seam=1) == [[2, 3, 1, 0]] * 4


def test_a_wider_seam() -> None:
    found = weigh(CORNER, mask=0, outside=0, seam=1, seam_cells=2)
    assert found == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0] * 4]


def test_the_edge_of_the_picture_is_no_seam() -> None:
    assert not seam_of(torch.ones(1, 1, 4, 4, dtype=torch.bool), square(3)).any()
    assert not seam_of(torch.zeros(1, 1, 4, 4, dtype=torch.bool), square(3)).any()


@pytest.mark.parametrize(("options", "hole", "other"), [({}, 8, 8 / 15), ({"mask": 3.0}, 12, 4 / 15)])
def test_by_area_a_small_hole_counts_as_much(options: dict[str, Any], hole: float, other: float) -> None:
    """One of 16 cells and the other 15 share the picture's weight of 16, as 1 to 1 and as 3 to 1."""
    found = weigh(CORNER, by_area=True, **options)
    assert found[0] == pytest.approx([hole, other, other, other])
    assert all(row == pytest.approx([other] * 4) for row in found[1:])


def test_by_area_is_the_mean_over_regions_of_their_mean_errors() -> None:
    error = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    cells = LossWeights(mask=2, outside=1, seam=4, by_area=True)(pixels(LEFT), 2)
    hole, outside, seam = error[..., :2].mean(), error[..., 2:].mean(), error[..., 1:3].mean()
    torch.testing.assert_close((error * cells).mean(), (2 * hole + outside + 4 * seam) / 7)


@pytest.mark.parametrize("cells", [NONE, ALL], ids=["no hole", "all hole"])
@pytest.mark.parametrize("seam", [0.0, 2.0])
def test_by_area_a_region_that_is_not_there_does_not_count(cells: list[list[int]], seam: float) -> None:
    assert weigh(cells, mask=3, outside=5, seam=seam, by_area=True) == [[1] * 4] * 4


def test_nothing_that_counts_is_no_nan() -> None:
    assert weigh(NONE, mask=1, outside=0, by_area=True) == [[0] * 4] * 4
    assert weigh(ALL, mask=0, outside=1, by_area=True) == [[0] * 4] * 4


def test_samples_of_a_batch_are_apart() -> None:
    for options in ({}, {"by_area": True, "seam": 0.5}):
        weights = LossWeights(2.0, 0.5, **options)
        whole = weights(pixels(CORNER, LEFT, NONE, ALL), 2)
        assert whole.shape == (4, 1, 4, 4)
        assert torch.equal(whole, torch.cat([weights(pixels(cells), 2) for cells in (CORNER, LEFT, NONE, ALL)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": -1}, "loss_weights.mask must be a number from 0 on, got -1"),
        ({"outside": float("nan")}, "loss_weights.outside must be a number from 0 on, got nan"),
        ({"seam": float("inf")}, "loss_weights.seam must be a number from 0 on, got inf"),
        ({"mask": 0, "outside": 0}, "one of mask, outside and seam must be over 0, got 0 for all"),
        ({"seam_cells": 0}, "loss_weights.seam_cells must be at least 1, got 0"),
    ],
)
def test_bad_weights_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossWeights(**options)


def test_huber_schedules_by_hand() -> None:
    times, ratio = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, float("inf")])
    assert Huber(0.25, schedule="constant").thresholds(times).tolist() == [0.25, 0.25, 0.25]
    assert Huber(0.25, schedule="exponential").thresholds(times).tolist() == pytest.approx([1, 0.5, 0.25])
    assert Huber(0.2).thresholds(times, ratio).tolist() == pytest.approx([1, 0.4, 0.2])  # 0.8 / (1 + ratio)^2 + 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 0}, r"huber\.c must be a number over 0, got 0"),
        ({"c": float("nan")}, r"huber\.c must be a number over 0, got nan"),
        ({"schedule": "linear"}, r"huber\.schedule must be constant, exponential or snr; got 'linear'"),
    ],
)
def test_bad_huber_losses_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Huber(**options)


class TestWeightedLoss:
    prediction, target = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))

    def test_without_weights_it_is_the_mean_squared_error_to_the_bit(self) -> None:
        assert torch.equal(weighted_loss(self.prediction, self.target), F.mse_loss(self.prediction, self.target))

    def test_weights_of_one_change_nothing(self) -> None:
        cells = LossWeights()(pixels(LEFT, CORNER, ALL), 2)
        found = weighted_loss(self.prediction, self.target, cells, torch.ones(3))
        torch.testing.assert_close(found, F.mse_loss(self.prediction, self.target))

    def test_by_hand(self) -> None:
        prediction, target = torch.tensor([1.0, 2, 3, 4]).reshape(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
        cells = torch.tensor([[1.0, 0], [0.5, 2]]).reshape(2, 1, 1, 2)
        # sample 0: (1 + 0) / 2; sample 1: (4.5 + 32) / 2
        assert weighted_loss(prediction, target, cells).item() == pytest.approx((0.5 + 18.25) / 2)
        assert weighted_loss(prediction, target, cells, torch.tensor([2.0, 0])).item() == pytest.approx(0.5)
        # without cells: 2.5 and 12.5
        assert weighted_loss(prediction, target, samples=torch.tensor([1.0, 3])).item() == pytest.approx(20)

    def test_huber_by_hand(self) -> None:
        prediction = torch.tensor([0.0, 0.75, -0.75, 0]).reshape(2, 1, 1, 2)
        thresholds = torch.tensor([1.0, 0.4])
        # 2 c (sqrt(d^2 + c^2) - c): c = 1 gives 2 (1.25 - 1), c = 0.4 gives 0.8 (0.85 - 0.4)
        found = weighted_loss(prediction, torch.zeros(2, 1, 1, 2), huber=thresholds)
        assert found.item() == pytest.approx((0 + 0.5 + 0.36 + 0) / 4)
        cells, samples = torch.tensor([[1.0, 3], [2, 7]]).reshape(2, 1, 1, 2), torch.tensor([1.0, 10])
        found = weighted_loss(prediction, torch.zeros(2, 1, 1, 2), cells, samples, thresholds)
        assert found.item() == pytest.approx((1.5 / 2 + 10 * 0.72 / 2) / 2)

    def test_huber_is_the_formula(self) -> None:
        c = torch.tensor([0.01, 0.1, 1.0]).reshape(3, 1, 1, 1).double()
        error = (self.prediction - self.target).double()
        expected = (2 * c * ((error.square() + c * c).sqrt() - c)).mean()
        found = weighted_loss(self.prediction, self.target, huber=c.flatten().float())
        torch.testing.assert_close(found, expected.float())

    def test_huber_of_small_errors_is_their_square(self) -> None:
        prediction = torch.full((1, 1, 1, 1), 1e-5, requires_grad=True)
        loss = weighted_loss(prediction, torch.zeros(1, 1, 1, 1), huber=torch.ones(1))
        assert loss.item() == pytest.approx(1e-10, rel=1e-4)
        loss.backward()
        assert prediction.grad is not None
        assert prediction.grad.item() == pytest.approx(2e-5, rel=1e-4)

    def test_half_precision_is_compared_in_float32(self) -> None:
        found = weighted_loss(self.prediction.bfloat16(), self.target, torch.ones(1, 1, 1, 1))
        assert found.dtype == torch.float32
