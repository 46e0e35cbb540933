"""ResumingCLI: LightningCLI whose `fit`, run again, goes on where it was; and the command around it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden

from inpaint_module.batch import DescribedData
from inpaint_module.cli.config_option import ConfigFile, Parser, split_pieces
from inpaint_module.cli.terminal import RunProgress, quiet
from inpaint_module.training.averages import AveragedOptimizer
from inpaint_module.training.changes import settings_of
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.checks import LIGHTNINGS_WORDS, Leftovers
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.lightning_private import names_versions
from inpaint_module.training.memory import MemoryReport, estimate
from inpaint_module.training.nonfinite_guard import NonFiniteGuard
from inpaint_module.training.resume import (
    ExactResume,
    check_trained,
    checkpoint_folders,
    keep_run,
    model_checkpoints,
    resume_line,
)
from inpaint_module.training.run_folder import CONFIG_HEAD, keep_csv_logs, names_folder, run_folder
from inpaint_module.training.run_lock import claim, release
from inpaint_module.training.run_record import RunConfig, RunRecord
from inpaint_module.training.speed import choose, device_of, speed_line
from inpaint_module.weights import without_weights

_READ_TEXT = tuple(f"inpaint_module.base_models.{name}" for name in ("load_text", "BaseModel"))


class ResumingCLI(LightningCLI):
    """LightningCLI whose `fit` goes on from the newest valid checkpoint in the folder of its ModelCheckpoint.

    The same command run again after a kill ends with the same bits as without the kill. To start anew, delete or
    rename the folder, or name another one. What `--ckpt_path` names goes before at the first start with it; the same
    command then goes on from there, and checkpoints of later steps, which it has left behind, are renamed.
    Checkpoints are sealed by `VerifiedCheckpointIO`, and `ExactResume` and `NonFiniteGuard` are among the callbacks; to
    set the guard, name it in the config. A config that names another CheckpointIO resumes by `--ckpt_path` alone.
    The config is in the run folder, in `config.yaml`, which `fit` alone writes. While one process trains in a run
    folder, another `fit` is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._claims: list[Path] = []
        verbs = self.subcommands()
        if kwargs.get("args") is None and sys.argv[1:2] and sys.argv[1] in verbs:  # a parser of each takes its time
            others = verbs.keys() - {sys.argv[1]}
            self.subcommands = lambda: {sys.argv[1]: verbs[sys.argv[1]]}  # type: ignore[method-assign]
            texts = kwargs.get("parser_kwargs") or {}
            kwargs["parser_kwargs"] = {name: value for name, value in texts.items() if name not in others}
        super().__init__(*args, **{"save_config_callback": RunConfig, "parser_class": Parser} | kwargs)

    def before_instantiate_classes(self) -> None:
        """Refuse a config that needs a package which is not installed, before anything is downloaded."""
        check_extras(self._get(self.config, "model"))

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` also takes the configs that ship, named as in a clone: configs/quickstart.yaml."""
        kwargs.setdefault("dump_header", [f"{CONFIG_HEAD}{lightning.__version__}"])
        parser = self.parser_class(**kwargs)
        text = "YAML file of a run, of the working folder or one that ships; again for an overlay over those before it"
        parser.add_argument("-c", "--config", action=ConfigFile, metavar="FILE", help=text)
        return parser

    def _dump_config(self) -> None:
        """As Lightning does, but without checking the config once more."""
        if not hasattr(self, "config_dump"):
            plain = {"skip_link_targets": False, "skip_none": False, "skip_check": True}
            whole = yaml.safe_load(self.parser.dump(self.config, format="yaml", **plain))
            self.config_dump = whole[self.config.subcommand] if "subcommand" in self.config else whole

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The folder of pictures to paint at every validation."""
        chosen = "what makes a run fast and changes no sample: all that the device has, what changes no bit, or nothing"
        parser.add_argument("--speed", type=Literal["auto", "exact", "off"], default="auto", help=chosen)
        text = "folder of pictures, with NAME.mask.png and NAME.txt beside each NAME.jpg, painted at every validation"
        parser.add_argument("--samples", type=str | None, default=None, metavar="FOLDER", help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning does, with callbacks and loggers that are changed one by one."""
        if args is None:
            sys.argv[1:] = split_pieces(sys.argv[1:])
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """The command line is the truth: hyperparameters of a checkpoint do not replace it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The config's trainer, with our checkpoint files and callbacks."""
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(VerifiedCheckpointIO())
        config = self._get(self.config_init, "trainer")
        given = [each for each in config.get("callbacks") or [] if isinstance(each, ProgressBar)]
        if config.get("enable_progress_bar") is not False and not given:
            self.trainer_defaults["callbacks"] = [RunProgress()]
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False  # RunProgress says the number of parameters
        kwargs |= self._chosen_speed(config)
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, NonFiniteGuard) for callback in callbacks):
            callbacks.insert(0, NonFiniteGuard())
        callbacks.append(MemoryReport())
        if folder := self._get(self.config, "samples"):
            callbacks.append(import_module("datamodules.samples").Samples(folder))
        self.exact_resume, self.leftovers = ExactResume(), Leftovers()
        callbacks[:0] = [self.leftovers, AveragedOptimizer(), self.exact_resume]
        return trainer

    def _chosen_speed(self, trainer: Any) -> dict[str, Any]:
        """Speed up model and data as `speed` says, and say it; the trainer's options for it."""
        setting, device = self._get(self.config, "speed"), device_of(trainer.get("accelerator"))
        chosen = choose(setting, self.model, device, trainer)
        done = chosen.apply(self.model, self.datamodule)
        if isinstance(self.model, InpaintDiffusion):
            rank_zero_info(speed_line(setting, device, done))
        return {"precision": chosen.precision} if chosen.precision else {}

    def _run_subcommand(self, subcommand: str) -> None:
        """As Lightning does, and give up the run folder at the end."""
        try:
            super()._run_subcommand(subcommand)
        finally:
            while self._claims:
                release(self._claims.pop(), refused=not self.exact_resume.began)

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
        options = self.config_init["fit"]
        named, quick = options["ckpt_path"], self.trainer.fast_dev_run  # type: ignore[attr-defined]
        ours = isinstance(self.trainer.strategy.checkpoint_io, VerifiedCheckpointIO) and not quick
        if ours and names_versions(self.trainer):
            keep_run(self.trainer, named)  # for the run folder
        self._prepare_folder("fit")
        path = keep_run(self.trainer, named) if ours else None  # when no other process can write there
        if ours and (named is None or path is not None):
            options["ckpt_path"] = path and str(path)
            self.leftovers.goes_on = True
            rank_zero_info(resume_line(path, self.trainer.max_steps))
        elif ours and named not in LIGHTNINGS_WORDS:
            self.exact_resume.started_from = str(Path(named).resolve())
        self.exact_resume.settings = settings_of(self.config["fit"].as_dict())
        self.exact_resume.settings |= {"ranks": str(self.trainer.world_size), "torch": str(torch.__version__)}
        self.exact_resume.ckpt_path = options["ckpt_path"]
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # as it should be
        if is_overridden("state_dict", self.datamodule, LightningDataModule):  # which then keeps the position
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")

    def before_validate(self) -> None:
        """Take the newest checkpoint of the run folder, if none is named, and have the ranks compare theirs.

        Raises:
            ValueError: there is none, and the model's weights are random.
        """
        options = self.config_init[self.subcommand]
        ours = isinstance(self.trainer.strategy.checkpoint_io, VerifiedCheckpointIO)
        ours = ours and options["ckpt_path"] is None
        path = keep_run(self.trainer, None) if ours else None  # before the logger makes a new version
        self._prepare_folder(str(self.subcommand))
        if options["ckpt_path"] is None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_trained(path, self._get(self.config, "model").as_dict(), checkpoint_folders(self.trainer))
            options["ckpt_path"] = path and str(path)
        self.exact_resume.ckpt_path = options["ckpt_path"]

    before_test = before_predict = before_validate

    def after_fit(self) -> None:
        """If there was nothing left to train, validate: a kill may have cut off the last validation."""
        if self.trainer.fit_loop.restarting and self.trainer.enable_validation:
            self.exact_resume.ckpt_path = None
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunRecord):
                    callback.completes = True
            self.trainer.validate(self.model, datamodule=self.datamodule)


class EstimatingCLI(ResumingCLI):
    """Prints what memory `fit` would take, computed from configs alone: no weights are read, no data, no GPU."""

    def instantiate_classes(self) -> None:
        """As Lightning, with models that have shapes but no weights."""
        with without_weights():
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Print the table instead.

        Raises:
            ValueError: a model or data of other classes than ours.
        """
        if not (isinstance(self.model, InpaintDiffusion) and isinstance(self.datamodule, DescribedData)):
            raise ValueError(
                "--estimate: expected the model to be an InpaintDiffusion, and data that say their images' sizes, got "
                f"{type(self.model).__name__} and {type(self.datamodule).__name__}"
            )
        size = self._get(self.config, "data")["init_args"]["batch_size"]
        sys.stdout.write(estimate(self.model, self.datamodule, self.trainer, size) + "\n")


def run(program: str, estimates: bool = False) -> int:
    """Do what `sys.argv` says: fit, validate, test or predict, with the model and the data that the config names.

    Args:
        program: what starts it, for its help.
        estimates: only print what memory `fit` would take.
    """
    quiet()
    (EstimatingCLI if estimates else ResumingCLI)(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_kwargs=help_of(program, "Train, validate, test and predict from a config."),
    )
    return 0


def help_of(prog: str, description: str | None) -> dict[str, Any]:
    """`parser_kwargs` of a LightningCLI whose help says at its head how it is used, instead of a screen of names."""
    verbs = {
        "fit": "Train. Run again after a kill, it goes on from the newest checkpoint that verifies.",
        "validate": "Measure on the validation shards; with a checkpoint, its weights.",
        "test": "Measure as validate does, under test/ names.",
        "predict": "Inpaint the validation shards into the run folder; for pictures: inpaint predict",
    }
    options = "--config FILE [--config OVERLAY ...] [--ckpt_path FILE]\n    [--{trainer,model,data}.NAME=VALUE ...]"
    parsers = {verb: {"usage": f"{prog} {verb} {options}", "description": text} for verb, text in verbs.items()}
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
        package = "transformers" if name == "class_path" and value in _READ_TEXT else "peft" if name == "lora" else ""
        if package and value is not None and not installed(package):
            raise ValueError(
                f"model: {value if package == 'transformers' else name} needs the package {package}, which is not "
                "installed: pip install 'inpaint-module[text]'"
            )
        check_extras(value, installed)
