"""What the README shows works."""

from __future__ import annotations

import re
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
    for package in ("inpaint_module", "datamodules"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or path.name in README, path
