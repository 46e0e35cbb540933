"""The node against the golden node, and its way into ComfyUI."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_vaes
import torch
from benchmarks import reference_node
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tiny_models import tiny_vae
from torch import Tensor

import inpaint_module
from inpaint_module.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, VAEEncodeForInpaint

GOLDEN = load_file(Path(__file__).parent / "golden" / "vae_encode_for_inpaint.safetensors")
CASES = sorted({name[:3] for name in GOLDEN if name[:3].isdigit()})


class Comfy:
    """ComfyUI's VAE object up to 2025, around the golden AutoencoderKL: NHWC in 0..1 to the unscaled mode."""

    downscale_ratio: Any = 8

    def __init__(self) -> None:
        self.module: AutoencoderKL = tiny_vae().eval()
        self.module.load_state_dict({name[4:]: value for name, value in GOLDEN.items() if name.startswith("vae.")})

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.module.encode(pixels[..., :3].movedim(-1, 1) * 2 - 1).latent_dist.mode()


class Comfy2026(Comfy):
    """The same since 2026."""

    downscale_ratio = None

    def spacial_compression_encode(self) -> int:
        return 8


class VideoComfy(Comfy2026):
    """ComfyUI's object around a video VAE: its batch is one video; the first frame has a latent, then every 4 more."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return super().encode(pixels)[::4].movedim(0, 1).unsqueeze(0)


class Overflowing(Comfy):
    """A VAE whose float16 overflows."""

    first_stage_model, vae_dtype = AutoencoderKL, torch.float16

    def encode(self, pixels: Tensor) -> Tensor:
        latents = super().encode(pixels)
        latents[..., 0, 0] = torch.inf if latents.shape[-1] > 2 else 0  # not yet on the small picture that tells C
        return latents - latents


@pytest.fixture(scope="module")
def vae() -> Comfy:
    return Comfy()


def photo(batch: int = 1) -> Tensor:
    return torch.rand(batch, 32, 40, 3, generator=torch.Generator().manual_seed(0))


def box(*lead: int) -> Tensor:
    mask = torch.zeros(*lead, 32, 40)
    mask[..., 8:20, 10:30] = 1
    return mask


def call(vae: Any, pixels: Tensor, mask: Tensor, grow_mask_by: int = 6) -> dict[str, Tensor]:
    """As ComfyUI calls a node: by the name in FUNCTION, with keywords, under inference_mode."""
    node = VAEEncodeForInpaint()
    with torch.inference_mode():
        (latent,) = getattr(node, node.FUNCTION)(vae=vae, pixels=pixels, mask=mask, grow_mask_by=grow_mask_by)
    return latent


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [Comfy, Comfy2026])
def test_equals_the_golden_node(kind: type[Comfy], case: str) -> None:
    golden = {name: GOLDEN[f"{case}.{name}"] for name in ("pixels", "mask", "grow", "samples", "noise_mask")}
    latent = call(kind(), golden["pixels"].float() / 255, golden["mask"], int(golden["grow"]))
    assert latent.keys() == {"samples", "noise_mask"}
    assert latent["noise_mask"].shape == golden["noise_mask"].shape
    assert torch.equal(latent["noise_mask"], golden["noise_mask"].float())
    torch.testing.assert_close(latent["samples"], golden["samples"], rtol=0, atol=1e-5)


def test_there_are_all_the_golden_cases() -> None:
    assert len(CASES) == 28


def test_declarations() -> None:
    required = VAEEncodeForInpaint.INPUT_TYPES()["required"]
    assert {name: kind[0] for name, kind in required.items()} == {
        "pixels": "IMAGE",
        "vae": "VAE",
        "mask": "MASK",
        "grow_mask_by": "INT",
    }
    assert required["grow_mask_by"][1] == {"default": 6, "min": 0, "max": 64, "step": 1}
    assert VAEEncodeForInpaint.RETURN_TYPES == ("LATENT",)
    assert VAEEncodeForInpaint.FUNCTION == "encode"
    assert VAEEncodeForInpaint.CATEGORY == "latent/inpaint"


def test_its_key_does_not_hide_behind_comfyuis_own_node() -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert not NODE_CLASS_MAPPINGS.keys() & {"VAEEncodeForInpaint", "VAEEncode"}


def test_one_mask_for_many_images_stays_one(vae: Comfy) -> None:
    latent = call(vae, photo(3), box(1))
    assert latent["samples"].shape == (3, 4, 4, 5)
    assert latent["noise_mask"].shape == (1, 1, 32, 40)


def test_one_image_under_many_masks(vae: Comfy) -> None:
    latent = call(vae, photo(), torch.stack([box(), 0 * box()]))
    assert latent["samples"].shape == (2, 4, 4, 5)
    torch.testing.assert_close(latent["samples"][:1], call(vae, photo(), box())["samples"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grow", [0, 1, 64])
def test_the_whole_range_of_growth(vae: Comfy, grow: int) -> None:
    point = torch.zeros(1, 96, 96)
    point[0, 48, 48] = 1
    grown = call(vae, torch.rand(1, 96, 96, 3), point, grow)["noise_mask"]
    assert grown.sum() == max(grow, 1) ** 2


def test_the_overshoot_of_a_bicubic_resize_is_clipped(vae: Comfy) -> None:
    wild = 1.2 * photo() - 0.1
    expected = call(vae, wild.clamp(0, 1), box())
    found = call(vae, wild, 1.2 * box() - 0.1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_vae_gives_the_latents_of_a_video(vae: Comfy, frames: int) -> None:
    """(B, C, T, h, w), as ComfyUI's own node has them and its decoder takes them: B = 1, the images are the frames."""
    latent, images = call(VideoComfy(), photo(frames), box(frames)), call(vae, photo(frames), box(frames))
    expected = images["samples"][::4].movedim(0, 1).unsqueeze(0)
    assert latent["samples"].shape == (1, 4, (frames + 3) // 4, 4, 5)
    torch.testing.assert_close(latent["samples"], expected, rtol=0, atol=1e-6)
    assert torch.equal(latent["noise_mask"], images["noise_mask"])


@pytest.mark.parametrize("family", ["qwen", "wan21"])
def test_a_video_vae_of_diffusers_too(family: str) -> None:
    latent = call(tiny_vaes.build(family), torch.rand(5, 32, 32, 3), torch.ones(1, 32, 32))
    assert latent["samples"].shape[2:] == (2, 4, 4)
    first = call(tiny_vaes.build(family), torch.full((1, 32, 32, 3), 0.5), torch.zeros(1, 32, 32))["samples"]
    torch.testing.assert_close(
        latent["samples"][:, :, :1], first, rtol=0, atol=1e-5
    )  # all grey; the first sees no other


def test_a_vae_that_overflows_is_named() -> None:
    message = r"vae: expected finite latents, got NaN .* from Overflowing \(.*, float16\); .* --fp32-vae"
    with pytest.raises(ValueError, match=message):
        call(Overflowing(), photo(), box())


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (photo() * torch.nan, box(), "pixels must lie in 0..1 without NaN"),
        (photo(), box() * torch.nan, "mask must lie in 0..1 without NaN"),
        (photo()[..., :1], box(), r"pixels must be \(B, 3 or 4, H, W\), got \(1, 1, 32, 40\)"),
        (photo()[:, :7], box(), "smaller than one latent cell"),
        (photo(2), box(3), "the same batch, or one of them 1; got 2 and 3"),
    ],
)
def test_bad_input_is_refused(vae: Comfy, pixels: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(vae, pixels, mask)


@pytest.mark.parametrize("case", CASES)
def test_the_benchmarks_reference_is_the_golden_node(vae: Comfy, case: str) -> None:
    pixels = GOLDEN[f"{case}.pixels"].float() / 255
    image, noise_mask = reference_node.prepare(pixels, GOLDEN[f"{case}.mask"], int(GOLDEN[f"{case}.grow"]))
    assert torch.equal(noise_mask, GOLDEN[f"{case}.noise_mask"].float())
    torch.testing.assert_close(vae.encode(image), GOLDEN[f"{case}.samples"], rtol=0, atol=1e-5)


# Loads custom_nodes/<folder> as ComfyUI does: a module named after its path. An installed package must play no part.
IN_COMFYUI = """
import importlib.util, sys
import torch

path = sys.argv[1]
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)

class VAE:
    downscale_ratio = 8
    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)

(node,) = module.NODE_CLASS_MAPPINGS.values()
with torch.inference_mode():
    (latent,) = node().encode(VAE(), torch.ones(1, 64, 64, 3), torch.ones(1, 64, 64), 6)
assert (latent["samples"] == 0.5).all() and latent["samples"].shape == (1, 3, 8, 8)
assert latent["noise_mask"].all()
own = [module.__file__ for name, module in sys.modules.items() if name.startswith("inpaint_module")]
assert len(own) > 5 and all(file.startswith(path) for file in own), own
heavy = {"diffusers", "lightning", "torchvision", "webdataset", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_package_works_under_custom_nodes(tmp_path: Path) -> None:
    target = tmp_path / "custom_nodes" / "my.inpaint-nodes"
    shutil.copytree(Path(inpaint_module.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    # -P and -E: neither the current folder nor PYTHONPATH; -W error: importing and encoding warn of nothing
    command = [sys.executable, "-P", "-E", "-W", "error", "-c", IN_COMFYUI, str(target)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
