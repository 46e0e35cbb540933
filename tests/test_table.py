"""Every base model in every way of training, a row each; `python tests/test_table.py` writes the page's table.

A row trains two steps, goes on after a stop to the bit, is exported, and loaded by the real pipeline, whole and as
LoRA. What the pipelines are fed, and the losses, stand in test_base_models.py, test_plain.py and test_controlnet.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
from alimama_twin import controlnet_of
from quiet_trainer import QUIET
from run_records import finish, launch
from safetensors.torch import load_file
from test_base_models import fit
from tiny_folders import BASES, CONFIGS, CONTROLNET_BASES, PLAIN_BASES, saved
from tiny_models import tiny_batch
from two_ranks import equal

from inpaint_module import base_models
from inpaint_module.base_models import FAMILIES, BaseModel, ControlNetOptions, EncoderOptions, LoRA, family_of
from inpaint_module.base_models.family import WAYS
from inpaint_module.base_models.loading import pipeline_index
from inpaint_module.clean_latents import encode_clean
from inpaint_module.export import export
from inpaint_module.objectives.loss import LossWeights
from inpaint_module.trained import load_weights
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .*not empty"),
    pytest.mark.filterwarnings("ignore:a caption fills all 77 tokens"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*of the installed diffusers (stops|decodes)"),
]
PAGE = Path(base_models.__file__).parent / "README.md"
FOLDERS = BASES | PLAIN_BASES | CONTROLNET_BASES
NAMES = {
    "Stable Diffusion 1.x and 2.x": "sd15",
    "Stable Diffusion XL": "sdxl",
    "Stable Diffusion 3": "sd3",
    "Flux.1": "flux",
    "Flux.2 Klein": "flux2_klein",
    "Qwen-Image": "qwen_image",
    "Qwen-Image-Edit": "qwen_image",
    "Z-Image": "z_image",
    "Chroma": "chroma",
}
OTHERWISE = {("Flux.1", "channels"): "flux_fill", ("Flux.1", "edit"): "flux_kontext_edit"}


def config_of(family: str, way: str) -> str:
    """The name of the config of a row."""
    plain = NAMES[family] if way == "channels" else f"{NAMES[family]}_{way}"
    return OTHERWISE.get((family, way), plain)


ROWS = {config_of(family.name, way): (family, way) for family in FAMILIES for way in family.ways}
CHANNELS = {"flux_controlnet_68": 68}  # of the condition, where a way has several kinds of ControlNets
ROWS |= dict.fromkeys(CHANNELS, ROWS["flux_controlnet"])


def table() -> str:
    """What the page shows: a line for each base model, a column for each way."""
    lines = [f"| base model | {' | '.join(f'`{way}`' for way in WAYS)} |", "|---|" + "---|" * len(WAYS)]
    for family in FAMILIES:
        ways = [family.ways.get(way) for way in WAYS]
        kinds = [[way.pipeline, *(other.pipeline for other in way.others)] if way else [] for way in ways]
        cells = [", ".join(f"`{name.removesuffix('Pipeline')}`" for name in names) for names in kinds]
        lines.append(f"| {family.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_table() -> None:
    assert table() in PAGE.read_text(), "write it anew: python tests/test_table.py"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_a_config_and_a_pipeline(name: str) -> None:
    _, way = ROWS[name]
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"train: {way}" in text
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 12
    assert name in FOLDERS
    served = ROWS[name][0].ways[way].with_channels(CHANNELS.get(name))
    assert hasattr(diffusers, served.pipeline) == (served.home == "diffusers")


def module_of(name: str, folder: str, lora: LoRA | None, controlnet: str | None) -> InpaintDiffusion:
    options: dict[str, Any] = {"lora": lora}
    if controlnet is not None or name in CHANNELS:
        options["controlnet"] = ControlNetOptions(controlnet, channels=CHANNELS.get(name))
    return InpaintDiffusion(BaseModel(folder, train=ROWS[name][1], **options), sampling_steps=2)


FAST = {("sd15_plain", 4)}  # test_base_models.py and test_controlnet.py have rows of the other ways


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        pytest.param(name, rank, marks=[] if (name, rank) in FAST else pytest.mark.slow)
        for name in ROWS
        for rank in (None, 4)
    ],
)
def test_a_row(name: str, rank: int | None, tmp_path: Path) -> None:
    folder = saved(FOLDERS[name](), tmp_path / "base")
    assert family_of(pipeline_index(folder), folder) is ROWS[name][0]
    lora, controlnet = None if rank is None else LoRA(rank), None
    beside = ROWS[name][1] == "controlnet"
    if lora is not None and beside:  # of one that has been trained
        export(module_of(name, folder, None, None), tmp_path / "controlnet")
        controlnet = str(tmp_path / "controlnet")
    once, again = (module_of(name, folder, lora, controlnet) for _ in range(2))
    before = {key: value.clone() for key, value in once.denoiser.state_dict().items()}
    fit(once, tmp_path / "once", 2, ema=False)
    first = fit(module_of(name, folder, lora, controlnet), tmp_path / "twice", 1, ema=False)
    fit(again, tmp_path / "twice", 2, first, ema=False)
    weights, resumed = once.denoiser.state_dict(), again.denoiser.state_dict()
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
    assert any(not torch.equal(before[key], weights[key]) for key in weights)
    export(once, tmp_path / "out", fuse=lora is not None and beside)
    if name in CHANNELS:
        assert controlnet_of(tmp_path / "out")
        return
    kind = getattr(diffusers, once.base.pipeline)
    if beside:
        loaded = diffusers.AutoModel.from_pretrained(str(tmp_path / "out"))
        assert kind.from_pretrained(folder, controlnet=loaded).controlnet is loaded
        return
    pipeline = kind.from_pretrained(tmp_path / "out")
    if lora is not None:
        pipeline.load_lora_weights(tmp_path / "out")
        assert pipeline.get_active_adapters()


def small_batch() -> dict[str, Any]:
    return tiny_batch(2, 32, 48) | {"caption": ["the cat", "a dog"]}


def prepared(name: str, tmp_path: Path, **encoder: Any) -> InpaintDiffusion:
    base = BaseModel(saved(FOLDERS[name](), tmp_path / "base"), train=ROWS[name][1], encoder=EncoderOptions(**encoder))
    return InpaintDiffusion(base, sampling_steps=1)


def test_a_lora_goes_on_beside_buffers_that_are_not_saved(tmp_path: Path) -> None:
    """Such as Chroma's `time_text_embed.mod_proj`."""
    folder = saved(FOLDERS["chroma_plain"](), tmp_path / "base")
    module = module_of("chroma_plain", folder, LoRA(2), None)
    assert "time_text_embed.mod_proj" in dict(module.denoiser.named_buffers())
    assert module.load_state_dict(module.state_dict()).unexpected_keys == []


