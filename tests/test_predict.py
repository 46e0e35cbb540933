"""The command that inpaints a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_run import Setup, tiny_config

from datamodules import WebDatasetDataModule
from datamodules.predict import load_model, main, read_mask
from inpaint_module.checkpoints.checkpoint_io import VerifiedCheckpointIO
from inpaint_module.masks import preset
from inpaint_module.randomness import Stream, key

SMALL = ["--tile", "64", "--overlap", "16"]


@pytest.fixture(autouse=True)
def no_deprecation_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(Setup())))
    return str(path)


def photo(path: Path, height: int, width: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_masks_of_a_folder_and_beside(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = {name: photo(tmp_path / f"photos/{name}.png", 50 + len(name), 70) for name in ("a", "sub/b")}
    for name, image in pixels.items():
        hole = np.zeros(image.shape[:2], np.uint8)
        hole[10:30, 20:40] = 255 if name == "a" else 0
        for path in (tmp_path / f"masks/{name}.png", tmp_path / f"photos/{name}.mask.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(hole).save(path)
    common = [str(tmp_path / "photos"), "--config", config, "--steps", "1", *SMALL]
    torch.manual_seed(0)  # of the weights: there is no checkpoint
    assert main([common[0], str(tmp_path / "one"), *common[1:], "--masks", str(tmp_path / "masks")]) == 0
    assert "no --checkpoint: the weights are as the config makes them" in capsys.readouterr().err
    torch.manual_seed(0)
    assert main([common[0], str(tmp_path / "two"), *common[1:]]) == 0
    assert "1 of them have an empty mask and came out unchanged" in capsys.readouterr().out
    for name, image in pixels.items():
        result = read(tmp_path / f"one/{name}.png")
        assert (result == read(tmp_path / f"two/{name}.png")).all()
        changed = (result != image).any(-1)
        assert changed[10:30, 20:40].any() == (name == "a")
        changed[10:30, 20:40] = False
        assert not changed.any()


def test_preset(tmp_path: Path, config: str) -> None:
    image = photo(tmp_path / "photos/a.png", 64, 64)
    arguments = [str(tmp_path / "photos"), str(tmp_path / "out"), "--preset", "lama-medium", "--config", config, *SMALL]
    assert main([*arguments, "--seed", "3"]) == 0
    mask = preset("lama-medium")(key(3, torch.tensor([0]), Stream.MASK), 64, 64)[0, 0].numpy()
    changed = (read(tmp_path / "out/a.png") != image).any(-1)
    assert changed[mask].mean() > 0.9
    assert not changed[~mask].any()


def test_weights_of_a_checkpoint(tmp_path: Path, config: str) -> None:
    trained = load_model([Path(config)], None, None)
    VerifiedCheckpointIO().save_checkpoint({"state_dict": trained.state_dict()}, tmp_path / "a.ckpt")
    loaded = load_model([Path(config)], tmp_path / "a.ckpt", steps=3)
    assert loaded.sampling_steps == 3
    for first, second in zip(loaded.parameters(), trained.parameters(), strict=True):
        assert torch.equal(first.cpu(), second.cpu())


def test_mask_of_another_size(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (2, 4)).tolist() == [[[False, False, True, True]] * 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "expected a folder with images"),
        (["a.png"], "a.png: expected its mask at"),
        (["a.png", "a.jpg"], "would have the same result"),
    ],
)
def test_refusals(
    files: list[str], message: str, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        photo(tmp_path / "photos" / name, 8, 8)
    preset_option = ["--preset", "sd"] if len(files) == 2 else []
    assert main([str(tmp_path / "photos"), str(tmp_path / "out"), "--config", config, *preset_option]) == 1
    assert message in capsys.readouterr().err


def test_a_broken_picture_is_named(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/b.png").write_bytes(b"no image")
    assert main([str(tmp_path / "pics"), str(tmp_path / "out"), "--config", config, "--preset", "sd"]) == 1
    assert "b.png: " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"b\.png"):
        read_mask(tmp_path / "pics/b.png", (2, 2))


def test_the_shipped_model_fills_better_than_a_plain_colour(tmp_path: Path) -> None:
    photos = WebDatasetDataModule(
        "embedded:train", "embedded:val", batch_size=6, image_size=256, mask_generator=preset("sd")
    )
    images = next(iter(photos.val_dataloader()))["image"].movedim(1, -1).numpy()
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    assert main([str(tmp_path / "photos"), str(tmp_path / "out"), "--preset", "lama-medium"]) == 0
    masks = preset("lama-medium")(key(0, torch.arange(len(images)), Stream.MASK), 256, 256)[:, 0].numpy()
    gains = []
    for number, (image, mask) in enumerate(zip(images.astype(float), masks, strict=True)):
        filled = read(tmp_path / "out" / f"{number}.png")[mask]
        plain = np.broadcast_to(image[~mask].mean(0), filled.shape)
        errors = [((fill - image[mask]) ** 2).mean() for fill in (plain, filled)]
        gains.append(10 * np.log10(errors[0] / errors[1]))
    assert np.mean(gains) > 1  # dB


def white_on_nothing(path: Path, mode: str) -> None:
    alpha = np.zeros((64, 64), np.uint8)
    alpha[10:30, 20:40] = 255
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.putalpha(Image.fromarray(alpha))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_masks_are_read_as_in_training(mode: str, tmp_path: Path, config: str) -> None:
    image = photo(tmp_path / "photos/a.png", 64, 64)
    white_on_nothing(tmp_path / "photos/a.mask.png", mode)
    assert main([str(tmp_path / "photos"), str(tmp_path / "out"), "--config", config, "--steps", "1", *SMALL]) == 0
    changed = (read(tmp_path / "out/a.png") != image).any(-1)
    assert changed[10:30, 20:40].any()
    changed[10:30, 20:40] = False
    assert not changed.any()


@pytest.mark.parametrize("out", ["pics", "pics/../pics", "pics/out", "link", "masks"])
def test_results_never_fall_on_inputs(
    out: str, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "pics/a.png", 64, 64)
    photo(tmp_path / "masks/a.png", 64, 64)
    (tmp_path / "link").symlink_to(tmp_path / "pics")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    arguments = [str(tmp_path / "pics"), str(tmp_path / out), "--config", config, "--masks", str(tmp_path / "masks")]
    assert main(arguments) == 1
    assert str(tmp_path / out) in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_bad_pictures_are_left_out_and_listed(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "pics/a.png", 64, 64)
    photo(tmp_path / "pics/c.png", 64, 64)
    (tmp_path / "pics/b.png").write_bytes((tmp_path / "pics/a.png").read_bytes()[:3000])
    arguments = [str(tmp_path / "pics"), str(tmp_path / "out"), "--config", config, "--preset", "sd", *SMALL]
    assert main(arguments) == 1
    assert "b.png" in (said := capsys.readouterr().err)
    assert "--skip-bad" in said
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--skip-bad"]) == 1
    assert "1 pictures left out" in (said := capsys.readouterr().err)
    assert "b.png" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_pictures_and_masks_are_found_and_read_as_by_make_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    (folder / "@eaDir").mkdir(parents=True)
    picture, hole = Image.new("RGB", (64, 64), (200, 30, 90)), Image.new("L", (64, 64))
    picture.save(folder / "a.TIFF")
    hole.save(folder / "a.Mask.bmp")
    picture.save(folder / "b.jpe", "JPEG")
    hole.save(folder / "b_mask001.png")
    (folder / "._a.TIFF").write_bytes(b"x")
    picture.save(folder / "@eaDir" / "c.jpg")
    assert main([str(folder), str(tmp_path / "out")]) == 1
    assert "b.jpe: expected its mask at b.mask.png beside it; found none. Or give --preset" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "out"), "--masks", "{name}_mask*.png"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert Image.open(tmp_path / "out" / "a.png").getpixel((0, 0)) == (200, 30, 90)
    assert "2 left aside\n  2 hidden or of the system: ._a.TIFF, @eaDir/\n" in capsys.readouterr().out
