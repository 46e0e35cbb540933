"""Inverted masks: mostly white ones from the data are named once, painted ones never."""

import warnings
from typing import Any

import pytest
import torch

from datamodules.decode.mask_files import InvertedMasksWarning, look_inverted


def batch(share: float, size: int = 16, own: bool | None = None) -> dict[str, Any]:
    mask = torch.arange(100).view(1, 1, 10, 10).expand(size, 1, 10, 10) < 100 * share
    found = {"mask": mask, "__key__": [f"k{number}" for number in range(size)]}
    return found if own is None else {**found, "has_mask": torch.full((size,), own)}


def test_suspicion_by_hand() -> None:
    assert look_inverted([1.0, 0.85])
    assert not look_inverted([1.0, 0.8])
    assert not look_inverted([])


def test_warns_once_after_64_masks() -> None:
    watch = InvertedMasksWarning()
    for _ in range(3):
        watch(batch(0.93))
    message = r"the first 64 masks from the shards are 93% white, up to sample 'k15'; .* `inverted: true`"
    with pytest.warns(UserWarning, match=message):
        watch(batch(0.93))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(batch(1.0, 100))


def test_says_nothing_of_others() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InvertedMasksWarning()(batch(0.8, 100))
        InvertedMasksWarning()(batch(1.0, 100, own=False))
        InvertedMasksWarning()({"image": torch.zeros(100, 3, 2, 2)})
    with pytest.warns(UserWarning, match="100% white"):
        InvertedMasksWarning()(batch(1.0, 100, own=True))
