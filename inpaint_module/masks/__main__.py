"""Look at a mask generator: python -m inpaint_module.masks --preset sd --out sheet.png

Paints masks and lays some over photos, beside what they measure: coverage, pieces, and how much mask is lost on the
latent grid by each way to reduce it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from inpaint_module.commands.config_files import make_parts, read_config
from inpaint_module.files import atomic_write_picture
from inpaint_module.masks import MaskGenerator, preset, presets
from inpaint_module.masks.gallery import draw_sheet, load_photos


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inpaint_module.masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(presets())}")
    source.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of a training run, or of a mask generator alone"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="where the sheet goes")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="photos to lay masks over (default: the embedded ones)"
    )
    number = partial(parser.add_argument, type=int, metavar="N")
    number("--number", default=256, help="masks to paint and measure (default %(default)s)")
    number("--size", default=512, help="height and width of the masks in pixels (default %(default)s)")
    number("--seed", default=0, help="of the masks (default %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Draw the contact sheet of a preset, or of the mask generator in a config."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        generator = preset(given.preset) if given.preset else generator_of(given.config)
        title = given.preset or given.config.stem
        photos = load_photos(given.photos)
        sheet = draw_sheet(title, generator, photos, number=given.number, size=given.size, seed=given.seed)
    except (ValueError, argparse.ArgumentError) as error:
        parser.error(str(error))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_picture(given.out, sheet)
    sys.stdout.write(f"{given.out}\n")


def generator_of(config: Path) -> MaskGenerator:
    """The `mask_generator` of a YAML file, however deep it stands; or the whole file, if that is one.

    Raises:
        ValueError: the file holds none.
    """
    document = read_config(config)
    found = _find(document) or document
    if not isinstance(found, dict) or "class_path" not in found:
        raise ValueError(f"{config} must hold a mask_generator, or a class_path with init_args, and holds neither")
    return make_parts({"mask_generator": found}, mask_generator=MaskGenerator).mask_generator


def _find(node: Any) -> Any:
    """The first `mask_generator` in nested dictionaries, or None."""
    if not isinstance(node, dict):
        return None
    if "mask_generator" in node:
        return node["mask_generator"]
    return next((found for value in node.values() if (found := _find(value))), None)


if __name__ == "__main__":
    main()
