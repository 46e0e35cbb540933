"""The model card of an exported folder, README.md: how to load what was trained, and how the run trained it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from inpaint_module.cli.parser import read_config
from inpaint_module.files import atomic_write_text
from inpaint_module.redaction import redacted, redacted_command
from inpaint_module.training.run_folder import RECORD, config_path, metrics_path, read_metrics, read_record

CARD, PICTURES = "README.md", "pictures"


def run_of(checkpoint: Path, configs: Sequence[Path] = ()) -> Path | None:
    """The run folder that a checkpoint, or else a config, lies in; None if there is no run.json."""
    folders = [checkpoint.absolute().parent.parent, *(config.absolute().parent for config in configs)]
    return next((folder for folder in folders if (folder / RECORD).is_file()), None)


def write_card(out: Path, record: Mapping[str, Any], loading: str, base: str | None, run: Path | None = None) -> None:
    """Write README.md into an exported folder, and the run's newest picture grid beside it.

    Args:
        out: the folder.
        record: what is in its export.json.
        loading: Python that loads it.
        base: folder or hub name of the base model; of a folder its last name alone is told. None if there is none.
        run: the run's folder; None for a card without its command, metrics, config and pictures.
    """
    hub = base if base and not Path(base).exists() else None
    told = {"library_name": "diffusers", "pipeline_tag": "image-to-image", "tags": ["inpainting"]}
    head = yaml.safe_dump(told | ({"base_model": hub} if hub else {}), sort_keys=False)
    lines = ["---", head.strip(), "---", "", "# Inpainting", ""]
    if base is not None:
        lines += [f"Trained from {hub or Path(base).name}.", ""]
    lines += ["## Load", "", "```python", loading, "```", ""]
    if differences := record.get("differences"):
        lines += ["What the pipeline does otherwise than training did:", "", *(f"- {each}" for each in differences), ""]
    if run is not None:
        lines += _of_run(run, out)
    atomic_write_text(out / CARD, "\n".join(lines))


def _of_run(run: Path, out: Path) -> list[str]:
    """Command, metrics, pictures and config of a run."""
    record = read_record(run / RECORD)
    command = shlex.join(redacted_command(record.get("command", [])))
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    lines = ["## Training", "", "```bash", command, "```", "", f"On {record.get('device', '?')}, with {versions}.", ""]
    if (path := metrics_path(run)).is_file() and (rows := {row.metric: row for row in read_metrics(path)}):
        lines += ["| metric | step | value |", "|---|---|---|"]
        lines += [f"| {name} | {row.step} | {row.value:.6g} |" for name, row in sorted(rows.items())] + [""]
    if grids := sorted((run / "grids").glob("*.png")):
        (out / PICTURES).mkdir()
        shutil.copyfile(grids[-1], out / PICTURES / grids[-1].name)
        lines += [f"![photos of the validation]({PICTURES}/{grids[-1].name})", ""]
    if (path := config_path(run)).is_file():
        lines += [
            "## Config",
            "",
            "```yaml",
            yaml.safe_dump(redacted(read_config(path)), sort_keys=False).strip(),
            "```",
        ]
    return [*lines, ""]
