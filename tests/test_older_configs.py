"""Configs of before there was a `base`: they become today's."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse._util import import_object
from lightning import LightningDataModule

from datamodules import DecoderOptions, MaskOptions, OrderOptions, WebDatasetDataModule
from inpaint_module.cli.older_configs import MOVED_DATA, data_settings_of_before, today, today_options
from inpaint_module.cli.parser import read_parts
from inpaint_module.masks import Boxes
from inpaint_module.training.changes import changes

CALLBACKS = ("EMA", "ImageGrid", "NonFiniteGuard", "PredictionWriter", "RunRecord", "Throughput")
OLD = """
model:
  class_path: inpaint_module.lightning_module.InpaintDiffusion
  init_args:
    encoder: {class_path: inpaint_module.InpaintEncoder, init_args: {grow_mask_by: 6}}
    layout: {class_path: inpaint_module.layouts.StableDiffusionLayout, init_args: {reduce: max}}
    denoiser: {class_path: inpaint_module.denoisers.models.new_model, init_args: {class_name: UNet2DModel}}
    scheduler: {class_path: diffusers.DDIMScheduler}
    call: {class_path: inpaint_module.denoisers.transformer_calls.FluxCall}
    seed: 3
"""
NEW = """
model:
  class_path: inpaint_module.InpaintDiffusion
  init_args:
    base:
      class_path: inpaint_module.base_models.ModelParts
      init_args:
        encoder: {class_path: inpaint_module.InpaintEncoder, init_args: {grow_mask_by: 6}}
        layout: {class_path: inpaint_module.base_models.StableDiffusionLayout, init_args: {reduce: max}}
        denoiser: {class_path: inpaint_module.base_models.new_model, init_args: {class_name: UNet2DModel}}
        scheduler: {class_path: diffusers.DDIMScheduler}
        call: {class_path: inpaint_module.base_models.FluxCall}
    seed: 3
"""


def test_a_whole_config() -> None:
    assert today(yaml.safe_load(OLD)) == yaml.safe_load(NEW)
    assert today(yaml.safe_load(NEW)) == yaml.safe_load(NEW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"model": {"init_args": {"encoder": {"init_args": {"posterior": "sample"}}}}},
            {"model": {"init_args": {"base": {"init_args": {"encoder": {"init_args": {"posterior": "sample"}}}}}}},
        ),
        (
            {"model": {"init_args": {"base": {"path": "some/model"}}}},
            {
                "model": {
                    "init_args": {
                        "base": {
                            "class_path": "inpaint_module.base_models.BaseModel",
                            "init_args": {"path": "some/model"},
                        }
                    }
                }
            },
        ),
        (
            {"model": {"init_args": {"base": {"dtype": "float32"}}}},
            {"model": {"init_args": {"base": {"dtype": "float32"}}}},
        ),
        ({"data": {"init_args": {"seed": 1}}}, {"data": {"init_args": {"seed": 1}}}),
        (
            {"model": {"class_path": "other.Module", "init_args": {"encoder": 1}}},
            {"model": {"class_path": "other.Module", "init_args": {"encoder": 1}}},
        ),
    ],
    ids=["an overlay", "a base of today", "part of one", "no model", "another class"],
)
def test_parts_of_configs(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert today(old) == new


def test_options() -> None:
    old = ["--model.encoder.posterior=sample", "--model.init_args.denoiser=null", "--model.encoders=1", "--data.seed=1"]
    new = ["--model.base.encoder.posterior=sample", "--model.base.denoiser=null", "--model.encoders=1", "--data.seed=1"]
    assert today_options(old) == new


# What the data module took at its top before it had parts
FLAT: dict[str, Any] = {"train_shards": "a", "flip": 0.1, "window": 3, "mask_sources": [], "allow_empty_masks": False}
NESTED: dict[str, Any] = {
    "train_shards": "a",
    "decoder": {"flip": 0.1},
    "order": {"window": 3},
    "masks": {"sources": [], "allow_empty": False},
}
PARTS = {name: each.default for name, each in inspect.signature(WebDatasetDataModule.__init__).parameters.items()}


@pytest.mark.parametrize("place", MOVED_DATA.values())
def test_each_argument_that_moved_is_one_of_its_part(place: str) -> None:
    part, _, name = place.partition(".")
    assert name in {each.name for each in fields(PARTS[part])}


def test_the_data_module_takes_at_most_twelve_arguments_all_of_them_in_the_readme() -> None:
    assert len(PARTS) - 1 <= 12
    written = (
        (Path(__file__).parents[1] / "datamodules/README.md").read_text().partition("```yaml")[2].partition("```")[0]
    )
    known = yaml.safe_load(written)["data"]["init_args"]
    assert set(known) == set(PARTS) - {"self"}
    for part in ("order", "decoder", "masks", "loading"):
        assert set(known[part]) == {each.name for each in fields(PARTS[part])}


def test_a_config_of_flat_data() -> None:
    ours = {"class_path": "datamodules.WebDatasetDataModule"}
    assert today({"data": ours | {"init_args": FLAT}}) == {"data": ours | {"init_args": NESTED}}
    assert today({"data": {"init_args": FLAT}}) == {"data": {"init_args": NESTED}}
    assert today({"data": FLAT}) == {"data": NESTED} == today({"data": NESTED})
    theirs = {"data": {"class_path": "mine.Data", "init_args": FLAT}}
    assert today(theirs) == theirs
    assert today({"data": FLAT}, "mine.Data") == {"data": FLAT}
    with pytest.raises(ValueError, match=r"data\.flip: expected it in data\.decoder\.flip alone, .* got both"):
        today({"data": {"flip": 0.1, "decoder": {"flip": 0.2}}})
    assert today({"data": {"flip": 0.1, "decoder": {"min_scale": 1.0}}})["data"]["decoder"].keys() == {
        "flip",
        "min_scale",
    }


class OwnData(WebDatasetDataModule):
    """Someone's own, which has a window of its own."""

    def __init__(self, window: int = 1, **options: Any) -> None:
        super().__init__(**options)


