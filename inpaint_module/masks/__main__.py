"""Look at a mask generator: inpaint masks --preset sd --out sheet.png

Paints masks and lays some over photos, beside what they measure: coverage, pieces, and how much mask is lost on the
latent grid by each way to reduce it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from inpaint_module.commands import options
from inpaint_module.commands.config_files import make_parts, read_config
from inpaint_module.commands.errors import exit_code_of
from inpaint_module.files import atomic_write_picture, check_replaceable
from inpaint_module.masks import MaskGenerator, preset
from inpaint_module.masks.gallery import draw_sheet, load_photos

_MAKER = "inpaint masks"


def run(given: Namespace, overrides: Sequence[str] = ()) -> int:
    """The command, with what `options.masks` parsed."""
    check_replaceable(given.out, _MAKER)
    generator = preset(given.preset) if given.preset else generator_of(given.config)
    title = given.preset or given.config.stem
    photos = load_photos(given.photos)
    sheet = draw_sheet(title, generator, photos, number=given.number, size=given.size, seed=given.seed, progress=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_picture(given.out, sheet, _MAKER)
    sys.stdout.write(f"{given.out}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.masks().parse(arguments)))


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
    sys.exit(main())
