"""The linear start of the small autoencoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recipes.embedded_autoencoder import pca_start
from tiny_vaes import dc_of_patches


def test_it_reconstructs_as_well_as_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(4, 3, 6, 6, generator=generator), size=(64, 64), mode="bicubic") * 1.2 - 0.6
    model = dc_of_patches()
    pca_start(model, images)
    with torch.no_grad():
        latents = model.encode(images).latent
        error = (model.decode(latents).sample - images).square().mean()
    patches = F.unfold(images, 8, stride=8).movedim(1, 2).reshape(-1, 192)
    centred = (patches - patches.mean(0)).double()
    lost = torch.linalg.svdvals(centred)[4:].square().sum() / centred.numel()
    assert error.item() == pytest.approx(lost.item(), rel=0.1, abs=1e-3)
    assert abs(torch.corrcoef(latents.transpose(0, 1).flatten(1)) - torch.eye(4)).max() < 1e-2


def test_everything_can_still_learn() -> None:
    model = dc_of_patches()
    pca_start(model, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    for _ in range(2):
        optimizer.zero_grad()
        (model(images).sample - images).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pca_start needs encoder_block_out_channels \[12, 12, 48, 192\]"):
        pca_start(dc_of_patches(decoder_block_out_channels=(12, 12, 48, 192)), torch.rand(1, 3, 32, 32))
