"""The doctor: finds each planted fault, and is silent where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import fault_server
import planted_faults as faults
import pytest
import yaml
from PIL import Image

from datamodules import WebDatasetDataModule
from datamodules.cache_latents import cache_latents
from datamodules.doctor import main
from inpaint_module import InpaintEncoder, load_vae
from inpaint_module.files import check_replaceable
from inpaint_module.masks import Boxes

CONFIG = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
SMALL = ["--config", CONFIG, "--device=cpu", "--data.image_size=64", "--data.batch_size=8", "--batches=2"]


class Told:
    """Exit code and text of the command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = main([*SMALL, *arguments])
        self.text = capsys.readouterr().out
        lines = self.text.splitlines()
        self.titles = [line.partition(" (")[0] for line in lines if line.startswith(("ERROR: ", "WARNING: "))]


def doctor(capsys: pytest.CaptureFixture[str], folder: Path, plant: faults.Plant, *arguments: str) -> Told:
    return Told(capsys, f"--data.train_shards={faults.shards(folder, plant)}", *arguments)


# Silence


def test_silent_on_the_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    told = Told(capsys, "--data.image_size=128", "--strict", f"--out={sheet}")
    assert told.titles == []
    assert told.text.endswith(f"no findings\nsheet: {sheet}\n")
    assert told.code == 0
    for stage in ("images", "masks", "latents", "VAE", "grid 1/8", "denoiser and optimizer", "faster"):
        assert stage in told.text
    with Image.open(sheet) as picture:
        assert picture.width == 5 * 176 + 6 * 8
    check_replaceable(sheet, "inpaint doctor")
    sheet.write_bytes(b"")
    with pytest.raises(ValueError, match="was not written by inpaint doctor"):
        Told(capsys, f"--out={sheet}")


def test_silent_on_good_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = doctor(capsys, tmp_path / "s", faults.no_fault, "--strict", "--no-step")
    assert told.titles == []
    assert told.code == 0
    assert "16 from the data, 0 painted" in told.text


# Ten planted faults, and more


@pytest.mark.parametrize(
    ("plant", "title", "code"),
    [
        (faults.inverted_masks, "ERROR: inverted masks", 1),
        (faults.wide_inverted_masks, "WARNING: inverted masks", 0),
        (faults.empty_masks, "ERROR: empty masks", 1),
        (faults.jpeg_masks, "WARNING: JPEG masks", 0),
        (faults.soft_masks, "WARNING: soft masks", 0),
        (faults.black_images, "ERROR: blank images", 1),
        (faults.duplicates, "ERROR: duplicate samples", 1),
    ],
)
def test_faults_in_shards(
    plant: faults.Plant, title: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = doctor(capsys, tmp_path / "s", plant, "--no-step")
    assert told.titles == [title]
    assert told.code == code


def test_strict_counts_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(capsys, tmp_path / "s", faults.jpeg_masks, "--no-step", "--strict").code == 1


def test_floats_of_both_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text("data: {class_path: planted_faults.SignedPixels}\n")
    told = Told(capsys, f"--config={overlay}", f"--out={tmp_path / 'sheet.png'}")
    assert told.titles == ["ERROR: pixel range"]
    assert "float32 in -1..1, which looks like -1..1" in told.text
    assert told.code == 1
    assert (tmp_path / "sheet.png").exists()


def test_vae_of_another_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = faults.vae_of_another_scale(tmp_path / "vae")
    told = Told(capsys, f"--model.encoder.vae.path={path}", "--no-step")
    assert told.titles == ["ERROR: latents off scale"]
    assert told.code == 1


def test_untrained_vae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = faults.untrained_vae(tmp_path / "vae")
    told = Told(capsys, f"--model.encoder.vae.path={path}", "--no-step")
    assert "ERROR: bad VAE round trip" in told.titles
    assert told.code == 1


def test_cached_latents_of_another_vae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = WebDatasetDataModule("embedded:val", batch_size=8, image_size=64, mask_generator=Boxes())
    cache_latents(data, InpaintEncoder(load_vae(), normalize=True), tmp_path / "cache")
    cached, path = f"--data.train_shards={tmp_path / 'cache'}", faults.untrained_vae(tmp_path / "vae")
    told = Told(capsys, cached, f"--model.encoder.vae.path={path}", "--no-step", "--batches=1")
    assert "ERROR: data.train_shards fails" in told.titles
    assert "were made by a VAE whose weights have sha256" in told.text
    assert "ERROR: data.train_shards fails" not in Told(capsys, cached, "--no-step", "--batches=1").titles


def test_overflow_in_float16_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"--model.encoder.vae.path={faults.loud_vae(tmp_path / 'vae')}"
    told = Told(capsys, path, "--model.encoder.vae.dtype=float16", f"--out={tmp_path / 'sheet.png'}")
    assert told.titles == ["ERROR: overflow in the VAE"]
    assert "(float16): expected finite latents, got infinite or NaN ones" in told.text
    assert told.code == 1
    assert "all finite" in Told(capsys, path, "--no-step").text


def test_wrong_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "--data.image_size=[68, 64]", "--no-step", "--batches=1")
    assert told.titles == ["ERROR: wrong ratio"]
    assert "4 rows and 0 columns of each picture are cut off" in told.text
    assert told.code == 1