def test_a_data_module_made_of_ours() -> None:
    own = {"class_path": f"{__name__}.OwnData"}
    moved = {"decoder": {"flip": 0.1}, "window": 3}
    assert today({"data": own | {"init_args": {"flip": 0.1, "window": 3}}}) == {"data": own | {"init_args": moved}}
    options = ["--data.flip=0.1", "--data.window=3"]
    assert today_options(options, own["class_path"]) == ["--data.decoder.flip=0.1", "--data.window=3"]
    assert today_options(options, "no.such.Class") == options


def test_options_of_flat_data() -> None:
    old = [
        "--data.flip=0.1",
        "--data.init_args.window",
        "3",
        "--data.mask_sources+=x",
        "--data.mask_sources.inverted=1",
    ]
    new = ["--data.decoder.flip=0.1", "--data.order.window", "3", "--data.masks.sources+=x"]
    assert today_options(old) == [*new, "--data.masks.sources.inverted=1"]
    assert today_options(old, "mine.Data") == old
    assert today_options([*old, "--data", "mine.Data"])[:-2] == old
    assert today_options(["--data.batch_size=2", "--data.flipped=1"]) == ["--data.batch_size=2", "--data.flipped=1"]


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_file_of_flat_data_as_an_option(tmp_path: Path, equals: bool, named: bool) -> None:
    arguments: dict[str, Any] = {"train_shards": "a", "flip": 0.25, "window": 4}
    content = {"class_path": "datamodules.WebDatasetDataModule", "init_args": arguments} if named else arguments
    now: dict[str, Any] = {"train_shards": "a", "order": {"window": 4}, "decoder": {"flip": 0.25}}
    wanted = content | {"init_args": now} if named else now
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content))
    option = [f"--data={tmp_path / 'old.yaml'}"] if equals else ["--data", str(tmp_path / "old.yaml")]
    found = today_options([*option, "--data.min_scale=1"], "datamodules.WebDatasetDataModule")
    assert found[-1] == "--data.decoder.min_scale=1"
    assert yaml.safe_load(found[-2].removeprefix("--data=")) == wanted
    assert found[:-2] == [] if equals else ["--data"]
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(wanted))
    for same in ([f"--data={tmp_path / 'new.yaml'}"], ["--data", "mine.Data"], ["--data"]):
        assert today_options(same, "datamodules.WebDatasetDataModule") == same
    with pytest.raises(
        ValueError, match=r"--data missing.yaml: expected a YAML file, or a class, found no such file in"
    ):
        today_options(["--data", "missing.yaml"])


def test_a_model_of_before_in_a_file_as_an_option(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(yaml.safe_load(OLD)["model"]))
    (option, found) = today_options(["--model", str(tmp_path / "model.yaml")])
    assert option == "--model"
    assert yaml.safe_load(found) == yaml.safe_load(NEW)["model"]


def test_calls_with_flat_arguments(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"batch_size": 1, "image_size": 8, "mask_generator": Boxes()}
    with caplog.at_level("INFO"):
        data = WebDatasetDataModule(
            "a", **settings, window=5, flip=0.25, own_mask_probability=0.5, bucket_max_aspect=3.0
        )
    assert data.order == OrderOptions(window=5, bucket_max_aspect=3.0)
    assert (data.train_decoder.options, data.masks) == (DecoderOptions(flip=0.25), MaskOptions(share=0.5))
    assert re.search(
        r"data\.window is data\.order\.window now, .*own_mask_probability is data\.masks\.share", caplog.text
    )
    with pytest.raises(ValueError, match=r"flip: expected it in decoder=DecoderOptions\(flip=\.\.\.\), .* got both"):
        WebDatasetDataModule("a", **settings, flip=0.0, decoder=DecoderOptions())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="flipped"):
        WebDatasetDataModule("a", **settings, flipped=0.0)  # type: ignore[call-arg]


