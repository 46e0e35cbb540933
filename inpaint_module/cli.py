"""ResumingCLI: LightningCLI whose `fit`, run again, goes on where it was."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import lightning
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden

from inpaint_module.callbacks.nonfinite_guard import NonFiniteGuard
from inpaint_module.callbacks.run_record import RunConfig, RunRecord
from inpaint_module.checkpoints.checkpoint_io import VerifiedCheckpointIO, newest_valid_checkpoint, read_seal
from inpaint_module.checkpoints.leftovers import Leftovers
from inpaint_module.checkpoints.resume import ExactResume, model_checkpoints
from inpaint_module.commands.config_action import ConfigFile
from inpaint_module.commands.errors import parser_message
from inpaint_module.run_folder import CONFIG_HEAD, keep_csv_logs, names_folder, run_folder
from inpaint_module.run_lock import claim, release

_LOAD_TEXT = "inpaint_module.base_models.load_text"


class Parser(LightningArgumentParser):
    """LightningCLI's parser, which reports what is wrong in one paragraph."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        sys.stderr.write(
            f"{parser_message(message, parser)}\nAll options: {parser.prog.replace(' [options]', '')} --help\n"
        )
        self.exit(2)


class ResumingCLI(LightningCLI):
    """LightningCLI whose `fit` goes on from the newest valid checkpoint in the folder of its ModelCheckpoint.

    The same command run again after a kill ends with the same bits as without the kill. To start anew, delete or
    rename the folder, or name another one. `--ckpt_path` goes before. Checkpoints are sealed by `VerifiedCheckpointIO`,
    and `ExactResume` and `NonFiniteGuard` are among the callbacks; to set the guard, name it in the config. A config
    that names another CheckpointIO resumes by `--ckpt_path` alone.

    The config is in the run folder, in `config.yaml`, which `fit` alone writes. While one process trains in a run
    folder, another `fit` is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._claims: list[Path] = []
        super().__init__(*args, **{"save_config_callback": RunConfig, "parser_class": Parser} | kwargs)

    def before_instantiate_classes(self) -> None:
        """Refuse a config that needs a package which is not installed, before anything is downloaded."""
        check_extras(self._get(self.config, "model"))

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` also takes the configs that ship, named as in a clone: configs/quickstart.yaml."""
        kwargs.setdefault("dump_header", [f"{CONFIG_HEAD}{lightning.__version__}"])
        parser = self.parser_class(**kwargs)
        told = "YAML file of a run, of the working folder or one that ships; again for an overlay over those before it"
        parser.add_argument("-c", "--config", action=ConfigFile, metavar="FILE", help=told)
        return parser

    def _parse_ckpt_path(self) -> None:
        """The command line is the truth: hyperparameters of a checkpoint do not replace it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The config's trainer, with our checkpoint files and callbacks."""
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(VerifiedCheckpointIO())
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, NonFiniteGuard) for callback in callbacks):
            callbacks.insert(0, NonFiniteGuard())
        self.exact_resume, self.leftovers = ExactResume(), Leftovers()
        callbacks[:0] = [self.leftovers, self.exact_resume]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """As Lightning does, and give up the run folder at the end."""
        try:
            super()._run_subcommand(subcommand)
        finally:
            while self._claims:
                release(self._claims.pop())

    def _prepare_folder(self, verb: str) -> None:
        """Take the run folder, if it is for `fit`, and keep Lightning from deleting what is in it."""
        folder = run_folder(self.trainer)
        for callback in model_checkpoints(self.trainer):
            callback.dirpath = callback.dirpath or str(folder / "checkpoints")  # which a logger's new id must not move
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        if verb == "fit":
            inside = folder.resolve()
            for each in {inside} | {path.resolve() for path in checkpoint_folders(self.trainer)}:
                if each == inside or not each.is_relative_to(inside):
                    claim(each)
                    self._claims.append(each)
            if not names_folder(self.trainer):
                rank_zero_info(f"run folder: {folder.resolve()}, as no logger names one")
        keep_csv_logs(self.trainer, verb)

    def before_fit(self) -> None:
        """Choose the checkpoint to go on from, and say which.

        Raises:
            ValueError: there are checkpoints, but none verifies; or another process trains in the run folder.
        """
        self._prepare_folder("fit")
        options = self.config_init["fit"]
        ours = isinstance(self.trainer.strategy.checkpoint_io, VerifiedCheckpointIO)
        if ours and options["ckpt_path"] is None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = newest_valid_checkpoint(*checkpoint_folders(self.trainer))
            options["ckpt_path"] = path and str(path)
            self.leftovers.goes_on = True
            rank_zero_info(resume_line(path, self.trainer.max_steps))
        self.exact_resume.ckpt_path = options["ckpt_path"]
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # as it should be
        if is_overridden("state_dict", self.datamodule, LightningDataModule):  # which then keeps the position
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")

    def before_validate(self) -> None:
        """Have the ranks compare their checkpoints."""
        self._prepare_folder(str(self.subcommand))
        self.exact_resume.ckpt_path = self.config_init[self.subcommand]["ckpt_path"]

    before_test = before_predict = before_validate

    def after_fit(self) -> None:
        """If there was nothing left to train, validate: a kill may have cut off the last validation."""
        if self.trainer.fit_loop.restarting and self.trainer.enable_validation:
            self.exact_resume.ckpt_path = None
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunRecord):
                    callback.completes = True
            self.trainer.validate(self.model, datamodule=self.datamodule)


