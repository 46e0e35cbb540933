"""A folder as a phone and a Mac leave it: packed, examined, trained on for four steps and inpainted."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from data_fixtures import encode, exif_turned
from icc_profiles import display_p3
from PIL import Image
from quiet_trainer import QUIET
from tiny_run import Setup, tiny_config

import train
from datamodules import doctor, make_shards, predict
from datamodules.decode import conversion
from datamodules.decode.reading import to_rgb, upright
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_specs import open_shards
from datamodules.writing.source_samples import Resize

pytestmark = QUIET
P3_GREEN, SRGB_GREEN = (90, 200, 60), (0, 203, 7)  # one colour; a step of blue in P3 is six in sRGB here


def phone_photo(number: int, *, turned: bool) -> bytes:
    """A JPEG of 96 x 72 stored pixels in Display P3: all green, but for a bar that tells photos and sides apart."""
    picture = Image.new("RGB", (96, 72), P3_GREEN)
    picture.paste((200, 60, 40), (0, 60, 20 + 8 * number, 72))
    exif = exif_turned(6 if turned else 1)
    return encode(picture, "JPEG", quality=95, subsampling=0, icc_profile=display_p3(), exif=exif)


def phone_folder(folder: Path) -> Path:
    """Six photos, every second one turned, each with a mask drawn on the stored pixels and a caption."""
    (folder / "__MACOSX").mkdir(parents=True)
    mask = Image.new("L", (96, 72))
    mask.paste(255, (0, 0, 48, 36))  # stored: above, on the left; of a turned photo: above, on the right
    for number in range(6):
        name = f"IMG_{number:04d}"
        (folder / f"{name}.JPG").write_bytes(phone_photo(number, turned=number % 2 == 1))
        (folder / f"._{name}.JPG").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        (folder / f"{name}.TXT").write_text(f"photo {number}", encoding="utf-16")
        mask.save(folder / f"{name}.MASK.PNG")
    for name in (".DS_Store", "Thumbs.db", "IMG_0003.MOV", "IMG_0003.AAE", "__MACOSX/._IMG_0000.JPG"):
        (folder / name).write_bytes(b"x")
    (folder / "IMG_0009.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phone_folder(tmp_path_factory.mktemp("phone") / "in")


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    monkeypatch.setattr(conversion, "_decoders", lambda: frozenset({"TIFF", "GIF", "BMP"}))


def tiny(folder: Path) -> str:
    """A config that trains four steps on the shards there."""
    config = tiny_config(Setup(data={"train_shards": str(folder / "shards"), "val_shards": None}))
    config["trainer"] |= {"max_steps": 4, "accumulate_grad_batches": 1, "callbacks": config["trainer"]["callbacks"][:1]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "tiny.yaml")


def test_packed_examined_trained_and_inpainted(
    no_heif: None, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    assert make_shards.main([str(photos), str(tmp_path / "shards"), "--workers", "1"]) == 0
    account = capsys.readouterr().out
    assert account.splitlines() == [
        "6 photos taken, in 1 shard",
        "  captions 6, masks 6, labels 0, json 0",
        "12 left aside",
        "  9 hidden or of the system: .DS_Store, ._IMG_0000.JPG, ._IMG_0001.JPG and 6",
        "      more",
        "  1 not used, ending in .aae: IMG_0003.AAE",
        "  1 not used, ending in .mov: IMG_0003.MOV",
        "  1 in HEIC (pip install 'inpaint-module[heic]' reads it): IMG_0009.HEIC",
    ]
    config = ["--config", tiny(tmp_path)]
    doctor.main([*config, "--device=cpu", "--batches=2", "--no-step"])
    told = capsys.readouterr().out
    assert "6 samples in train_shards\n  captions 6, masks 6, labels 0, json 0\n" in told
    assert "bad samples" not in told
    with mock.patch.object(sys, "argv", ["train.py", "fit", *config]):
        assert train.main() == 0
    trained = [*config, "--checkpoint", str(tmp_path / "checkpoints" / "last.ckpt"), "--steps", "1"]
    assert predict.main([str(photos), str(tmp_path / "out"), *trained, "--tile", "64", "--overlap", "16"]) == 0
    assert "12 left aside" in capsys.readouterr().out
    for number in range(6):
        result = to_rgb(Image.open(tmp_path / "out" / f"IMG_{number:04d}.png"))
        source = to_rgb(upright(Image.open(photos / f"IMG_{number:04d}.JPG")))
        assert result.size == ((72, 96) if number % 2 else (96, 72))
        same = (np.asarray(result) == np.asarray(source)).all(axis=-1)
        masked = np.zeros(same.shape, dtype=bool)
        masked[(slice(0, 48), slice(36, 72)) if number % 2 else (slice(0, 36), slice(0, 48))] = True
        assert same[~masked].all()
        assert not same[masked].any()


def test_what_training_sees(no_heif: None, photos: Path, tmp_path: Path) -> None:
    """The green of the screen, not its numbers in Display P3; and the mask where it was drawn, also when shrunk."""
    for resize in (Resize(), Resize(short_side=48)):
        out = tmp_path / str(resize.short_side)
        make_shards.make_shards(photos, out, resize=resize)
        shards = open_shards(str(out))
        for number in range(6):
            size = (96, 72) if number % 2 else (72, 96)
            sample = SampleDecoder(image_size=size, seed=0, augment=False)(shards.read(number))
            colour = sample["image"][:, 3 * size[0] // 4, 3 * size[1] // 4].int()
            assert (colour - torch.tensor(SRGB_GREEN)).abs().max() <= 8
            masked = sample["mask"][0].float()
            rows, columns = (size[0] // 2, size[1] // 2)
            corner = masked[:rows, columns:] if number % 2 else masked[:rows, :columns]
            assert corner.mean() == 1
            assert masked.mean() == 0.25
            assert sample["caption"] == f"photo {number}"


def test_heic_is_taken_where_its_package_is(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    shutil.copytree(photos, tmp_path / "in")
    picture = Image.new("RGB", (96, 64), P3_GREEN)
    (tmp_path / "in" / "IMG_0009.HEIC").write_bytes(encode(picture, "HEIF", quality=-1, icc_profile=display_p3()))
    report = make_shards.make_shards(tmp_path / "in", tmp_path / "out")
    assert report.account.taken == 7
    raw = open_shards(str(tmp_path / "out")).read(6)
    assert raw.key == "IMG_0009"
    colour = SampleDecoder(image_size=(64, 96), seed=0, augment=False)(raw)["image"][:, 30, 30].int()
    assert (colour - torch.tensor(SRGB_GREEN)).abs().max() <= 8
