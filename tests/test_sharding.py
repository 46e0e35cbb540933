"""Which parts of a denoiser are sharded; that it trains and resumes is in test_training_state and test_distributed."""

from __future__ import annotations

from torch import nn

from inpaint_module.base_models import blocks


def test_blocks_are_the_members_of_the_denoisers_lists() -> None:
    denoiser = nn.Module()
    inner = nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(2, 2)])})
    denoiser.down = nn.ModuleList([nn.Linear(1, 1), inner])
    denoiser.empty = nn.ModuleList([nn.SiLU()])
    denoiser.out = nn.Linear(3, 3)
    assert list(blocks(denoiser)) == [denoiser.down[0], inner]