# a way that sees no masked image, one that sees it in the denoiser, and one that sees it in the ControlNet
SEEING = ["sd15_plain", "flux_kontext_edit", "sd3_controlnet"]


@pytest.mark.parametrize("name", SEEING)
def test_cached_latents_and_weights_of_the_loss(name: str, tmp_path: Path) -> None:
    module, batch = prepared(name, tmp_path), small_batch()
    plain = module.loss(batch)  # type: ignore[arg-type]
    cached = batch | {"latents": encode_clean(module.encoder, batch["image"])}
    torch.testing.assert_close(module.loss(cached), plain)  # type: ignore[arg-type]
    with mock.patch.object(module, "loss_weights", LossWeights(mask=1.0, outside=0.0)):
        inside = module.loss(batch)  # type: ignore[arg-type]
        torch.testing.assert_close(module.loss(cached), inside)  # type: ignore[arg-type]
    with mock.patch.object(module, "loss_weights", LossWeights(mask=0.0, outside=1.0)):
        outside = module.loss(batch)  # type: ignore[arg-type]
    torch.testing.assert_close(inside + outside, plain)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("sd3_controlnet", None),
        ("qwen_image_controlnet", None),
        ("z_image_controlnet", None),
        ("qwen_image_plain", None),
        ("qwen_image_plain", 2),
    ],
)
def test_all_that_trains_has_a_gradient(name: str, rank: int | None, tmp_path: Path) -> None:
    """DDP stops at weights without one."""
    folder = saved(FOLDERS[name](), tmp_path / "base")
    module = module_of(name, folder, None if rank is None else LoRA(rank), None)
    module.loss(small_batch()).backward()  # type: ignore[arg-type]
    trains = {key: weight.grad for key, weight in module.denoiser.named_parameters() if weight.requires_grad}
    assert trains
    assert [key for key, gradient in trains.items() if gradient is None] == []


@pytest.mark.parametrize("name", SEEING)
def test_a_sample_of_the_posterior(name: str, tmp_path: Path) -> None:
    """The same draws for a position in any batch, others for another; cached latents, which are modes, are refused."""
    module, batch = prepared(name, tmp_path, posterior="sample"), small_batch()
    latents, again = module.encode(batch), module.encode(batch)  # type: ignore[arg-type]
    mode = prepared(name, tmp_path / "mode").encode(batch)  # type: ignore[arg-type]
    assert latents.target is not None
    assert mode.target is not None
    assert torch.equal(latents.samples, again.samples)
    assert not torch.allclose(latents.target, mode.target)
    moved = module.encode(batch | {"position": batch["position"] + 7})  # type: ignore[arg-type]
    assert not torch.equal(latents.samples, moved.samples)
    with pytest.raises(ValueError, match=r"encoder.posterior: expected mode with cached latents"):
        module.loss(batch | {"latents": encode_clean(module.encoder, batch["image"])})  # type: ignore[arg-type]


@pytest.mark.slow
def test_each_way_on_two_ranks(tmp_path: Path) -> None:
    """DDP stops at weights that no gradient reaches; both ranks have the same, and a resume goes on to the bit."""
    for name, (_, way) in ROWS.items():
        kinds = ["whole"] if way == "controlnet" else ["whole", "lora"]
        for kind in kinds:
            saved(FOLDERS[name](), tmp_path / "bases" / way / f"{kind}.{name}")
    finish(launch(str(Path(__file__).parent / "two_ranks.py"), str(tmp_path), "ways", folder=tmp_path))
    first, second = (torch.load(tmp_path / "ways" / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == len(second) == sum(1 if way == "controlnet" else 2 for _, way in ROWS.values())
    for name, (in_one_go, resumed, start) in first.items():
        assert equal(in_one_go, resumed), name
        assert equal(in_one_go, second[name][0]), name
        assert not equal(in_one_go, start), name


@pytest.mark.slow
def test_the_average_of_a_controlnets_weights_is_exported(tmp_path: Path) -> None:
    module = prepared("sd15_controlnet", tmp_path)
    checkpoint = fit(module, tmp_path / "run", 2, ema=True)
    averaged = prepared("sd15_controlnet", tmp_path / "again")
    load_weights(averaged, checkpoint)
    last = torch.load(checkpoint, weights_only=True)["current_model_state"]
    export(averaged, tmp_path / "out")
    saved_weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, averaged.denoiser.state_dict()[key]) for key, value in saved_weights.items())
    assert any(not torch.equal(value, last[f"denoiser.{key}"]) for key, value in saved_weights.items())


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition("| base model | `")
    PAGE.write_text(head + table() + rest[rest.index("\n\n") + 1 :])
