"""ComfyUI's duck type, around the same tiny AutoencoderKL that stands beside it as a diffusers autoencoder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_vaes
import torch
from torch import Tensor

from inpaint_module.encoder import InpaintEncoder
from inpaint_module.vae import ComfyVAE, as_vae


def image(batch: int = 1) -> Tensor:
    """Random float32 (B, 3, 16, 24) in 0..1."""
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class ClassicComfy:
    """ComfyUI's VAE object up to 2025, on an AutoencoderKL."""

    downscale_ratio: Any = 8

    def __init__(self, seed: int = 0):
        self.module, self.batches = tiny_vaes.build("sd", seed), []

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.module.encode(images[..., :3].movedim(-1, 1) * 2 - 1).latent_dist.mode()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (self.module.decode(latents).sample / 2 + 0.5).movedim(1, -1)


class Comfy(ClassicComfy):
    """ComfyUI's VAE object since 2026."""

    downscale_ratio = None

    def spacial_compression_encode(self) -> int:
        return 8


class VideoComfy(ClassicComfy):
    """ComfyUI's object around a video VAE: the batch of images is one video, (1, C, T, h, w)."""

    downscale_ratio = (lambda frames: frames, 8, 8)

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images).movedim(0, 1).unsqueeze(0)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents[0].movedim(1, 0)).unsqueeze(0)


@pytest.mark.parametrize("kind", [ClassicComfy, Comfy, VideoComfy])
def test_comfy_equals_its_diffusers_twin(kind: type[ClassicComfy]) -> None:
    vae, twin, images = as_vae(kind()), as_vae(tiny_vaes.build("sd")), image(3)
    assert isinstance(vae, ComfyVAE)
    assert (vae.ratio, vae.channels) == (8, 4)
    mean, std = vae.posterior(images)
    assert std is None
    torch.testing.assert_close(mean, twin.posterior(images).mean)
    torch.testing.assert_close(vae.decode(mean), twin.decode(mean))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.posterior(images).mean, mean)
        torch.testing.assert_close(vae.decode(mean), twin.decode(mean))


def test_comfy_video_gets_one_image_at_a_time() -> None:
    comfy = VideoComfy()
    vae = as_vae(comfy)
    comfy.batches.clear()
    vae.posterior(image(3))
    assert comfy.batches == [1, 1, 1]


def test_comfy_lying_ratio_is_refused() -> None:
    comfy = ClassicComfy()
    comfy.downscale_ratio = 16
    with pytest.raises(ValueError, match=r"ClassicComfy claims 16 .*not \(1, C, 2, 2\)"):
        as_vae(comfy)


def test_comfy_cannot_normalize() -> None:
    vae = as_vae(ClassicComfy())
    for call in (vae.normalize, vae.denormalize):
        with pytest.raises(ValueError, match="normalize needs a diffusers autoencoder: ComfyUI keeps the scaling"):
            call(torch.zeros(1, 4, 2, 3))
    with pytest.raises(ValueError, match="normalize needs a diffusers autoencoder"):
        InpaintEncoder(ClassicComfy(), normalize=True)


def test_comfy_fingerprint() -> None:
    assert as_vae(ClassicComfy()).fingerprint() == as_vae(ClassicComfy()).fingerprint()
    assert as_vae(ClassicComfy()).fingerprint() != as_vae(ClassicComfy(seed=1)).fingerprint()
    comfy = ClassicComfy()
    comfy.get_sd = comfy.module.state_dict  # type: ignore[attr-defined]
    assert as_vae(comfy).fingerprint() == as_vae(tiny_vaes.build("sd")).fingerprint()


def test_comfy_stays_where_it_is_and_is_shared() -> None:
    vae = as_vae(ClassicComfy())
    vae.to(torch.device("meta"))
    assert copy.deepcopy(vae) is vae
    assert vae.posterior(image()).mean.device.type == "cpu"
