"""Look at a mask generator: `python -m inpaint_module.masks --preset sd --out sheet.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser

from inpaint_module.masks import MaskGenerator, preset, presets
from inpaint_module.masks.gallery import draw_sheet, load_photos


def main(arguments: list[str] | None = None) -> None:
    """Draw the contact sheet of a preset, or of the mask generator in a config."""
    parser = argparse.ArgumentParser(prog="python -m inpaint_module.masks", description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", help=", ".join(presets()))
    source.add_argument("--config", type=Path, help="YAML of a training run, or of a mask generator alone")
    parser.add_argument("--out", type=Path, required=True, help="where the picture goes")
    parser.add_argument("--photos", type=Path, help="folder of photos to lay masks over; else the embedded ones")
    parser.add_argument("--number", type=int, default=256, help="masks to measure")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        generator = preset(given.preset) if given.preset else generator_of(given.config)
        title = given.preset or given.config.stem
        photos = load_photos(given.photos)
        sheet = draw_sheet(title, generator, photos, number=given.number, size=given.size, seed=given.seed)
    except (ValueError, argparse.ArgumentError) as error:
        parser.error(str(error))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.out)
    sys.stdout.write(f"{given.out}\n")


def generator_of(config: Path) -> MaskGenerator:
    """The `mask_generator` of a YAML file, however deep it stands; or the whole file, if that is one.

    Raises:
        ValueError: the file holds none.
    """
    document = yaml.safe_load(config.read_text())
    found = _find(document) or document
    if not isinstance(found, dict) or "class_path" not in found:
        raise ValueError(f"{config} must hold a mask_generator, or a class_path with init_args, and holds neither")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mask_generator", type=MaskGenerator)
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name until jsonargparse 4.49
    return build(parser.parse_object({"mask_generator": found})).mask_generator


def _find(node: Any) -> Any:
    """The first `mask_generator` in nested dictionaries, or None."""
    if not isinstance(node, dict):
        return None
    if "mask_generator" in node:
        return node["mask_generator"]
    return next((found for value in node.values() if (found := _find(value))), None)


if __name__ == "__main__":
    main()
