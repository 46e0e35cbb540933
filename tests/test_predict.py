"""The command that inpaints a folder of pictures."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from icc_profiles import display_p3
from PIL import Image, PngImagePlugin
from tiny_run import Setup, tiny_config

from datamodules import WebDatasetDataModule, predict
from datamodules.predict import load_model, main, read_mask
from inpaint_module.masks import preset
from inpaint_module.randomness import Stream, key
from inpaint_module.trained import image_side
from inpaint_module.training.checkpoints import VerifiedCheckpointIO

SMALL = ["--tile", "64", "--overlap", "16"]


@pytest.fixture(autouse=True)
def no_deprecation_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for twice is made once: reading a config takes longer than a small picture."""
    monkeypatch.setattr(predict, "load_model", loaded_once)


@cache
def loaded(configs: tuple[Path, ...], overrides: tuple[str, ...], checkpoint: Path | None, untrained: bool) -> Any:
    return load_model(configs, checkpoint, None, overrides, untrained=untrained)


def loaded_once(configs: Any, checkpoint: Any, steps: Any, overrides: Any = (), *, untrained: bool = False) -> Any:
    model = loaded(tuple(configs), tuple(overrides), checkpoint, untrained)
    model.sampling_steps = steps or 2
    return model


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
    common = [str(tmp_path / "photos"), "--untrained", "--config", config, "--steps", "1", *SMALL]
    assert main([common[0], str(tmp_path / "one"), *common[1:], "--masks", str(tmp_path / "masks")]) == 0
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
    arguments = [
        str(tmp_path / "photos"),
        str(tmp_path / "out"),
        "--preset",
        "lama-medium",
        "--untrained",
        "--config",
        config,
        *SMALL,
    ]
    assert main([*arguments, "--seed", "3"]) == 0
    mask = preset("lama-medium")(key(3, torch.tensor([0]), Stream.MASK), 64, 64)[0, 0].numpy()
    changed = (read(tmp_path / "out/a.png") != image).any(-1)
    assert changed[mask].mean() > 0.9
    assert not changed[~mask].any()


def test_random_weights_are_refused(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "photos/a.png", 64, 64)
    assert main([str(tmp_path / "photos"), str(tmp_path / "out"), "--preset", "sd", "--config", config]) == 1
    assert f"--checkpoint: expected the weights of a training run, as the model of {config}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_a_checkpoint(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_model([Path(config)], None, None, untrained=True)
    assert "no --checkpoint: the weights are as the config makes them" in capsys.readouterr().err
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
    assert (
        main([str(tmp_path / "photos"), str(tmp_path / "out"), "--untrained", "--config", config, *preset_option]) == 1
    )
    assert message in capsys.readouterr().err


