"""The report: what it scores, with which weights, the same after a kill, and a page that stands alone."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from run_records import ends, run_cases, starts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_feature_distance import saved
from tiny_models import tiny_batch, tiny_denoiser, tiny_module
from tiny_run import Setup, tiny_config

from datamodules import WebDatasetDataModule
from inpaint_module.callbacks.ema import EMA
from inpaint_module.callbacks.run_record import MetricRow, RunRecord
from inpaint_module.cli import ResumingCLI
from inpaint_module.lightning_module import InpaintDiffusion
from inpaint_module.masks import Boxes, preset
from inpaint_module.metrics.feature_distance import FeatureDistance
from inpaint_module.metrics.fill_scores import (
    FillScores,
    ScoredPhoto,
    ScoredPreset,
    flat_scores,
    mean_scores,
    score_fills,
)
from inpaint_module.metrics.seam import masked_ssim
from inpaint_module.randomness import Stream, key
from inpaint_module.report.caption_sheet import SheetRow, caption_sheet
from inpaint_module.report.line_chart import Line, line_chart, nice_ticks, smoothed, thinned
from inpaint_module.report.page import page
from inpaint_module.report.style import STYLE
from inpaint_module.report.validation_report import ValidationReport, finite, photos_of
from inpaint_module.sampling import InpaintedImages, composite

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*available but not used.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]
PRESETS = ("lama-thick", "outpaint")
SIZE = 48


def report(**options: Any) -> ValidationReport:
    return ValidationReport(**{"presets": PRESETS, "photos": 3} | options)


def model(dropout: float = 0.1) -> InpaintDiffusion:
    torch.manual_seed(0)
    return tiny_module(denoiser=tiny_denoiser(dropout=dropout))


def data() -> WebDatasetDataModule:
    """Embedded photos, two of a batch."""
    boxes = Boxes(resolution=SIZE)
    return WebDatasetDataModule("embedded:val", "embedded:val", batch_size=2, image_size=SIZE, mask_generator=boxes)


def trainer_of(folder: Path, steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "limit_val_batches": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
        "log_every_n_steps": 1,
    }
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings | options,
    )


def fit(
    folder: Path,
    steps: int,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    dropout: float = 0.1,
    **options: Any,
) -> InpaintDiffusion:
    trained = model(dropout)
    torch.manual_seed(1)
    trainer_of(folder, steps, *callbacks, **options).fit(trained, data(), ckpt_path=ckpt_path, weights_only=True)
    return trained


def numbers(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InpaintDiffusion]:
    """Four steps with an average, reported at the end; saved at each step."""
    folder = tmp_path_factory.mktemp("report") / "first run"
    saves = ModelCheckpoint(dirpath=folder / "c", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    logger = TensorBoardLogger(folder.parent, name=folder.name, version="")
    trained = fit(folder, 4, report(), EMA(0.5), RunRecord(), saves, logger=logger)
    assert trained.training  # as Lightning leaves it
    return folder, trained


def test_scores_by_hand() -> None:
    image, hole, grown = torch.full((1, 3, 16, 16), 0.25), torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    grown[..., 4:12, 4:12], hole[..., 6:10, 6:10] = 1, 1
    inpainted = image + 0.01 + 0.04 * grown + 0.05 * hole  # off by .1 in the hole, .05 around it, .01 beyond
    joined = composite(inpainted, image, grown)
    result = InpaintedImages(image, hole > 0.5, grown, image, inpainted, joined)
    scores = score_fills(result, image.clone(), lambda first, second, mask: mask.sum()[None])
    assert scores["model"].psnr_inside == pytest.approx(20, abs=1e-3)
    assert scores["model"].psnr_outside == pytest.approx(40, abs=1e-3)
    assert scores["model"].seam == pytest.approx(0.05, abs=1e-6)
    assert scores["model"].ssim_inside == masked_ssim(joined, image, hole).item() < 1
    assert scores["vae"] == pytest.approx(FillScores(100, 100, 1, 0, 16))
    assert scores["mean_colour"][0] == 100
    assert scores["grey"][0] == pytest.approx(12.041, abs=1e-3)
    assert scores["grey"].seam == pytest.approx(0.25)
    assert math.isnan(scores["grey"].psnr_outside)


def test_means_leave_out_what_is_not_there() -> None:
    nan = math.nan
    mean = mean_scores([FillScores(10, nan, 0.5, 0.1), FillScores(20, 30, nan, 0.3)])
    assert mean[:4] == pytest.approx((15, 30, 0.5, 0.2))
    assert math.isnan(mean.features)
    named = flat_scores({"model": mean, "grey": FillScores(1, nan, nan, nan)})
    assert named == {"psnr_inside": 15, "psnr_outside": 30, "ssim_inside": 0.5, "seam": 0.2, "psnr_inside_grey": 1}


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


def test_fewer_photos_than_asked_are_reported_on(tmp_path: Path) -> None:
    trainer_of(tmp_path, 2, report(), limit_val_batches=1).validate(model(), data(), verbose=False)
    assert len(numbers(tmp_path)["photos"]) == 2


def test_a_scheduler_that_draws_reports_the_same(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        drawing = tiny_module(scheduler=DDPMScheduler())
        torch.manual_seed(seed)
        trainer_of(tmp_path, 2, report(photos=1)).validate(drawing, data(), verbose=False)
        found.append(numbers(tmp_path))
    assert found[0] == found[1]


def test_other_ranks_do_nothing(tmp_path: Path) -> None:
    callback, trainer = report(), trainer_of(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer), "is_global_zero", False)
        callback.on_validation_batch_end(trainer, model(), {}, tiny_batch(3), 0)
        callback.on_fit_end(trainer, model())
    assert not callback._found
    assert not list(tmp_path.iterdir())


def test_no_validation_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no validation has run since this start, so there is no report"):
        fit(tmp_path, 1, report(), num_sanity_val_steps=0)
    assert not (tmp_path / "report.html").exists()


def test_sharded_weights_and_other_modules_are_said(tmp_path: Path) -> None:
    callback, sharded = report(), model()
    sharded._device_mesh = object()  # type: ignore[assignment]
    callback._found = photos_of(tiny_batch(3))
    for module, name in ((sharded, "InpaintDiffusion"), (BoringModel(), "BoringModel")):
        with pytest.warns(UserWarning, match=f"no report; it expects .* got 3 photos and {name} under SingleDevice"):
            callback.on_fit_end(trainer_of(tmp_path, 1), module)
        callback._reported = None


def test_values_that_are_not_finite_are_said_and_count() -> None:
    """A mean would leave a NaN out, as it does what a mask does not show."""
    image = torch.tensor([[[[0.5, math.nan, math.inf]]]])
    with pytest.warns(UserWarning, match="ValidationReport: fish under sd: 2 values are not finite and count as black"):
        assert finite(image, "fish under sd").tolist() == [[[[0.5, 0, 0]]]]
    assert finite(image[..., :1], "fish").tolist() == [[[[0.5]]]]


def test_a_model_that_went_wrong_is_scored(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            torch.nn.init.constant_(pl_module.denoiser.conv_out.bias, math.nan)  # type: ignore

    with pytest.warns(UserWarning, match="under outpaint: .* values are not finite"):
        fit(tmp_path, 2, report(photos=1, presets=["outpaint"]), Poison())
    assert {"psnr_inside", "ssim_inside", "seam"} <= numbers(tmp_path)["presets"]["outpaint"].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presets": []}, r"ValidationReport presets must be different names, at least one, got \[\]"),
        ({"presets": ["sd", "sd"]}, r"presets must be different names, at least one, got \['sd', 'sd'\]"),
        ({"presets": ["nothing"]}, "unknown mask preset 'nothing'; known are lama-thin"),
        ({"photos": 0}, "ValidationReport photos must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValidationReport(**options)


def test_a_config_can_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    config: Any = tiny_config(Setup())
    vision = {
        "class_path": "inpaint_module.metrics.feature_distance.FeatureDistance",
        "init_args": {"path": saved(tmp_path)},
    }
    options = {"presets": ["sd", "outpaint"], "photos": 2, "feature_distance": vision}
    config["trainer"]["callbacks"] = [
        {"class_path": "inpaint_module.report.validation_report.ValidationReport", "init_args": options}
    ]
    modes = {"subclass_mode_model": True, "subclass_mode_data": True, "auto_configure_optimizers": False}
    cli = ResumingCLI(LightningModule, LightningDataModule, args=config, run=False, **modes)
    [callback] = [each for each in cli.trainer.callbacks if isinstance(each, ValidationReport)]  # type: ignore[attr-defined]
    assert (list(callback.presets), callback.photos) == (["sd", "outpaint"], 2)
    assert isinstance(callback.feature_distance, FeatureDistance)


def test_features_are_scored(tmp_path: Path) -> None:
    fit(tmp_path, 2, report(photos=1, feature_distance=FeatureDistance(saved(tmp_path / "vision"))))
    found = numbers(tmp_path)["presets"]["outpaint"]
    assert found["features_vae"] > 0
    assert 0 < found["features"] <= 4
    assert "Features" in Page((tmp_path / "report.html").read_text()).text


def test_two_ranks_write_one_report_and_go_on(tmp_path: Path) -> None:
    callback = "--trainer.callbacks+=inpaint_module.report.validation_report.ValidationReport"
    every = ["--trainer.callbacks.photos=2", "--trainer.callbacks.every_validation=true", "--trainer.max_steps=5"]
    options = (callback, *every)
    run_cases(tmp_path, {"two": (Setup(ranks=2, ema=True, options=options), starts())})
    assert [end["statuses"] for end in ends(tmp_path / "two")] == [[0, 0]]
    found = numbers(tmp_path / "two")
    assert (found["step"], len(found["photos"])) == (5, 2)  # after the last validation, at step 4


class Page(HTMLParser):
    """Sees to balance, and collects what the page names."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.names: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        for name, value in attrs:
            assert not (name in ("href", "src") and not (value or "").startswith("data:")), value
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


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


