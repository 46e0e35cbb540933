"""The one command `inpaint`: what it lists, how quickly it helps, and whose modules it runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from datamodules import decode
from datamodules.make_shards import make_shards
from inpaint_module import base_models, masks
from inpaint_module.cli import COMMANDS, command, main, options

ROOT = Path(__file__).parents[1]


def test_help_lists_every_command_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in COMMANDS)
    assert all(len(line) <= 80 for line in told.splitlines() if line.startswith("  "))
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_and_has_a_function(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if COMMANDS[name].options:
        with pytest.raises(SystemExit, match="0"):
            main([*name.split(), "--help"])
    else:
        assert main([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: inpaint {name} ")
    assert "--debug" in told
    assert callable(import_module(COMMANDS[name].module).run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "there is no command 'fitt'; did you mean fit?"),
        (["shards", "mak"], "there is no command 'shards mak'; did you mean shards make?"),
        (["masks", "--preset=sd", "--out=a.png", "--sise=3"], "there is no option --sise; did you mean --size?"),
    ],
)
def test_what_is_not_there_ends_with_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom inpaint_module.cli import main\nfrom inpaint_module.cli import options\n"
    code += f"for name in {[each.options for each in COMMANDS.values() if each.options]}: getattr(options, name)()\n"
    code += "main(['fit', '--help'])\nassert not {'torch', 'lightning', 'numpy', 'datamodules'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_folder_with_modules_of_our_names_changes_nothing(tmp_path: Path) -> None:
    for name in ("train.py", "datamodules/__init__.py", "configs/__init__.py", "jsonargparse.py", "torch.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    (tmp_path / "my_masks.py").write_text(
        "import inpaint_module.masks\nclass Mine(inpaint_module.masks.Boxes): '''Mine.'''"
    )
    (tmp_path / "mine.yaml").write_text("class_path: my_masks.Mine\n")
    arguments = ["masks", "--config=mine.yaml", "--out=sheet.png", "--number=2", "--size=32"]
    script = [sys.executable, "-P", "-c", "import sys\nfrom inpaint_module.cli import main\nsys.exit(main())"]
    helped = subprocess.run([*script, "masks", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert helped.stdout.startswith("usage: inpaint masks "), helped.stderr
    done = subprocess.run(
        [sys.executable, "-m", "inpaint_module", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "sheet.png\n", done.stderr


def test_a_clone_runs_its_own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", "elsewhere"])
    command._own_modules_first()
    assert sys.path == ["", "elsewhere"]
    monkeypatch.chdir(tmp_path)
    command._own_modules_first()
    assert sys.path == ["elsewhere", os.path.realpath(tmp_path)]


def test_names_that_help_repeats_are_those_of_the_code() -> None:
    assert masks.presets() == options.PRESETS
    assert list(base_models.DTYPES) == list(decode.DTYPES.values()) == options.DTYPES
    assert (
        options.shards_make().get_defaults()["shard_bytes"] == signature(make_shards).parameters["shard_bytes"].default
    )


def test_seconds_are_counted_until_something_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with command.counted("doctor", after=0, every=0.001):
        while "doctor: at work for 0 s" not in terminal.getvalue():
            pass
        sys.stdout.write("found\n")
        before = terminal.getvalue()
        sys.stderr.write("and more")
    assert before.endswith("\r\x1b[K")
    assert terminal.getvalue() == before + "and more"
    assert capsys.readouterr().out == "found\n"
