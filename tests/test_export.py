"""From a checkpoint to folders that diffusers loads; the whole way of each base model is in test_base_models.py."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from unittest import mock

import pytest
import tiny_folders
import tiny_pipelines as tiny
import torch
from diffusers import DiffusionPipeline, FluxFillPipeline, StableDiffusionInpaintPipeline
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from tiny_folders import CONFIGS
from tiny_models import tiny_batch, tiny_module
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inpaint_module import InpaintEncoder, load_vae
from inpaint_module.base_models import (
    FluxCall,
    FluxFillLayout,
    FluxText,
    FrozenTextEncoder,
    LatentDiffusionLayout,
    Layout,
    LoRA,
    ModelParts,
    StableDiffusionLayout,
    StableDiffusionText,
    TextConditioning,
    add_lora,
    grow_input_channels,
    load_denoiser,
    load_scheduler,
)
from inpaint_module.export import COMFYUI_FILE, LORA_FILE, RECORD, export, main
from inpaint_module.exported_files import run_of
from inpaint_module.frozen_vae import FrozenVAE
from inpaint_module.trained import load_weights, module_from_configs
from inpaint_module.training.averages import EMA
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.run_folder import METRICS, MetricRow, write_metrics
from inpaint_module.training.run_folder import RECORD as RUN_RECORD

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*available but not used.*"),
]
SAMPLE = tiny_batch(2, 32, 48) | {"caption": ["the cat", "a dog"]}


def stable_diffusion(denoiser: nn.Module, layout: Layout | None = None, **options: int) -> InpaintDiffusion:
    layout = layout or StableDiffusionLayout()
    encoder = InpaintEncoder(
        tiny_folders.autoencoder(4, 0.18215), options.pop("grow_mask_by", 0), fill=layout.fill, normalize=True
    )
    text = StableDiffusionText(FrozenTextEncoder(tiny_folders.clip_tokenizer(), tiny_folders.clip()))
    return InpaintDiffusion(ModelParts(denoiser, encoder, layout, tiny_folders.ddim(), conditioning=text))


def flux(denoiser: nn.Module) -> InpaintDiffusion:
    encoder = InpaintEncoder(tiny_folders.autoencoder(16, 0.3611, 0.1159), 0, normalize=True)
    clip = FrozenTextEncoder(tiny_folders.clip_tokenizer(), tiny_folders.clip())
    text = FluxText(clip, FrozenTextEncoder(tiny_folders.t5_tokenizer(), tiny_folders.t5(), 16), guidance=None)
    scheduler = tiny_folders.flux().scheduler
    return InpaintDiffusion(
        ModelParts(denoiser, encoder, FluxFillLayout(), scheduler, conditioning=text, call=FluxCall())
    )


def unet(in_channels: int) -> nn.Module:
    return tiny.unet(in_channels, sample_size=64)


def moved(denoiser: nn.Module) -> nn.Module:
    """With what trains somewhere else than at its start."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return denoiser


def loss_with(module: InpaintDiffusion, denoiser: nn.Module) -> Tensor:
    module = copy.copy(module)
    module._modules = {**module._modules, "denoiser": denoiser}
    return module.loss(SAMPLE)


def fit(module: InpaintDiffusion, folder: Path, *callbacks: Callback) -> Path:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        callbacks=[*callbacks, ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[VerifiedCheckpointIO()],
    )
    trainer.fit(module, DataLoader([SAMPLE, SAMPLE], batch_size=None), DataLoader([SAMPLE], batch_size=None))
    return folder / "last.ckpt"


def test_averaged_weights_unless_the_last_steps_are_wanted(tmp_path: Path) -> None:
    module = tiny_module()
    start = copy.deepcopy(module.denoiser.state_dict())
    path = fit(module, tmp_path / "run", EMA(0.5))
    state = VerifiedCheckpointIO().load_checkpoint(path)
    averaged, last = tiny_module(), tiny_module()
    load_weights(averaged, path)
    load_weights(last, path, averaged=False)
    for ours, saved in ((averaged, state["state_dict"]), (last, state["current_model_state"])):
        weights = ours.denoiser.state_dict()
        assert all(torch.equal(weights[name], saved[f"denoiser.{name}"]) for name in weights)
    name = "conv_in.weight"
    between = [w.denoiser.state_dict()[name] - start[name] for w in (averaged, last)]
    assert 0 < between[0].norm() < between[1].norm()


def test_without_an_average_both_are_the_last_steps(tmp_path: Path) -> None:
    module = tiny_module()
    path = fit(module, tmp_path / "run")
    for averaged in (True, False):
        loaded = tiny_module()
        load_weights(loaded, path, averaged=averaged)
        assert torch.equal(loaded.denoiser.conv_in.weight, module.denoiser.conv_in.weight)


def test_a_model_without_text_is_exported_in_parts(tmp_path: Path) -> None:
    module = tiny_module()
    export(module, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"unet", "vae", "scheduler", RECORD, "README.md"}
    again = InpaintDiffusion(
        ModelParts(
            load_denoiser(str(tmp_path / "out"), subfolder="unet"),
            InpaintEncoder(load_vae(str(tmp_path / "out"), "vae"), normalize=True),
            StableDiffusionLayout("max"),
            load_scheduler(str(tmp_path / "out")),
        )
    )
    assert torch.equal(again.loss(SAMPLE), module.loss(SAMPLE))
    assert again.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("way", ["beside", "fused", "alone"])
