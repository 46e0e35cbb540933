"""The report: what it scores, with which weights, the same after a kill."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from page_reader import Page
from PIL import Image
from quiet_trainer import QUIET
from reported_runs import PRESETS, SIZE, data, fit, model, numbers, report, trainer_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import tiny_batch, tiny_module
from tiny_run import Setup, tiny_config
from vision_weights import saved

from inpaint_module.cli.training import ResumingCLI
from inpaint_module.masks import preset
from inpaint_module.metrics import LPIPS, PerceptualMetrics
from inpaint_module.metrics.scores import (
    flat_scores,
    mean_scores,
    score_fills,
)
from inpaint_module.randomness import Stream, key
from inpaint_module.report.validation_report import ValidationReport, photos_of
from inpaint_module.training.averages import EMA
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.run_record import RunRecord

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InpaintDiffusion]:
    """Four steps with an average, reported at the end; saved at each step."""
    folder = tmp_path_factory.mktemp("report") / "first run"
    saves = ModelCheckpoint(dirpath=folder / "c", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    logger = TensorBoardLogger(folder.parent, name=folder.name, version="")
    trained = fit(folder, 4, report(), EMA(0.5), RunRecord(), saves, logger=logger)
    assert trained.training  # as Lightning leaves it
    return folder, trained


def test_photos_are_batches_of_one_without_padding() -> None:
    batch = tiny_batch(3) | {"position": torch.tensor([4, -1, 6]), "notes": {"bad": ["a", "b", "c"]}}
    first, second = photos_of(batch)
    assert first.keys() == {"image", "position", "caption", "__key__"}
    assert (second["__key__"], second["position"].tolist()) == (["photo2"], [6])
    assert torch.equal(second["image"], batch["image"][2:])


def test_the_report_is_of_the_average(run: tuple[Path, InpaintDiffusion]) -> None:
    folder, trained = run
    found = numbers(folder)
    assert found["step"] == 4
    assert list(found["presets"]) == list(PRESETS)
    trained.eval()  # which after `fit` is the average: tests/test_ema.py
    datamodule, expected = data(), []
    datamodule.setup("validate")
    photos = [photo for batch in datamodule.val_dataloader() for photo in photos_of(batch)][:3]
    for number, photo in enumerate(photos):
        keys = key(0, torch.tensor([number]), Stream.MASK)
        batch = photo | {"mask": preset("outpaint")(keys, SIZE, SIZE)}
        latents = trained.encode(batch).target
        assert latents is not None
        expected.append(score_fills(trained.inpaint(batch), trained.encoder.decode(latents)))
        told = found["photos"][number]
        assert (told["key"], told["position"]) == (photo["__key__"][0], int(photo["position"]))
        assert told["presets"]["outpaint"] == pytest.approx(flat_scores(expected[-1]), rel=1e-5)
    mean = mean_scores(scores["model"] for scores in expected)
    assert found["presets"]["outpaint"]["psnr_inside"] == pytest.approx(mean.psnr_inside, rel=1e-5)


def test_validate_reports_the_same(run: tuple[Path, InpaintDiffusion], tmp_path: Path) -> None:
    folder = run[0]
    for name, callbacks in {"with": [EMA(0.5), report()], "without": [report()]}.items():
        trainer = trainer_of(tmp_path / name, 4, *callbacks)
        path = folder / "c" / "step=4.ckpt"
        trainer.validate(model(), data(), ckpt_path=path, weights_only=True, verbose=False)
        assert numbers(tmp_path / name) == numbers(folder)


def test_a_resumed_run_reports_the_same(tmp_path: Path) -> None:
    """Without dropout: what torch's generator draws is another test's."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    saves = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    fit(whole, 4, report(), EMA(0.5), ModelCheckpoint(dirpath=whole, **saves), dropout=0.0)
    fit(parts, 4, report(), EMA(0.5), ckpt_path=whole / "step=3.ckpt", dropout=0.0)
    assert numbers(parts) == numbers(whole)


def test_a_run_with_nothing_left_to_train_leaves_the_report_alone(
    run: tuple[Path, InpaintDiffusion], tmp_path: Path
) -> None:
    """`ResumingCLI` then validates, which reports."""
    fit(tmp_path, 4, EMA(0.5), report(), ckpt_path=run[0] / "c" / "step=4.ckpt")
    assert not (tmp_path / "report.json").exists()