def help_of(prog: str, description: str | None) -> dict[str, Any]:
    """`parser_kwargs` of a LightningCLI whose help says at its head how it is used, instead of a screen of names."""
    verbs = {
        "fit": "Train. Run again after a kill, it goes on from the newest checkpoint that verifies.",
        "validate": "Measure on the validation shards; with a checkpoint, its weights.",
        "test": "Measure as validate does, under test/ names.",
        "predict": "Inpaint the validation shards into the run folder; for pictures: python -m datamodules.predict",
    }
    options = "--config FILE [--config OVERLAY ...] [--ckpt_path FILE]\n    [--{trainer,model,data}.NAME=VALUE ...]"
    parsers = {verb: {"usage": f"{prog} {verb} {options}", "description": told} for verb, told in verbs.items()}
    return {"prog": prog, "description": description, **parsers}


def check_extras(config: Any, installed: Callable[[str], object] = find_spec) -> None:
    """Refuse a model's config whose text encoders or LoRA need packages that are not installed.

    Args:
        config: as parsed, of any depth.
        installed: the name of a package -> whether it is there.

    Raises:
        ValueError: naming the entry, the package and how to install it.
    """
    entries = vars(config) if isinstance(config, Namespace) else config if isinstance(config, dict) else {}
    for name, value in entries.items():
        package = "transformers" if name == "class_path" and value == _LOAD_TEXT else "peft" if name == "lora" else ""
        if package and value is not None and not installed(package):
            raise ValueError(
                f"model: {value if package == 'transformers' else name} needs the package {package}, which is not "
                "installed: pip install 'inpaint-module[text]'"
            )
        check_extras(value, installed)


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """Where the trainer's ModelCheckpoints write all that a resume needs."""
    default = run_folder(trainer) / "checkpoints"
    return [Path(each.dirpath or default) for each in model_checkpoints(trainer) if not each.save_weights_only]


def resume_line(path: Path | None, max_steps: int) -> str:
    """What `fit` says first."""
    if path is None:
        return "resume: no checkpoint yet, starting from scratch"
    step = read_seal(path).step
    if 0 <= max_steps <= step:
        return f"resume: finished: {path} is at step {step} of {max_steps}; raise trainer.max_steps to go on"
    return f"resume: going on from {path} at step {step}; to start anew, delete or rename its folder"