def test_a_pipeline_with_the_lora_answers_as_in_training(way: str, tmp_path: Path) -> None:
    module = stable_diffusion(moved(add_lora(unet(9), LoRA(2, alpha=5))))
    expected = module.loss(SAMPLE)
    assert not torch.isclose(expected, loss_with(module, unet(9)), rtol=1e-3)
    export(module, tmp_path / "out", fuse=way == "fused", lora_only=way == "alone")
    assert (tmp_path / "out" / LORA_FILE).is_file() is (way != "fused")
    if way == "alone":
        assert {path.name for path in (tmp_path / "out").iterdir()} == {LORA_FILE, "comfyui", RECORD, "README.md"}
        pipeline = tiny_folders.stable_diffusion(9)
    else:
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out")
    if way != "fused":
        pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(loss_with(module, pipeline.unet), expected, rtol=1e-5, atol=1e-6)


def test_comfyuis_names_say_the_same(tmp_path: Path) -> None:
    module = stable_diffusion(moved(add_lora(unet(9), LoRA(2, alpha=5))))
    expected = module.loss(SAMPLE)
    export(module, tmp_path / "out", lora_only=True)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight"
    assert name in load_file(tmp_path / "out" / COMFYUI_FILE)
    pipeline = tiny_folders.stable_diffusion(9)
    pipeline.load_lora_weights(tmp_path / "out" / COMFYUI_FILE)
    torch.testing.assert_close(loss_with(module, pipeline.unet), expected, rtol=1e-5, atol=1e-6)


def test_a_transformers_lora(tmp_path: Path) -> None:
    module = flux(moved(add_lora(tiny.flux_transformer(384, 64), LoRA(2))))
    expected = module.loss(SAMPLE)
    export(module, tmp_path / "out")
    plain, comfyui = (load_file(tmp_path / "out" / name) for name in (LORA_FILE, COMFYUI_FILE))
    assert plain.keys() == comfyui.keys()  # ComfyUI knows a transformer's by diffusers' names
    assert all(torch.equal(plain[name], comfyui[name]) for name in plain)
    pipeline = FluxFillPipeline.from_pretrained(tmp_path / "out")
    pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(loss_with(module, pipeline.transformer), expected, rtol=1e-5, atol=1e-6)


def test_a_grown_models_first_layer_goes_with_its_lora(tmp_path: Path) -> None:
    base = grow_input_channels(unet(4).to(torch.bfloat16), 9)
    module = stable_diffusion(moved(add_lora(base, LoRA(2))))
    with pytest.raises(ValueError, match="lora_only: expected a first layer as the base model's, got one that was"):
        export(module, tmp_path / "out", lora_only=True)
    first = module.denoiser.conv_in.weight.detach().clone()
    export(module, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert torch.equal(saved["conv_in.weight"], first.to(torch.bfloat16))
    assert not any("lora" in name or "base_layer" in name for name in saved)


def test_dtype_of_the_weights(tmp_path: Path) -> None:
    export(stable_diffusion(unet(9)), tmp_path / "out", dtype="float16")
    saved = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float16}
    vae = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in vae.values()} == {torch.float32}


def test_the_record_says_dtypes_differences_and_places(tmp_path: Path) -> None:
    module = stable_diffusion(moved(add_lora(unet(9).to(torch.bfloat16), LoRA(2))))
    export(module, tmp_path / "out", dtype="float16")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    parts = {"vae": "float32", "text_encoder": "float32"}
    trained, written = {"denoiser": "bfloat16"} | parts, {"denoiser": "float16"} | parts
    assert record["dtypes"] == {"trained": trained, "written": written}
    assert record["pipeline"] == "StableDiffusionInpaintPipeline"
    assert [each.partition(" ")[0] for each in record["differences"]] == ["trained"] * 2  # posterior, dtype
    files = record["comfyui"]["files"]
    assert files.pop(COMFYUI_FILE) == "models/loras"
    assert files["unet/diffusion_pytorch_model.safetensors"] == "models/diffusion_models"
    assert all((tmp_path / "out" / name).is_file() for name in files)
    assert record["comfyui"]["limits"]  # no U-Net as small as this


