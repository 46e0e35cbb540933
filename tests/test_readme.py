"""What the README shows works."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_plain_loop_runs() -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(loop, names)
    assert names["loss"].isfinite()  # type: ignore[attr-defined]


def test_named_files_exist() -> None:
    for name in re.findall(r"`((?:tests|configs|datamodules|inpaint_module)/[\w./]+?)(?:::\w+)?`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / name).is_file(), name


def test_named_tests_exist() -> None:
    for path, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", README):
        assert f"def {test}(" in (ROOT / path).read_text()


def test_every_module_is_in_the_tree() -> None:
    house = README[README.index("## The house") :]
    for package in ("inpaint_module", "datamodules"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.stem.startswith("__") or re.search(rf"\b{path.stem}\b", house), path


def test_commands_and_configs_are_there() -> None:
    for name in re.findall(r"-m ((?:train|inpaint_module|datamodules|tests)[\w.]*)", README):
        assert find_spec(name), name
    for name in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"class_path: ((?:inpaint_module|datamodules)[\w.]*)", README):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
