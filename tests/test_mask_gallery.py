"""Mask generators from YAML, and the gallery that draws them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from mask_cases import KEYS
from PIL import Image

from inpaint_module.masks import (
    Cloud,
    FullWithProbability,
    Grown,
    MaskGenerator,
    Mixture,
    preset,
)
from inpaint_module.masks.gallery import count_components, main

YAML = """
mask_generator:
  class_path: inpaint_module.masks.FullWithProbability
  init_args:
    probability: 0.1
    generator:
      class_path: inpaint_module.masks.Mixture
      init_args:
        probabilities: [0.5, 0.5]
        generators:
          - {class_path: inpaint_module.masks.preset, init_args: {name: sd}}
          - class_path: inpaint_module.masks.Grown
            init_args: {generator: {class_path: inpaint_module.masks.Cloud}, pixels: [-4, 4]}
"""


def test_generators_come_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mask_generator", type=MaskGenerator)
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name until jsonargparse 4.49
    made = build(parser.parse_string(YAML)).mask_generator
    expected = FullWithProbability(Mixture([preset("sd"), Grown(Cloud(), (-4, 4))], [0.5, 0.5]), 0.1)
    assert torch.equal(made(KEYS, 64, 64), expected(KEYS, 64, 64))
    line = ["--mask_generator", "inpaint_module.masks.preset", "--mask_generator.name", "cloud"]
    assert isinstance(build(parser.parse_args(line)).mask_generator, Cloud)


def test_the_gallery_draws_presets_and_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "masks.yaml"
    config.write_text("trainer: {logger: {class_path: x.Y}}\ndata:\n  init_args:\n" + textwrap.indent(YAML, "    "))
    for source in (["--preset", "sd"], ["--config", str(config)]):
        out = tmp_path / "sheets" / "sheet.png"
        main([*source, "--out", str(out), "--number", "33", "--size", "64"])
        assert capsys.readouterr().out == f"{out}\n"
        with Image.open(out) as sheet:
            assert len(set(sheet.convert("RGB").resize((64, 64)).get_flattened_data())) > 500
    Image.new("RGB", (8, 8)).save(out)
    assert main(["--preset", "sd", "--out", str(out)]) == 1
    assert "sheet.png: it is there already and was not written by inpaint masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "nope"], "unknown mask preset 'nope'; known are lama-thin"),
        (["--preset", "sd", "--photos", "/nowhere"], r"no photos \(.jpg, .* in /nowhere; name a folder with --photos"),
        (["--config", "pyproject.yaml"], "must hold a mask_generator, or a class_path with init_args"),
    ],
)
def test_the_gallery_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.yaml").write_text("trainer: {max_steps: 3}")
    assert main([*arguments, "--out", "sheet.png"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_pieces_by_hand() -> None:
    picture = ["##..#", ".....", "#.#.#", "###.#", "...#."]
    mask = torch.tensor([[char == "#" for char in line] for line in picture])
    snail = torch.tensor([[char == "#" for char in line] for line in ["#####", "....#", "###.#", "#...#", "#####"]])
    masks = torch.stack([mask, snail, torch.zeros(5, 5, dtype=torch.bool), ~snail])[:, None]
    assert count_components(masks) == [3, 1, 0, 1]
