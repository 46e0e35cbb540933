"""What a run leaves in its folder, and the comparison of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import QUIET, quiet_trainer
from run_processes import child
from tiny_models import tiny_module

from datamodules import WebDatasetDataModule
from inpaint_module.compare_runs import flatten, main, read_run
from inpaint_module.masks import Boxes
from inpaint_module.training import RunRecord
from inpaint_module.training.resume import ExactResume
from inpaint_module.training.run_folder import MetricRow, read_metrics, read_record, write_metrics
from inpaint_module.training.run_lock import claim

NAMES = ("train/loss", "val/psnr_inside")
pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*exists and is not empty"),
]


def fit(folder: Path, steps: int, ckpt_path: Path | None = None, size: int = 32) -> None:
    """Train on embedded photos, two of a batch, a validation every two steps."""
    data = WebDatasetDataModule(
        "embedded:val", "embedded:val", batch_size=2, image_size=size, mask_generator=Boxes(resolution=size)
    )
    saves = ModelCheckpoint(dirpath=folder / "c", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(
        steps,
        default_root_dir=folder,
        callbacks=[ExactResume(), RunRecord(), saves],
        val_check_interval=2,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(tiny_module(), data, ckpt_path=ckpt_path, weights_only=True)


def test_a_resumed_run_has_the_metrics_of_one_in_one_go(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, 4)
    fit(parts, 3)
    fit(parts, 4, ckpt_path=parts / "c" / "epoch=0-step=2.ckpt")
    rows = read_metrics(whole / "metrics.csv")
    assert sorted(rows) == sorted(read_metrics(parts / "metrics.csv"))
    assert [row.step for row in rows if row.metric == "train/loss"] == [1, 2, 3, 4]
    assert [row.step for row in rows if row.metric == "val/psnr_inside"] == [2, 4]
    record = json.loads((parts / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 2]
    assert len(record["data"]["dataset_fingerprint"]) == len(record["vae"]["vae_sha256"]) == 64


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    """As of a run that has gone on by other values."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, 4)
    fit(parts, 4)
    path = parts / "metrics.csv"
    write_metrics(path, [row._replace(value=9.0) if row.step > 1 else row for row in read_metrics(path)])
    fit(parts, 4, ckpt_path=parts / "c" / "epoch=0-step=1.ckpt")
    assert sorted(read_metrics(path)) == sorted(read_metrics(whole / "metrics.csv"))


@pytest.mark.parametrize(
    ("record", "metrics"),
    [(None, None), ('{"starts": [', ""), ('{"starts": 1}', "epoch,loss\n1,2\n")],
)
def test_damaged_files_are_no_reason_not_to_go_on(record: str | None, metrics: str | None, tmp_path: Path) -> None:
    """From the checkpoint of a step with a validation, which runs again."""
    fit(tmp_path, 2)
    for name, content in {"run.json": record, "metrics.csv": metrics}.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
    fit(tmp_path, 3, ckpt_path=tmp_path / "c" / "epoch=0-step=2.ckpt")
    steps = {name: [row.step for row in read_metrics(tmp_path / "metrics.csv") if row.metric == name] for name in NAMES}
    assert steps == {"train/loss": [3], "val/psnr_inside": [2]}
    assert [start["step"] for start in read_record(tmp_path / "run.json")["starts"]] == [2]
    if record is not None and metrics is not None:
        assert (tmp_path / "run.json.damaged").read_text() == record
        assert (tmp_path / "metrics.csv.damaged").read_text() == metrics


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with child(lambda: claim(tmp_path)) as pid, pytest.raises(ValueError, match=f"in use by process {pid} on"):
        fit(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock"}
    fit(tmp_path, 1)
    with child(lambda: claim(tmp_path)):  # it has given the folder up
        pass


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics(path, [MetricRow(1, "a", 0.5)])
    with path.open("a") as file:
        file.write("2,a,0.2")
    assert read_metrics(path) == [MetricRow(1, "a", 0.5)]
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: expected the columns step, metric, value"):
        read_metrics(path)


def test_flatten() -> None:
    nested: Any = {"a": [{"b": 1}, {"c": [1, 2]}], "d": {"e": None}}
    assert flatten(nested) == {"a.0.b": "1", "a.1.c": "[1, 2]", "d.e": "None"}


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a", 32), ("b", 48)):
        fit(tmp_path / name, 2, size=size)
        report = {"presets": {"sd": {"seam": size / 100, "seam_vae": 0}}}
        (tmp_path / name / "report.json").write_text(json.dumps(report))
        (tmp_path / name / "config.yaml").write_text(f"data: {{image_size: {size}}}\ntrainer: {{max_steps: 2}}\n")
    folders = [str(tmp_path / name) for name in "ab"]
    (tmp_path / "page.html").write_text("<p>inpaint compare</p>")
    assert main([*folders, "--out", str(tmp_path / "page.html")]) == 1
    assert "page.html: it is there already and was not written by inpaint compare" in capsys.readouterr().err
    for _ in range(2):
        assert main([*folders, "--out", str(tmp_path / "new/page.html")]) == 0
    printed = capsys.readouterr().out
    assert "val/psnr_inside" in printed
    assert ["report.sd.seam", "0.32", "0.48"] in [line.split() for line in printed.splitlines()]
    assert "seam_vae" not in printed
    line = next(line for line in printed.splitlines() if line.startswith("data.image_size"))
    assert line.split() == ["data.image_size", "32", "48"]
    assert "trainer.max_steps" not in printed
    assert "data.image_size</td><td>32</td><td>48" in (tmp_path / "new/page.html").read_text()
    assert read_run(folders[0]).metrics.keys() == read_run(folders[1]).metrics.keys()


def test_a_folder_without_a_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "expected a run folder with metrics.csv and run.json, got none of metrics.csv, run.json" in (
        capsys.readouterr().err
    )
