"""A trained model: from config files and a checkpoint, ready to inpaint or to be exported."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule

from inpaint_module.cli.parser import make_parts, read_config, read_parts
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.resume import loaded_from
from inpaint_module.weights import ASSETS

SHIPPED_NAME, GIVEN_NAME = "the small model that ships", "the model of --config"
SHIPPED_MODEL = ASSETS / "inpainter" / "model.yaml"


def load_model(
    configs: Sequence[Path],
    checkpoint: Path | None,
    steps: int | None,
    overrides: Sequence[str] = (),
    *,
    untrained: bool = False,
) -> InpaintDiffusion:
    """A model ready to inpaint, on the GPU if there is one; without configs the shipped one.

    Raises:
        ValueError: the weights would be random, unless `untrained` allows it.
    """
    if configs and checkpoint is None and not untrained:
        _check_loaded(configs, overrides)
    module = module_from_configs(configs or [SHIPPED_MODEL], overrides)
    if checkpoint is not None:
        load_weights(module, checkpoint)
    elif configs:
        sys.stderr.write("no --checkpoint: the weights are as the config makes them\n")
    if steps is not None:
        module.sampling_steps = steps
    return module.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _check_loaded(configs: Sequence[Path], overrides: Sequence[str]) -> None:
    """Refuse configs that load no denoiser."""
    if loaded_from(read_parts(configs, overrides, model=LightningModule).model.as_dict()) is None:
        raise ValueError(
            f"--checkpoint: expected the weights of a training run, as the model of {', '.join(map(str, configs))} has "
            "random ones, got none: give --checkpoint FILE, such as runs/NAME/checkpoints/last.ckpt; --untrained "
            "inpaints with random weights"
        )


def load_weights(module: LightningModule, checkpoint: Path, *, averaged: bool = True) -> None:
    """Put a checkpoint's weights into a module, strictly.

    Args:
        module: made from the config that the checkpoint was trained with.
        checkpoint: a file that `fit` wrote.
        averaged: of a run with weight averaging (EMA) the averaged weights; False for those of its last step.

    Raises:
        ValueError: a damaged file, or other weights than the module has.
    """
    state = VerifiedCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
    module.on_load_checkpoint(state)
    name = "state_dict" if averaged or "current_model_state" not in state else "current_model_state"
    try:
        module.load_state_dict(state[name])
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: expected the weights of the config's model, got others: {error}") from error


def module_from_configs(configs: Sequence[Path], overrides: Sequence[str] = ()) -> InpaintDiffusion:
    """The model of config files, the later over the earlier, and of options such as `--model.base.path=...`.

    Raises:
        ValueError: no model in them, or one that is no InpaintDiffusion.
    """
    values = read_parts(configs, overrides, model=LightningModule)
    model = make_parts(values, model=LightningModule).model
    if not isinstance(model, InpaintDiffusion):
        raise ValueError(f"config: expected the model to be an InpaintDiffusion, got {type(model).__name__}")
    return model


def image_side(configs: Sequence[Path]) -> int | None:
    """The side in pixels of the images that a run of these config files trains on; None if they do not say."""
    sizes = [read_config(path).get("data", {}).get("init_args", {}).get("image_size") for path in configs]
    said = next((size for size in reversed(sizes) if size is not None), None)
    sides = said if isinstance(said, list) else [said]
    return max(sides) if all(isinstance(side, int) for side in sides) else None


class ModelChoice:
    """The models that can be chosen; the one that was used last stays loaded.

    Args:
        runs: the folder of run folders; it may be missing.
        configs: of one more model; none for no more.
        checkpoint: its weights; None for those that the configs load.
        overrides: options such as `--model.sampling_steps=4`, for that one.
    """

    def __init__(
        self, runs: Path, configs: Sequence[Path] = (), checkpoint: Path | None = None, overrides: Sequence[str] = ()
    ) -> None:
        self.runs, self._given, self._checkpoint, self._overrides = runs, list(configs), checkpoint, overrides
        self._loaded: tuple[object, InpaintDiffusion, int | None] | None = None
        self.lock = threading.Lock()

    def names(self) -> list[str]:
        """Of all models that are there now; the first one is chosen at the start."""
        found = [config.parent for config in self.runs.glob("*/config.yaml") if self.checkpoints(config.parent.name)]
        newest_first = sorted(found, key=lambda run: -(run / "config.yaml").stat().st_mtime)
        return [*([GIVEN_NAME] if self._given else []), SHIPPED_NAME, *(run.name for run in newest_first)]

    def checkpoints(self, name: str) -> list[str]:
        """The names of a run's checkpoints, the newest first; none of other models."""
        files = (self.runs / name / "checkpoints").glob("*.ckpt") if name not in (SHIPPED_NAME, GIVEN_NAME) else ()
        return [file.name for file in sorted(files, key=lambda file: -file.stat().st_mtime)]

    def load(self, name: str, checkpoint: str | None) -> tuple[InpaintDiffusion, int | None]:
        """A model ready to inpaint, and the side in pixels of the images of its config's data, see `image_side`.

        Raises:
            ValueError: there is no such model or checkpoint, or it cannot be loaded.
        """
        if name not in self.names():
            raise ValueError(f"model: expected one of {', '.join(self.names())}, got {name!r}")
        configs, file, more = [], None, list[str]()
        if name == GIVEN_NAME:
            configs, file, more = self._given, self._checkpoint, list(self._overrides)
        elif name != SHIPPED_NAME:
            if (known := self.checkpoints(name)) and checkpoint not in known:
                raise ValueError(f"checkpoint: expected one of {', '.join(known)} of {name}, got {checkpoint!r}")
            configs, file = [self.runs / name / "config.yaml"], self.runs / name / "checkpoints" / str(checkpoint)
        wanted = (name, file, file.stat().st_mtime_ns if file else None)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # two models at once may not fit
            module = load_model(configs, file, None, more)
            self._loaded = (wanted, module, image_side(configs))
        return self._loaded[1:]