def test_a_grid_that_the_denoiser_cannot_halve(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "--data.image_size=72")
    assert told.titles == ["ERROR: model.denoiser fails", "WARNING: wrong ratio"]
    assert "such as 64 x 64" in told.text


@pytest.mark.parametrize("silent", [pytest.param("manifest.json", marks=pytest.mark.slow), "000.tar"])
def test_stalled_source(silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which must end although a thread waits for the source."""
    faults.shards(tmp_path / "www" / "train", faults.no_fault)
    with fault_server.fault_server(tmp_path / "www") as server:
        server.faults[f"/train/{silent}"] = [fault_server.stall(0)] * 20
        source = tmp_path / "source.yaml"  # no model, whose imports would take longer than all else
        arguments = {"train_shards": f"{server.url}/train", "batch_size": 8, "image_size": 64}
        data = {"class_path": "datamodules.WebDatasetDataModule", "init_args": arguments}
        source.write_text(yaml.safe_dump({"data": data}))
        options = [f"--config={source}", f"--data.loading.cache_dir={tmp_path / 'cache'}", "--timeout=1"]
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "datamodules.doctor.command", *options],
            cwd=Path(CONFIG).parents[1],
            env=os.environ | {"no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert "ERROR: stalled source (data)" in done.stdout, done.stderr
    assert "nothing came for 1 s" in done.stdout
    assert done.returncode == 1
    assert time.monotonic() - begin < 60


def test_layout_that_refuses_its_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "--model.encoder.normalize=false")
    assert told.titles == ["ERROR: model fails"]
    assert "expects an encoder with normalize=True" in told.text
    assert "round trip" not in told.text


def test_shards_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "--data.train_shards=/nowhere/*.tar", f"--out={tmp_path / 'sheet.png'}")
    assert not list(tmp_path.iterdir())  # nothing to show
    assert told.titles == ["ERROR: data fails"]
    assert "nothing found at" in told.text
    assert told.code == 1


def test_bad_samples_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plant(number: int, fields: faults.Fields) -> faults.Fields:
        bad = {3: {"jpg": fields["jpg"][:300]}, 5: {"mask.png": b"no mask"}}
        return fields | bad.get(number, {})

    told = doctor(capsys, tmp_path / "s", plant, "--no-step", "--data.loading.max_bad_share=0.5")
    assert told.titles == ["WARNING: bad samples"]
    assert "p03" in told.text
    assert "p05" in told.text


def test_a_module_that_feeds_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text("data: {class_path: planted_faults.NoPositions}\n")
    told = Told(capsys, f"--config={overlay}")
    assert told.titles == ["ERROR: model.encoder fails"]
    assert "KeyError: 'position'" in told.text
    overlay.write_text("data: {class_path: planted_faults.FlatMasks}\n")
    told = Told(capsys, f"--config={overlay}")
    assert told.titles == ["ERROR: data fails"]
    assert "batch['mask']: expected (B, channels, H, W), got (8, 64, 64)" in told.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batchs=3"], "there is no option --batchs; did you mean --batches?"),
        (["--data.seed"], "--data.seed: expected a value, such as --data.batch_size=2"),
        (["--batches=0"], "expected a whole number of at least 1, got 0"),
        (["--timeout=0"], "expected a number of seconds above 0, got 0"),
        (["--device=tpu9"], "--device: expected auto, cpu or a GPU that is there, got 'tpu9'"),
        (["--config=nowhere.yaml"], "--config: expected a file, got nowhere.yaml"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config", CONFIG, *arguments])
    assert message in capsys.readouterr().err


def test_the_account_of_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = doctor(capsys, tmp_path / "s", faults.empty_masks, "--no-step")
    head = "16 samples in train_shards\n  captions 16, masks 16, labels 0, json 0\n"
    assert f"{head}  16 with an empty mask: nothing in it is white: p" in told.text
    assert "open these mask files: white is what is inpainted" in told.text
    assert "allow_empty_masks" not in told.text