def scored(name: str = "sd", **changes: str) -> ScoredPreset:
    scores = {"model": FillScores(15, 30, 0.5, 0.1), "vae": FillScores(29, 31, 0.9, 0.01)}
    scores |= {"mean_colour": FillScores(12, math.nan, 0.2, 0.3), "grey": FillScores(11, math.nan, 0.1, 0.4)}
    picture = Image.new("RGB", (8, 8))
    photo = ScoredPhoto(changes.get("key", "k"), 0, changes.get("caption", ""), scores, {"fill": picture})
    return ScoredPreset(name, [photo])


def test_what_data_says_is_text_not_markup() -> None:
    evil = '<script>alert("1")</script>&'
    record = {"command": [evil], "device": evil, "starts": [{"time": "2026-01-02T03:04:05", "step": 0}]}
    seen = Page(page(evil, 1, [scored(key=evil, caption=evil)], [], record))
    assert "script" not in seen.names
    assert seen.text.count(evil) >= 5
    assert "2026-01-02" in seen.text


def test_the_page_says_better_or_worse_and_leaves_out_what_is_not_there() -> None:
    text = Page(page("run", 1, [scored()], [], {})).text
    assert "3.0 dB better than the best plain fill (mean colour, 12.0 dB)" in text
    assert "▲ 0.200 better than plain" in text  # the seam, of which less is better
    assert "In 1 validation photo under sd masks" in text
    for absent in ("Features", "Curves", "The run", "nan"):
        assert absent not in text
    worse = scored()
    worse.photos[0].scores["model"] = FillScores(10, 30, 0.1, 0.4, 0.2)
    text = Page(page("run", 1, [worse, scored("outpaint")], [], {})).text
    assert "▼ 2.0 worse than plain" in text
    assert "2 kinds of masks" in text
    assert "Features" in text


