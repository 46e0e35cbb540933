"""How commands end, what they say of errors, and the devices that they take."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

import train
from inpaint_module import weights
from inpaint_module.cli.errors import GOES_ON, exit_code_of, message_of, parser_message, take_debug
from inpaint_module.cli.parser import device_of
from inpaint_module.cli.training import check_extras
from inpaint_module.training.nonfinite_guard import NonFiniteGuard
from inpaint_module.vae import load_vae


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("expected this, got that"), 1, "expected this, got that\n"),
        (FileNotFoundError("no such file"), 1, "no such file\n"),
        (argparse.ArgumentError(None, "not an option"), 1, "not an option\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here\n"),
    ],
)
def test_errors_are_told_in_a_line(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise error

    assert exit_code_of(fails, GOES_ON) == code
    assert capsys.readouterr().err == told


def test_a_commands_own_code_is_kept_and_a_bug_is_shown() -> None:
    assert exit_code_of(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_devices() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device: expected auto, cpu or a GPU that is there, got 'cua': "):
        device_of("cua")


def fails_with(error: BaseException) -> int:
    def fails() -> int:
        raise error

    return exit_code_of(fails)


@pytest.mark.parametrize("text", ["DataLoader worker (pid 7) is killed.", "DataLoader worker (pid 7) is killed"])
def test_notes_belong_to_the_message(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError(text)
    error.add_note("It was decoding k.")
    assert fails_with(error) == 1
    assert capsys.readouterr().err == "DataLoader worker (pid 7) is killed. It was decoding k.\n"


def test_runtime_errors_of_others_are_bugs_and_ours_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        fails_with(RuntimeError("sizes of tensors"))
    guard = NonFiniteGuard(max_dropped=1)
    assert exit_code_of(lambda: guard._drop(3, torch.optim.SGD([torch.zeros(1)], lr=1.0))) == 1  # type: ignore[arg-type, return-value]
    assert "expected finite gradients, got infinite or NaN ones" in capsys.readouterr().err


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 2600000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_too_little_memory_names_the_options(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(error) == 1
    told = capsys.readouterr().err
    assert "data.batch_size" in told
    assert "max_batch" in told
    assert "ried to" not in told
    assert ("2.6 GB" in told) == ("2600000000" in str(error))


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INPAINT_DEBUG", "")
    arguments = ["fit", "--debug", "--config", "x"]
    take_debug(arguments)
    assert arguments == ["fit", "--config", "x"]
    with pytest.raises(ValueError, match="why"):
        fails_with(ValueError("why"))


CLOSEST = [
    (
        "--data.batch_sise=3",
        2,
        "data: datamodules.WebDatasetDataModule has no option 'batch_sise'; did you mean batch_size?",
    ),
    ("--trainer.max_stepps=3", 2, "there is no option --trainer.max_stepps; did you mean --trainer.max_steps?"),
    (
        "--model.encoder.init_args.grow_mask=3",
        2,
        "model.base.encoder: inpaint_module.InpaintEncoder has no option 'grow_mask'; did you mean grow_mask_by?",
    ),
    (
        "--data.mask_generator=inpaint_module.masks.Boxen",
        2,
        "data.mask_generator: inpaint_module.masks has no 'Boxen'; did you mean Boxes?",
    ),
    (
        "--trainer.callbacks=inpaint_module.training.EMAA",
        2,
        "trainer.callbacks: inpaint_module.training has no 'EMAA'; did you mean EMA?",
    ),
    (
        '--trainer.callbacks={"class_path": "inpaint_module.report.ValidationReport", "init_args": {"feature_distance":'
        ' {"class_path": "inpaint_module.metrics.feature_distance.FeatureDistance", "init_args": {"path": "x"}}}}',
        2,
        "trainer.callbacks: inpaint_module.report.ValidationReport has no option 'feature_distance' any more; write "
        "lpips: {class_path: inpaint_module.metrics.LPIPS, init_args: {folder: FOLDER OF WEIGHTS}} instead",
    ),
    ("--trainer.max_steps=many", 2, "trainer.max_steps: Expected a <class 'int'>. Got value: many"),
    (
        "--model.encoder.init_args.vae.init_args.path=/nowhere",
        1,
        "VAE: expected a folder, or a name on the hub such as org/model, got '/nowhere': there is no such folder",
    ),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Lightning asks of jsonargparse
@pytest.mark.parametrize(("option", "code", "told"), CLOSEST)
def test_fit_says_what_is_wrong_in_one_paragraph(
    option: str,
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "fit", "--config", "configs/quickstart.yaml", option])
    try:
        found = train.main()
    except SystemExit as end:
        found = int(end.code or 0)
    assert found == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "Seed set to" not in line]
    assert lines[0] == told
    assert lines[1:] == ["All options: python -m train fit --help"] * (code == 2)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_before_anything_is_loaded() -> None:
    config = {"init_args": {"conditioning": {"class_path": "inpaint_module.base_models.load_text"}}}
    with pytest.raises(
        ValueError, match=r"load_text needs the package transformers.*pip install 'inpaint-module\[text\]'"
    ):
        check_extras(config, lambda name: None)
    with pytest.raises(ValueError, match="lora needs the package peft"):
        check_extras({"denoiser": {"init_args": {"lora": {"rank": 4}}}}, lambda name: None)
    check_extras({"denoiser": {"init_args": {"lora": None}}}, lambda name: None)
    check_extras(config)


def test_without_a_network_a_hub_name_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def session() -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", session)
    weights._hub_is_out_of_reach.cache_clear()
    with pytest.raises(ValueError, match=r"got 'some/model': there is no such folder here.* be reached \(Name"):
        load_vae("some/model")
    (tmp_path / "models--some--model").mkdir()
    assert weights.loading_options("some/model", "VAE") == {"local_files_only": True}
    weights._hub_is_out_of_reach.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights._hub_is_out_of_reach() == "HF_HUB_OFFLINE is set"
    weights._hub_is_out_of_reach.cache_clear()


def test_a_parser_s_message_shows_no_secret() -> None:
    parser = argparse.ArgumentParser()
    assert "SECRET" not in parser_message("unrecognized arguments: https://host/x.tar?sig=SECRET", parser)


def test_a_message_without_text_names_its_kind() -> None:
    assert message_of(ValueError()) == "ValueError"