def test_overlays_and_options_over_a_file_of_flat_data(tmp_path: Path) -> None:
    data = {"class_path": "datamodules.WebDatasetDataModule", "init_args": {**FLAT, "batch_size": 1, "image_size": 8}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"data": data}))
    (tmp_path / "over.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"decoder": {"min_scale": 1.0}}}}))
    files = [tmp_path / "old.yaml", tmp_path / "over.yaml"]
    found = read_parts(files, ["--data.own_mask_probability=0.5"], data=LightningDataModule).data.init_args
    assert (found.decoder.flip, found.decoder.min_scale, found.order.window, found.masks.share) == (0.1, 1.0, 3, 0.5)
    assert data_settings_of_before(found.as_dict())["flip"] == 0.1
    assert data_settings_of_before({"seed": 1, "masks": {"share": 0.5}}) == {"seed": 1, "own_mask_probability": 0.5}


def test_a_setting_that_moved_has_not_changed() -> None:
    ours = {"data": "datamodules.WebDatasetDataModule"}
    before = ours | {"data.flip": "0.5", "data.window": "8", "data.mask_sources.FileMask.inverted": "True"}
    now = ours | {"data.decoder.flip": "0.5", "data.order.window": "4", "data.masks.sources.FileMask.inverted": "True"}
    assert list(map(str, changes(before, now))) == ["data.order.window: 8 -> 4"]
    theirs = {"data": "mine.Data", "data.flip": "0.5"}
    assert list(map(str, changes(theirs, theirs | {"data.flip": "0.1"}))) == ["data.flip: 0.5 -> 0.1"]


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("datamodules.own_masks.FileMask", "datamodules.decode.FileMask"),
        ("datamodules.own_masks.coco_masks.CocoMask", "datamodules.decode.CocoMask"),
        ("datamodules.data_counters.DataCounters", "datamodules.DataCounters"),
        ("datamodules.samples.Samples", "datamodules.Samples"),
        ("datamodules.samples.FileMask", "datamodules.decode.FileMask"),
        ("inpaint_module.checkpoints.VerifiedCheckpointIO", "inpaint_module.training.VerifiedCheckpointIO"),
        ("inpaint_module.checkpoints.resume.ExactResume", "inpaint_module.training.ExactResume"),
        ("inpaint_module.callbacks.ema.EMA", "inpaint_module.training.EMA"),
        *((f"inpaint_module.callbacks.{name}", f"inpaint_module.training.{name}") for name in CALLBACKS),
        ("inpaint_module.lightning_module.InpaintDiffusion", "inpaint_module.InpaintDiffusion"),
        ("inpaint_module.schedules.DiffusersSchedule", "inpaint_module.training.DiffusersSchedule"),
        ("inpaint_module.masks.curriculum.Curriculum", "inpaint_module.masks.Curriculum"),
        ("inpaint_module.masks.setops.Union", "inpaint_module.masks.Union"),
        ("inpaint_module.metrics.masked_psnr.MaskedPSNR", "inpaint_module.metrics.MaskedPSNR"),
        ("inpaint_module.training.throughput.Throughput", "inpaint_module.training.Throughput"),
        ("inpaint_module.training.image_grid.ImageGrid", "inpaint_module.training.ImageGrid"),
        ("inpaint_module.training.leftovers.Leftovers", "inpaint_module.training.Leftovers"),
        ("inpaint_module.training.run_record.RunRecord", "inpaint_module.training.run_record.RunRecord"),
        ("inpaint_module.vae.comfy_vae.ComfyVAE", "inpaint_module.vae.ComfyVAE"),
        ("inpaint_module.vae.diffusers_vae.load_vae", "inpaint_module.vae.load_vae"),
        ("inpaint_module.masks.Boxes", "inpaint_module.masks.Boxes"),
        ("my.inpaint_module.callbacks.EMA", "my.inpaint_module.callbacks.EMA"),
    ],
)
def test_classes_are_found_where_they_are_now(former: str, present: str) -> None:
    found = today({"trainer": {"callbacks": [{"class_path": former, "init_args": {"a": 1}}]}})
    assert found == {"trainer": {"callbacks": [{"class_path": present, "init_args": {"a": 1}}]}}
    module, _, name = present.rpartition(".")
    assert module.startswith("my") or hasattr(import_module(module), name)


@pytest.mark.parametrize(
    "former",
    [
        "inpaint_module.lightning_module.InpaintDiffusion",
        *(f"inpaint_module.callbacks.{name}" for name in CALLBACKS),
        "inpaint_module.schedules.DiffusersSchedule",
        "inpaint_module.training.throughput.Throughput",
        "inpaint_module.masks.mixture.Mixture",
        "inpaint_module.masks.blob.Blob",
        "inpaint_module.masks.region.KeepRegion",
        "inpaint_module.masks.polygon.Polygon",
    ],
)
def test_an_option_may_name_a_class_where_it_was(former: str) -> None:
    name = former.rpartition(".")[2]
    for option in (f"--trainer.callbacks+={former}", f'--trainer.callbacks=[{{"class_path": "{former}"}}]'):
        (found,) = today_options([option])
        path = re.search(r"inpaint_module[\w.]+", found)[0]
        assert import_object(path).__name__ == name
        assert found == option.replace(former, path)
