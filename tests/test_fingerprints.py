"""Other frozen weights are refused, by name."""

from __future__ import annotations

import pytest

from inpaint_module.training.checks import check_ranks, check_saved


def test_ranks_that_differ_are_named() -> None:
    check_ranks("VAE", [[1, 2], [1, 2]])
    with pytest.raises(ValueError, match="the VAE's weights on rank 1, 3 are not those on rank 0; load the same VAE"):
        check_ranks("VAE", [[1, 2], [1, 3], [1, 2], [0, 2]])


def test_another_checkpoint() -> None:
    check_saved("conditioning", "ab" * 32, "ab" * 32)
    with pytest.raises(ValueError, match=r"with a conditioning whose weights have sha256 abababababababab\.\.\., but"):
        check_saved("conditioning", "ab" * 32, "cd" * 32)
