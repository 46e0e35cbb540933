"""A trained model: from config files and a checkpoint, ready to inpaint or to be exported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule

from inpaint_module.commands.config_files import make_parts, read_parts
from inpaint_module.embedded import ASSETS
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.resume import loaded_from

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