def test_the_model_card_says_how_and_with_what(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "grids").mkdir(parents=True)
    (run / "grids" / "step_000001.png").write_bytes(b"old")
    (run / "grids" / "step_000002.png").write_bytes(b"new")
    record = {"command": ["inpaint", "fit", "--config", "a b.yaml", "--logger.api_key=abc"], "versions": {"torch": "2"}}
    (run / RUN_RECORD).write_text(json.dumps(record | {"device": "cpu"}))
    write_metrics(run / METRICS, [MetricRow(1, "val/psnr_inside", 10.0), MetricRow(2, "val/psnr_inside", 12.5)])
    (run / "config.yaml").write_text("# lightning.pytorch==2\nmodel: {seed: 7}\ntoken: hf_secret\n")
    assert run_of(run / "checkpoints" / "last.ckpt") == run_of(tmp_path / "x", [run / "config.yaml"]) == run
    assert run_of(tmp_path / "x" / "last.ckpt") is None
    module = stable_diffusion(moved(add_lora(unet(9), LoRA(2))))
    module.base.path = "some/model"
    export(module, tmp_path / "out", run_folder=run)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    for part in (
        "base_model: some/model\n",
        'StableDiffusionInpaintPipeline.from_pretrained("THIS_FOLDER")\npipeline.load_lora_weights("THIS_FOLDER")',
        "inpaint fit --config 'a b.yaml' '--logger.api_key=***'",
        "| val/psnr_inside | 2 | 12.5 |",
        "(pictures/step_000002.png)",
        "seed: 7",
        "- trained with a VAE in float32",
    ):
        assert part in card
    assert "abc" not in card
    assert "hf_secret" not in card
    assert (tmp_path / "out" / "pictures" / "step_000002.png").read_bytes() == b"new"
    module.base.path = str(tmp_path)  # the folders of a machine are its own
    export(stable_diffusion(unet(9)), tmp_path / "plain")
    plain = (tmp_path / "plain" / "README.md").read_text()
    assert "## Training" not in plain
    assert str(tmp_path) not in plain


def test_the_running_encoder_is_left_as_it_is(tmp_path: Path) -> None:
    module = stable_diffusion(unet(9).to(memory_format=torch.channels_last))
    before = module.loss(SAMPLE)
    export(module, tmp_path / "out")
    assert module.encoder.vae.module.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module.loss(SAMPLE), before)


def test_what_a_pipeline_will_do_otherwise_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="trained with a grown mask"):
        export(stable_diffusion(unet(9), grow_mask_by=6), tmp_path / "grown")
    with pytest.warns(UserWarning, match="trained with reduce: max, but diffusers' pipelines take nearest"):
        export(stable_diffusion(unet(9), StableDiffusionLayout("max")), tmp_path / "max")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(flux(tiny.flux_transformer(384, 64)), tmp_path / "flux")
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "flux"), FluxFillPipeline)


def test_mistakes_are_named(tmp_path: Path) -> None:
    plain, with_lora = stable_diffusion(unet(9)), stable_diffusion(add_lora(unet(9), LoRA(2)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match=r"out: expected a new or an empty folder, got .*full"):
        export(plain, tmp_path / "full")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got 'half'"):
        export(plain, tmp_path / "out", dtype="half")
    with pytest.raises(ValueError, match="fuse and lora_only: expected a denoiser with LoRA, got one without"):
        export(plain, tmp_path / "out", fuse=True)
    with pytest.raises(ValueError, match="fuse and lora_only: expected one of them, got both"):
        export(with_lora, tmp_path / "out", fuse=True, lora_only=True)
    with pytest.raises(ValueError, match=r"Pipeline as StableDiffusionLayout does, .*; got LatentDiffusionLayout"):
        export(stable_diffusion(unet(9), LatentDiffusionLayout()), tmp_path / "out")
    with_lora.base.conditioning = with_lora.conditioning = tiny_module().conditioning
    assert not isinstance(with_lora.conditioning, TextConditioning)
    with pytest.raises(ValueError, match="fuse: expected true for a model without text encoders"):
        export(with_lora, tmp_path / "out")
    with (
        mock.patch.dict(plain.encoder.__dict__, {"vae": mock.Mock(spec=FrozenVAE)}),
        pytest.raises(ValueError, match="vae: expected an autoencoder of diffusers, got Mock"),
    ):
        export(plain, tmp_path / "out")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    configs = [CONFIGS / "quickstart.yaml", tiny_folders.config_over("sd15", tmp_path), CONFIGS / "lora.yaml"]
    option = "--model.base.lora.rank=3"
    module = module_from_configs(configs, [option, "--model.base.dtype=float32"])
    moved(module.denoiser)
    checkpoint = fit(module, tmp_path / "run")
    named = [f"--config={config}" for config in configs]
    main([str(tmp_path / "out"), *named, f"--checkpoint={checkpoint}", "--model.base.dtype=float32", option])
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out'}" in said
    assert "unlike training: trained with a VAE in float32: load the pipeline with torch_dtype=torch.float32" in said
    assert "ComfyUI: comfyui/lora.safetensors into models/loras" in said
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out")
    pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(loss_with(module, pipeline.unet), module.loss(SAMPLE), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected the weights of the checkpoint's model, got others: .* differ"):
        load_weights(stable_diffusion(unet(9)), checkpoint)


def test_configs_without_such_a_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    (tmp_path / "empty.yaml").write_text("trainer: {}\n")
    with pytest.raises(ValueError, match=r"config: expected a model in .*empty.yaml, got none"):
        module_from_configs([tmp_path / "empty.yaml"])
    (tmp_path / "other.yaml").write_text("model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}\n")
    with pytest.raises(ValueError, match="config: expected the model to be an InpaintDiffusion, got BoringModel"):
        module_from_configs([tmp_path / "other.yaml"])
