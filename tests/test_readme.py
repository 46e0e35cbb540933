"""What the READMEs show works."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from inpaint_module.cli import options
from inpaint_module.cli.command import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PLACES = ("", "inpaint_module", "inpaint_module/base_models", "datamodules", "configs", "tests/benchmarks")
PAGES = [path for place in PLACES for path in sorted((ROOT / place).glob("*.md")) if path.name != "CHANGELOG.md"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_plain_loop_runs() -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(loop, names)
    assert names["loss"].isfinite()  # type: ignore[attr-defined]


@pages
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:tests|configs|datamodules|inpaint_module)/[\w./]+?)(?:::\w+)?`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\[.*?\]\(([^:)#]+?)\)", text):
        assert (page.parent / name).exists(), name


@pages
def test_named_tests_exist(page: Path) -> None:
    for path, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", page.read_text()):
        assert f"def {test}(" in (ROOT / path).read_text()


def test_every_module_is_in_the_tree() -> None:
    (house,) = [text[text.index("## The house") :] for page in PAGES if "## The house" in (text := page.read_text())]
    for package in ("inpaint_module", "datamodules"):
        for path in (ROOT / package).rglob("*.py"):
            beside = path.parent / "README.md"
            told = house + (beside.read_text() if beside.is_file() else "")
            assert path.stem.startswith("__") or re.search(rf"\b{path.stem}\b", told), path


@pages
def test_commands_and_configs_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"-m ((?:train|inpaint_module|datamodules|tests)[\w.]*)", text):
        assert find_spec(name), name
    for name in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"class_path: ((?:inpaint_module|datamodules)[\w.]*)", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


@pages
def test_commands_take_their_options(page: Path) -> None:
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.findall(r"^inpaint (.*)$", block.replace("\\\n", " "), re.MULTILINE):
            given = shlex.split(re.sub(r"runs/\w+/config\.yaml", "configs/quickstart.yaml", line), comments=True)
            name = given[0] if given[0] in COMMANDS else " ".join(given[:2])
            if maker := COMMANDS[name].options:
                getattr(options, maker)().parse(given[len(name.split()) :])
