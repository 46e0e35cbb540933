"""Base models in a single file of the original names: equal weights, trained, or refused by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_folders as tiny
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLInpaintPipeline
from original_names import original
from quiet_trainer import QUIET
from safetensors.torch import save_file
from tiny_models import tiny_batch
from tiny_pipelines import sd3_transformer
from tiny_pipelines import unet as unet_of
from torch import Tensor, nn

from inpaint_module.base_models import BaseModel
from inpaint_module.base_models.single_file import CACHE, folder_of
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = QUIET


def stable_diffusion_2(prediction: str = "epsilon") -> DiffusionPipeline:
    """2.x: linear projections in the U-Net, an OpenCLIP."""
    pipeline = tiny.stable_diffusion()
    unet, text = unet_of(4, sample_size=64, use_linear_projection=True), tiny.clip(hidden_act="gelu")
    return type(pipeline)(
        **pipeline.components
        | {"unet": unet, "text_encoder": text, "scheduler": tiny.ddim(prediction_type=prediction)},
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> DiffusionPipeline:
    """Its text encoders of two widths, by which diffusers tells them apart in a file."""
    second = tiny.clip(12, projected=True, seed=1, hidden_act="gelu")
    parts = tiny.stable_diffusion_xl().components | {"text_encoder": tiny.clip(4), "text_encoder_2": second}
    return StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)


def stable_diffusion_3() -> DiffusionPipeline:
    """Likewise; the projection of the first is the identity, which files leave out."""
    pipeline = tiny.stable_diffusion_3(num_layers=2)
    first, second = (tiny.clip(width, projected=True, seed=width, projection=width) for width in (4, 12))
    with torch.no_grad():
        first.text_projection.weight.copy_(torch.eye(4))
    parts = {"text_encoder": first, "text_encoder_2": second, "transformer": sd3_transformer(num_layers=2)}
    return type(pipeline)(**pipeline.components | parts)


BASES: dict[str, tuple[Callable[[], DiffusionPipeline], bool]] = {  # whole, or without text encoders
    "sd15": (tiny.stable_diffusion, True),
    "sd2": (stable_diffusion_2, True),
    "sd2_v": (lambda: stable_diffusion_2("v_prediction"), True),
    "sdxl": (stable_diffusion_xl, True),
    "sdxl_no_text": (tiny.stable_diffusion_xl, False),
    "sd3": (stable_diffusion_3, True),
    "flux": (tiny.flux, False),
    "flux_whole": (tiny.flux, True),
}


@pytest.fixture(autouse=True)
def narrow_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers splits Flux's layers at a width of 3072 whatever the config says; here at that of the tiny one."""
    split = torch.split

    def at_its_width(tensor: Tensor, sizes: Any, dim: int = 0) -> tuple[Tensor, ...]:
        width = len(tensor) // 7
        return split(tensor, (width, width, width, 4 * width) if sizes == (3072, 3072, 3072, 12288) else sizes, dim)

    monkeypatch.setattr(torch, "split", at_its_width)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "models"))
    return tmp_path / "models"


def written(folder: Path, name: str, *, weights: str = "") -> tuple[Path, str, Any]:
    """A checkpoint, the folder of configs beside it with the weights of no part but those, and the pipeline."""
    make, text = BASES[name]
    pipeline = make()
    config = tiny.saved(pipeline, folder / f"{name}_configs")
    for file in Path(config).rglob("*.safetensors"):
        if not weights or not file.parent.name.startswith(weights):
            file.unlink()
    save_file(original(pipeline, text=text), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors", config, pipeline


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


SLOW = ("sd2", "sdxl_no_text", "flux")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BASES if name != "sd15"]
)
def test_a_file_is_the_pipeline_that_it_was_written_from(name: str, tmp_path: Path) -> None:
    file, config, pipeline = written(tmp_path, name, weights="" if BASES[name][1] else "text_encoder")
    base = BaseModel(str(file), "plain", config=config)
    assert_equal(base.denoiser, pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer)
    assert_equal(base.encoder.vae.module, pipeline.vae)
    encoders = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
    for mine, theirs in zip(base.conditioning.models(), encoders, strict=True):
        assert_equal(mine, theirs)
    assert base.scheduler.config.get("prediction_type") == pipeline.scheduler.config.get("prediction_type")
    assert trained(InpaintDiffusion(base), steps=2)