def luminance(colour: str) -> float:
    """Relative, of WCAG 2: `#1c1b19` to 0..1."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_and_lines_stand_out_in_light_and_dark() -> None:
    themes = [dict(re.findall(r"--(\w+):(#\w+)", part)) for part in re.findall(r":root\{(.*?)\}", STYLE, re.S)]
    assert len(themes) == 2
    for theme in themes:
        for behind in ("paper", "card"):
            for name, least in {"ink": 7, "soft": 4.5, "up": 4.5, "down": 4.5, "one": 3, "two": 3, "faint": 3}.items():
                low, high = sorted((luminance(theme[name]), luminance(theme[behind])))
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


def test_curves_need_two_points() -> None:
    one, two = [MetricRow(1, "train/loss", 1.0)], [MetricRow(s, "train/loss", v) for s, v in ((1, 1.0), (2, 0.5))]
    assert "Curves" not in page("run", 1, [scored()], one, {})
    assert page("run", 1, [scored()], two, {}).count("<polyline") == 2


def test_charts_by_hand() -> None:
    assert nice_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(12.3, 14.6) == pytest.approx([12, 12.5, 13, 13.5, 14, 14.5, 15])
    assert nice_ticks(0.5, 0.5) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert smoothed([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0)]
    assert thinned([(n, float(n)) for n in range(1, 801)])[:2] == [(2, 1.5), (4, 3.5)]
    drawn = line_chart("a & b", [Line("l", [(0, 0.0), (5, math.nan), (10, 1.0)], "one")])
    assert 'points="52.0,218.0 448.0,12.0"' in drawn
    assert 'aria-label="a &amp; b"' in drawn


def test_sheets_by_hand() -> None:
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (40, 20), "blue")
    sheet = caption_sheet("title", ["a", "b"], [SheetRow([red, blue], ["much too long " * 9, ""])] * 2)
    assert sheet.size == (30 + 40 + 3 * 8, 8 + 36 + 2 * (20 + 36 + 16))
    assert [sheet.getpixel(at) for at in ((8, 44), (46, 44), (85, 63))] == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]
    assert sheet.getpixel((92, 70)) == (255, 255, 255)
