"""Config files: which one is taken, how one goes over another, and what is said where that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentError
from torch import nn

from inpaint_module.cli.parser import find_config, make_parts, read_config, read_parts, shipped_configs

CONFIGS = Path(__file__).parents[1] / "configs"
LINEAR = "model: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 3}}\n"


@pytest.fixture(autouse=True)
def quiet_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def written(folder: Path, *contents: str) -> list[Path]:
    paths = [folder / f"{number}.yaml" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return paths


def test_those_that_ship_are_those_of_the_folder() -> None:
    assert shipped_configs() == sorted(f"configs/{path.name}" for path in CONFIGS.glob("*.yaml"))


def test_the_working_folder_wins_over_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/quickstart.yaml") == CONFIGS / "quickstart.yaml"
    assert find_config("./configs/lora.yaml") == CONFIGS / "lora.yaml"
    (tmp_path / "configs").mkdir()
    assert find_config("configs/quickstart.yaml") == CONFIGS / "quickstart.yaml"
    (tmp_path / "configs" / "quickstart.yaml").write_text("mine: 1\n")
    assert find_config("configs/quickstart.yaml") == Path("configs/quickstart.yaml")
    assert read_config("configs/quickstart.yaml") == {"mine": 1}


@pytest.mark.parametrize("name", ["quickstart.yaml", "configs/other.yaml", "/configs/quickstart.yaml", "configs"])
def test_what_is_nowhere_is_told_with_those_that_ship(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(ValueError, match=rf"config: expected a file, got {name}; those that ship: configs/.*sdxl"):
        find_config(name)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_config(*written(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", r"config: expected YAML, got .*0\.yaml: while parsing"),
        (b"\xff\xfe\x00", r"config: expected YAML, got .*0\.yaml: "),
        (b"- 1\n", r"config: expected YAML of names and values in .*0\.yaml, got list"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "0.yaml")


def test_later_files_and_overrides_go_over_earlier_files(tmp_path: Path) -> None:
    paths = written(tmp_path, LINEAR, "trainer: {}\n", "model: {init_args: {out_features: 5, bias: false}}\n")
    parts = read_parts(paths, model=nn.Module)
    assert parts.model.init_args.as_dict().items() >= {"in_features": 2, "out_features": 5, "bias": False}.items()
    parts = read_parts(paths, ["--model.in_features=7"], model=nn.Module)
    made = make_parts(parts, model=nn.Module).model
    assert isinstance(made, nn.Linear)
    assert (made.in_features, made.out_features, made.bias) == (7, 5, None)


def test_parts_may_stand_in_different_files(tmp_path: Path) -> None:
    data = "data: {class_path: torch.nn.Dropout, init_args: {p: 0.25}}\n"
    parts = read_parts(written(tmp_path, data, LINEAR), ["--data.p=0.5"], model=nn.Module, data=nn.Module)
    made = make_parts(parts, model=nn.Module, data=nn.Module)
    assert isinstance(made.model, nn.Linear)
    assert made.data.p == 0.5
    assert isinstance(make_parts({"data": parts.data}, data=nn.Module).data(torch.zeros(1)), torch.Tensor)


def test_mistakes_are_named(tmp_path: Path) -> None:
    paths = written(tmp_path, LINEAR)
    with pytest.raises(ValueError, match=r"config: expected data in .*0\.yaml, got none"):
        read_parts(paths, model=nn.Module, data=nn.Module)
    with pytest.raises(ValueError, match=r"config: expected a model in .*1\.yaml, got none"):
        read_parts(written(tmp_path, "data: {}\n", "{}\n"), model=nn.Module)
    paths = written(tmp_path, LINEAR)
    with pytest.raises(ValueError, match=r"expected overrides that begin with --model\., got --data.p=1 --x"):
        read_parts(paths, ["--model.bias=false", "--data.p=1", "--x"], model=nn.Module)
    with pytest.raises(ArgumentError, match="featurs"):
        read_parts(paths, ["--model.in_featurs=1"], model=nn.Module)
    with pytest.raises(ArgumentError, match="Dropout"):
        make_parts({"model": {"class_path": "torch.nn.Dropout"}}, model=nn.Linear)