def test_a_broken_picture_is_named(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/b.png").write_bytes(b"no image")
    assert (
        main([str(tmp_path / "pics"), str(tmp_path / "out"), "--untrained", "--config", config, "--preset", "sd"]) == 1
    )
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
    assert np.mean(gains) > 3  # dB


def test_scores_and_what_is_said_of_large_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A photo of one colour, filled by the shipped model: plain fills are right to a byte's step, grey is not."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (400, 300), (255, 255, 255)).save(tmp_path / "photos" / "white.png")
    options = [str(tmp_path / "photos"), str(tmp_path / "out"), "--preset", "repaint-half", "--score"]
    assert main(options) == 0
    said = capsys.readouterr().out
    assert "1 with large holes: the model works at 128 pixels a side" in said
    assert "enlarged up to 2.7 times (white.png)" in said  # a hole of 200 x 300 and 150 around it
    psnr = {name.strip(): float(value) for name, value in re.findall(r"  (.+?) +(\S+) dB", said)}
    assert psnr.keys() == {"this model", "smooth fill", "OpenCV's Telea", "mean colour", "grey"}
    assert psnr["grey"] == pytest.approx(6.02, abs=0.01)
    assert psnr["mean colour"] == psnr["smooth fill"] == 100
    assert main([*options[:2], "--score"]) == 1
    assert "--score: expected --preset" in capsys.readouterr().err


def test_the_scale_is_that_of_the_run_s_images(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.yaml" for number in range(3)]
    for file, text in zip(files, ("64", "[96, 160]", "null"), strict=True):
        file.write_text(f"data: {{class_path: x, init_args: {{image_size: {text}}}}}")
    assert image_side(files[:1]) == 64
    assert image_side(files) == 160
    assert image_side(files[2:]) is None
    assert image_side([]) is None


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
    assert (
        main(
            [str(tmp_path / "photos"), str(tmp_path / "out"), "--untrained", "--config", config, "--steps", "1", *SMALL]
        )
        == 0
    )
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
    arguments = [
        str(tmp_path / "pics"),
        str(tmp_path / out),
        "--untrained",
        "--config",
        config,
        "--masks",
        str(tmp_path / "masks"),
    ]
    assert main(arguments) == 1
    assert str(tmp_path / out) in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_bad_pictures_are_left_out_and_listed(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "pics/a.png", 64, 64)
    photo(tmp_path / "pics/c.png", 64, 64)
    (tmp_path / "pics/b.png").write_bytes((tmp_path / "pics/a.png").read_bytes()[:3000])
    arguments = [
        str(tmp_path / "pics"),
        str(tmp_path / "out"),
        "--untrained",
        "--config",
        config,
        "--preset",
        "sd",
        *SMALL,
    ]
    assert main(arguments) == 1
    assert "b.png" in (said := capsys.readouterr().err)
    assert "--skip-bad" in said
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--skip-bad"]) == 1
    assert "1 pictures left out" in (said := capsys.readouterr().err)
    assert "b.png" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    hole(tmp_path / "pics", "a")  # so that b and c have none
    own = [
        str(tmp_path / "pics"),
        str(tmp_path / "own"),
        *[each for each in arguments[2:] if each not in ("--preset", "sd")],
    ]
    assert main([*own, "--skip-bad"]) == 1
    assert "c.png: expected its mask at c.mask.png beside it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["a.png"]


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


def hole(folder: Path, name: str) -> None:
    """A mask of 16 x 16 pixels whose left half is to be inpainted."""
    Image.fromarray(np.repeat(np.uint8([255, 0]), 8)[None].repeat(16, 0)).save(folder / f"{name}.mask.png")


def given(mode: str) -> Image.Image:
    """Noise of 16 x 16 pixels in a mode; of transparency the first row is clear."""
    noise = np.random.default_rng(5).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    noise[0, :, 3] = 0
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 256 + noise[..., 1])
    if mode == "P":
        image = Image.fromarray(noise[..., 0] % 3).convert("P")
        image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
        image.info["transparency"] = b"\x40\xff\x00"
        return image
    image = Image.fromarray(noise) if mode == "RGBA" else Image.fromarray(noise[..., :3])
    if mode == "LA":
        image = image.convert("L")
        image.putalpha(Image.fromarray(noise[..., 3]))
    return image if image.mode == mode else image.convert(mode)


@pytest.fixture
def filled_green(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hole is filled with the sRGB colour (90, 200, 60)."""

    def fill(module: object, image: torch.Tensor, mask: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.where(mask, torch.tensor([90, 200, 60], dtype=torch.uint8)[:, None, None], image)

    monkeypatch.setattr("datamodules.predict.inpaint_image", fill)
    monkeypatch.setattr("datamodules.predict.load_model", lambda *_, **__: SimpleNamespace(device="cpu"))


FILLS = {  # by hand: L is .299 R + .587 G + .114 B = 151.15, of 16 bits times 257
    "RGB": ("RGB", (90, 200, 60)),
    "RGBA": ("RGBA", (90, 200, 60, 255)),
    "P": ("RGBA", (90, 200, 60, 255)),
    "L": ("L", 151),
    "1": ("L", 151),
    "LA": ("LA", (151, 255)),
    "I;16": ("I;16", 151 * 257),
}


@pytest.mark.usefixtures("filled_green")
@pytest.mark.parametrize("mode", FILLS)
def test_transparency_and_depth_are_given_back(mode: str, tmp_path: Path, config: str) -> None:
    given(mode).save(tmp_path / "a.png")
    hole(tmp_path, "a")
    assert (
        main([str(tmp_path), str(tmp_path.with_name(tmp_path.name + "_out")), "--untrained", "--config", config]) == 0
    )
    before, after = Image.open(tmp_path / "a.png"), Image.open(tmp_path.with_name(tmp_path.name + "_out") / "a.png")
    wanted, colour = FILLS[mode]
    assert after.mode == wanted
    assert after.getpixel((3, 0)) == colour
    kept = np.array(before if before.mode == wanted else before.convert(wanted))
    assert (np.array(after)[:, 8:] == kept[:, 8:]).all()


@pytest.mark.usefixtures("filled_green")
def test_the_colour_profile_is_given_back(tmp_path: Path, config: str) -> None:
    profile, pixels = display_p3(), given("RGB")
    (tmp_path / "in").mkdir()
    pixels.save(tmp_path / "in/a.png", icc_profile=profile)
    hole(tmp_path / "in", "a")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--untrained", "--config", config]) == 0
    after = Image.open(tmp_path / "out/a.png")
    assert after.info["icc_profile"] == profile
    assert (np.array(after)[:, 8:] == np.array(pixels)[:, 8:]).all()
    # sRGB's (90, 200, 60) by the published primaries of both, by hand
    assert np.abs(np.subtract(after.getpixel((3, 3)), (120, 198, 82))).max() <= 1


@pytest.mark.usefixtures("filled_green")
def test_what_a_png_cannot_hold_is_said(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    given("CMYK").save(tmp_path / "in/a.tif")
    given("CMYK").save(tmp_path / "in/c.jpg")
    deep = np.random.default_rng(1).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    (tmp_path / "in/b.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    for name in "abc":
        hole(tmp_path / "in", name)
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--untrained", "--config", config]) == 0
    said = capsys.readouterr().out
    assert "2 in CMYK: read as sRGB: a.tif, c.jpg" in said
    assert "1 in colour of 16 bits: the upper 8 are read: b.png" in said
    assert (read(tmp_path / "out/b.png")[:, 8:] == (deep[:, 8:, ::-1] >> 8)).all()
    assert (read(tmp_path / "out/a.png")[:, 8:] == read(tmp_path / "in/a.tif")[:, 8:, :3]).sum() < 200


@pytest.mark.usefixtures("filled_green")
def test_a_png_s_gamma_is_kept(tmp_path: Path, config: str) -> None:
    words = PngImagePlugin.PngInfo()
    words.add(b"gAMA", (100000).to_bytes(4))
    (tmp_path / "in").mkdir()
    given("RGB").save(tmp_path / "in/a.png", pnginfo=words)
    hole(tmp_path / "in", "a")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--untrained", "--config", config]) == 0
    with Image.open(tmp_path / "out/a.png") as after:
        assert after.info["gamma"] == 1


@pytest.mark.usefixtures("filled_green")
def test_only_own_results_are_replaced(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "in/a.png", 16, 16)
    photo(tmp_path / "out/a.png", 8, 8)
    mine = (tmp_path / "out/a.png").read_bytes()
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--untrained", "--config", config, "--preset", "sd"]
    assert main(arguments) == 1
    assert f"{tmp_path / 'out/a.png'}: it is there already" in capsys.readouterr().err
    assert (tmp_path / "out/a.png").read_bytes() == mine
    (tmp_path / "out/a.png").unlink()
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "1"]) == 0


def test_what_fails_while_inpainting_is_left_out(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(module: object, image: torch.Tensor, mask: torch.Tensor, *, position: int, **_: object) -> torch.Tensor:
        if position == 0:
            raise ValueError("the model makes NaN")
        return image

    monkeypatch.setattr("datamodules.predict.inpaint_image", fill)
    for name in ("a.png", "b.tif"):
        photo(tmp_path / "in" / name, 16, 16)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--untrained", "--config", config, "--preset", "sd"]
    assert main(arguments) == 1
    assert f"{tmp_path / 'in/a.png'}: the model makes NaN" in capsys.readouterr().err
    assert main([*arguments, "--skip-bad"]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    assert f"1 pictures left out:\n  {tmp_path / 'in/a.png'}: the model makes NaN" in capsys.readouterr().err


def test_files_and_captions_are_found_as_in_packing(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = []

    def fill(module: object, image: torch.Tensor, mask: torch.Tensor, *, caption: str, **_: object) -> torch.Tensor:
        captions.append(caption)
        return image

    monkeypatch.setattr("datamodules.predict.inpaint_image", fill)
    photo(tmp_path / "in/A.BMP", 16, 16)
    (tmp_path / "in/A.TXT").write_bytes("\ufeffa größer hat\0\0".encode("utf-16-le"))
    Image.new("L", (16, 16), 255).save(tmp_path / "in/A.MASK.TIF")
    for name in ("._A.BMP", "notes.pdf"):
        (tmp_path / "in" / name).write_bytes(b"?")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--untrained", "--config", config]) == 0
    assert captions == ["a größer hat"]
    said = capsys.readouterr().out
    assert "  1 hidden or of the system: ._A.BMP\n  1 not used, ending in .pdf: notes.pdf\n" in said
