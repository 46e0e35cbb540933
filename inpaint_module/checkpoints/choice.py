"""Which checkpoint a command takes when it is run again, and the run folder that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.checkpoints.checkpoint_io import newest_valid_checkpoint, read_plain, read_seal
from inpaint_module.checkpoints.resume import LOG_VERSIONS, STARTED_FROM, checkpoint_folders, model_checkpoints
from inpaint_module.redaction import redact
from inpaint_module.run_versions import is_open, keep_versions, last_version, names_versions, use_version


def keep_run(trainer: Trainer, named: str | None) -> Path | None:
    """The checkpoint to go on from; the loggers are set to the folder and the run that it belongs to.

    Where the logger of the run folder takes a new version at each start, the run is that of the highest version that
    holds checkpoints.

    Args:
        trainer: whose loggers have made no folder yet.
        named: by the user as where to begin; a run that began with it goes on, any other is left alone.

    Raises:
        ValueError: there are checkpoints, but none verifies, and none is named.
    """
    last = None
    if names_versions(trainer):
        last = last_version(trainer, lambda folder: any((folder / "checkpoints").rglob("*.ckpt")))
        own = [Path(each.dirpath) for each in model_checkpoints(trainer) if each.dirpath and not each.save_weights_only]
        folders = own + ([last / "checkpoints"] if last else [])
    else:
        folders = checkpoint_folders(trainer)
    try:
        path = newest_valid_checkpoint(*folders)
    except ValueError:
        if named is None:
            raise
        return None
    if path is None:
        return None
    kept = read_plain(path) if named is not None or any(map(is_open, trainer.loggers)) else {}
    if named is not None and kept.get(STARTED_FROM) != str(Path(named).resolve()):
        return None
    if last is not None and path.is_relative_to(last):
        use_version(trainer, last)
        rank_zero_info(f"resume: the logger goes on in {last}; to start anew, give it another name or a new version")
    keep_versions(trainer.loggers, kept.get(LOG_VERSIONS, []))
    return path


def check_trained(path: Path | None, model: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Say whose weights are measured.

    Args:
        path: the checkpoint that was found; None for none.
        model: its config. A denoiser with a `path` is loaded, and may be measured before it is trained.
        folders: where checkpoints were looked for.

    Raises:
        ValueError: there is no checkpoint, and the weights are random.
    """
    loaded = loaded_from(model)
    where = ", ".join(map(str, folders)) or "no folder, as the config has no ModelCheckpoint"
    if path is not None:
        rank_zero_info(f"weights: those of {path}, at step {read_seal(path).step}; --ckpt_path FILE takes others")
    elif loaded:
        rank_zero_info(f"weights: those of {redact(loaded)} as they were loaded: no checkpoint in {where}")
    else:
        raise ValueError(
            f"ckpt_path: expected a checkpoint, as the config's model has random weights, got none in {where}: train "
            "it with `fit`, or give --ckpt_path FILE"
        )


def loaded_from(model: Mapping[str, Any]) -> str | None:
    """Where the denoiser of a model's config has its weights from; None for random ones."""
    base = (model.get("init_args") or {}).get("base")
    arguments = (base.get("init_args") or {}) if isinstance(base, Mapping) else {}
    denoiser = arguments.get("denoiser")
    if isinstance(denoiser, Mapping):
        arguments = denoiser.get("init_args") or {}
    places = [value for name, value in arguments.items() if "path" in name and value]  # also of from_pretrained
    return str(places[0]) if places else None


def resume_line(path: Path | None, max_steps: int) -> str:
    """What `fit` says first."""
    if path is None:
        return "resume: no checkpoint yet, starting from scratch"
    step = read_seal(path).step
    if 0 <= max_steps <= step:
        return f"resume: finished: {path} is at step {step} of {max_steps}; raise trainer.max_steps to go on"
    return f"resume: going on from {path} at step {step}; to start anew, delete or rename its folder"