def trained(module: InpaintDiffusion, steps: int) -> bool:
    """Whether the loss of one batch falls."""
    optimizer = torch.optim.SGD(module.optimized(), lr=1e-2)
    batch: Any = {**tiny_batch(2, 64, 64), "caption": ["a", "the"]}
    losses = []
    for _ in range(steps):
        losses.append(module.loss(batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return bool(losses[-1] < losses[0])


def test_it_grows_and_is_converted_once(tmp_path: Path) -> None:
    file, config, _ = written(tmp_path, "sd15")
    assert trained(InpaintDiffusion(BaseModel(str(file), "channels", config=config)), steps=2)
    made = folder_of(str(file), config)
    times = {path: path.stat().st_mtime_ns for path in Path(made).rglob("*") if path.is_file()}
    assert folder_of(str(file), config) == made
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_ckpt_is_read_without_running_code(tmp_path: Path) -> None:
    file, config, pipeline = written(tmp_path, "sd15")
    state = OrderedDict(original(pipeline))
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "a.ckpt")
    assert_equal(BaseModel(str(tmp_path / "a.ckpt"), "plain", config=config).denoiser, pipeline.unet)
    file.unlink()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {**state, "x": Evil()}}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"base.path: expected weights alone in .*b.ckpt"):
        folder_of(str(tmp_path / "b.ckpt"), config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("held", [[1, 2], {"state_dict": 3}])
def test_a_ckpt_of_something_else_is_named(held: Any, tmp_path: Path) -> None:
    _, config, _ = written(tmp_path, "sd15")
    torch.save(held, tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match=r"base.path: expected weights alone in .*c.ckpt"):
        folder_of(str(tmp_path / "c.ckpt"), config)


def test_other_weights_in_the_folder_beside_are_another_model(tmp_path: Path) -> None:
    """It gives what the file lacks, such as Flux's VAE."""
    file, config, _ = written(tmp_path, "sd15")
    before = folder_of(str(file), config)
    (Path(config) / "vae").mkdir(exist_ok=True)
    (Path(config) / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"other weights")
    assert folder_of(str(file), config) != before


def changed(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    if kind == "scaled":
        return {**state, f"{name.removesuffix('.weight')}.scale_weight": torch.ones(1)}
    if kind == "missing":
        return {each: value for each, value in state.items() if each != name}
    return {**state, name: torch.zeros(3, 3)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("scaled", r"got numbers of few bits with scales beside them, such as .*scale_weight"),
        ("missing", r"base\.(config|path): .*sd15.safetensors"),
        ("shape", r"base.path: cannot read .*sd15.safetensors' as a StableDiffusionInpaintPipeline"),
    ],
)
def test_weights_that_do_not_fit_are_refused(kind: str, message: str, tmp_path: Path, home: Path) -> None:
    file, config, pipeline = written(tmp_path, "sd15")
    save_file(changed(original(pipeline), kind), file)
    with pytest.raises(ValueError, match=message):
        folder_of(str(file), config)
    assert not [path for path in home.glob("*") if path.is_dir()]


def test_another_base_models_configs_are_refused(tmp_path: Path) -> None:
    file, _, _ = written(tmp_path, "sd15")
    _, config, _ = written(tmp_path, "sdxl", weights="text_encoder")
    with pytest.raises(ValueError, match=r"base\.(path|config): .*sdxl_configs"):
        folder_of(str(file), config)


@pytest.mark.slow
def test_what_the_file_says_of_its_training_is_kept(tmp_path: Path) -> None:
    """By two empty tensors, as models of XL that predict v are shared; and SD3's first projection, if it is there."""
    file, config, pipeline = written(tmp_path, "sd15")
    save_file(original(pipeline) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    scheduler: Any = BaseModel(str(file), "plain", config=config).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    file, config, pipeline = written(tmp_path, "sd3")
    projection = {"text_encoders.clip_l.transformer.text_projection.weight": torch.full((4, 4), 2.0)}
    save_file(original(pipeline) | projection, file)
    assert (BaseModel(str(file), "plain", config=config).conditioning.models()[0].text_projection.weight == 2).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_mid.lora_up.weight", r"base.path: expected a base model in .*, got a LoRA .* as base.lora.start"),
        ("blocks.0.weight.absmax", r"base.path: expected plain weights in .*, got numbers of few bits"),
    ],
)
def test_files_of_something_else_are_named(name: str, message: str, tmp_path: Path) -> None:
    _, config, _ = written(tmp_path, "sd15")
    save_file({name: torch.zeros(3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        folder_of(str(tmp_path / "a.safetensors"), config)


def test_float8_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    file, config, pipeline = written(tmp_path, "sd15")
    coarse = {name: value.to(torch.float8_e4m3fn) for name, value in original(pipeline).items()}
    save_file(coarse, file)
    with pytest.warns(UserWarning, match=r"sd15.safetensors' holds float8 weights \(F8_E4M3\)"):
        base = BaseModel(str(file), "plain", config=config, dtype="bfloat16")
    name = "conv_in.weight"
    rounded = pipeline.unet.state_dict()[name].to(torch.float8_e4m3fn).bfloat16()
    assert torch.equal(base.denoiser.state_dict()[name], rounded)


def test_what_is_no_file_or_has_no_configs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base.path: expected a file at .*none.safetensors"):
        folder_of(str(tmp_path / "none.safetensors"), str(tmp_path))
    for name in ("a.gguf", "a.safetensors"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a file that ends in .safetensors or .ckpt, got .*a.gguf"):
        folder_of(str(tmp_path / "a.gguf"))
    with pytest.raises(ValueError, match=r"base.config: expected the local folder of a pipeline .* got None"):
        folder_of(str(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match=r"base.config: expected null with 'some/model'"):
        folder_of("some/model", "folder")
    config = tiny.saved(tiny.stable_diffusion(), tmp_path / "configs")
    with pytest.raises(ValueError, match=r"base.path: expected weights alone in .*a.safetensors"):
        folder_of(str(tmp_path / "a.safetensors"), config)