class Numbers(Callback):
    """Keeps the report of each validation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen.append(numbers(Path(trainer.default_root_dir)))


@pytest.mark.parametrize("ema_first", [True, False])
def test_every_validation_has_the_average_and_leaves_training_alone(
    run: tuple[Path, InpaintDiffusion], tmp_path: Path, ema_first: bool
) -> None:
    folder, trained = run
    watch, callbacks = Numbers(), [EMA(0.5), report(every_validation=True)]
    again = fit(tmp_path, 4, *(callbacks if ema_first else callbacks[::-1]), watch)
    assert [seen["step"] for seen in watch.seen] == [2, 4]
    assert watch.seen[0]["presets"] != watch.seen[1]["presets"]
    assert watch.seen[1] == numbers(tmp_path) == numbers(folder)
    for first, second in zip(again.parameters(), trained.parameters(), strict=True):
        assert torch.equal(first, second)  # dropout too, which draws from torch's generator
    assert again.training
    assert again.denoiser.training


def test_the_pictures(run: tuple[Path, InpaintDiffusion]) -> None:
    folder = run[0]
    sheets = [np.asarray(Image.open(folder / "report" / f"{name}.png")) for name in PRESETS]
    assert all(sheet.shape[1] == 3 * SIZE + 4 * 8 for sheet in sheets)
    assert not np.array_equal(*sheets)
    events = EventAccumulator(str(folder)).Reload()
    assert {f"report/{name}" for name in PRESETS} <= set(events.Tags()["images"])
    [scalar] = events.Scalars("report/outpaint/psnr_inside")
    assert (scalar.step, scalar.value) == (4, pytest.approx(numbers(folder)["presets"]["outpaint"]["psnr_inside"]))
    assert "report/outpaint/psnr_inside_vae" in events.Tags()["scalars"]


def test_the_page_stands_alone(run: tuple[Path, InpaintDiffusion]) -> None:
    text = (run[0] / "report.html").read_text()
    seen = Page(text)
    assert len(seen.images) == 3 * len(PRESETS) * 3
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in seen.images)
    assert all(image["alt"] and image["width"] == str(SIZE) for image in seen.images)
    assert "script" not in seen.names
    assert "link" not in seen.names
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]*", "", text))
    assert seen.names.count("svg") == 2  # the curves, of metrics.csv
    mean = numbers(run[0])["presets"]["outpaint"]
    for shown in (
        "first run",
        "step 4",
        "lama-thick",
        "outpaint",
        f"{mean['psnr_inside']:.1f}",
        "Command",
        "lightning",
    ):
        assert shown in seen.text
    assert len(text) < 400_000


def test_a_scheduler_that_draws_reports_the_same(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        drawing = tiny_module(scheduler=DDPMScheduler())
        torch.manual_seed(seed)
        trainer_of(tmp_path, 2, report(photos=1)).validate(drawing, data(), verbose=False)
        found.append(numbers(tmp_path))
    assert found[0] == found[1]


def test_a_config_can_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    config: Any = tiny_config(Setup())
    vision = {
        "class_path": "inpaint_module.metrics.LPIPS",
        "init_args": {"folder": saved(tmp_path), "network": "squeeze"},
    }
    options = {"presets": ["sd", "outpaint"], "photos": 2, "lpips": vision}
    config["trainer"]["callbacks"] = [
        {"class_path": "inpaint_module.report.validation_report.ValidationReport", "init_args": options}
    ]
    modes = {"subclass_mode_model": True, "subclass_mode_data": True, "auto_configure_optimizers": False}
    cli = ResumingCLI(LightningModule, LightningDataModule, args=config, run=False, **modes)
    [callback] = [each for each in cli.trainer.callbacks if isinstance(each, ValidationReport)]  # type: ignore[attr-defined]
    assert (list(callback.presets), callback.photos) == (["sd", "outpaint"], 2)
    assert isinstance(callback.lpips, LPIPS)


def test_perceptual_distances_are_scored(tmp_path: Path) -> None:
    lpips = LPIPS(saved(tmp_path / "vision"), "squeeze")
    fit(tmp_path, 2, report(photos=1, lpips=lpips), PerceptualMetrics(lpips), RunRecord())
    found = numbers(tmp_path)["presets"]["outpaint"]
    assert found["lpips_vae"] > 0
    assert 0 < found["lpips"] < 2
    assert "LPIPS" in Page((tmp_path / "report.html").read_text()).text
    assert ",val/lpips," in (tmp_path / "metrics.csv").read_text()
