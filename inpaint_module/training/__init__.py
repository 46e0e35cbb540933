"""Training runs: InpaintDiffusion, callbacks, checkpoints, the second start, and the folder of a run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inpaint_module.training.averages import EMA
    from inpaint_module.training.checkpoints import VerifiedCheckpointIO, newest_valid_checkpoint, verify_checkpoint
    from inpaint_module.training.checks import Leftovers
    from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
    from inpaint_module.training.nonfinite_guard import NonFiniteGuard
    from inpaint_module.training.optimization import DiffusersSchedule, LearningRate
    from inpaint_module.training.resume import ExactResume
    from inpaint_module.training.run_record import ImageGrid, PredictionWriter, RunRecord
    from inpaint_module.training.speed import Throughput
    from inpaint_module.training.watch import ValidationLoss

__all__ = [
    "EMA",
    "DiffusersSchedule",
    "ExactResume",
    "ImageGrid",
    "InpaintDiffusion",
    "LearningRate",
    "Leftovers",
    "NonFiniteGuard",
    "PredictionWriter",
    "RunRecord",
    "Throughput",
    "ValidationLoss",
    "VerifiedCheckpointIO",
    "newest_valid_checkpoint",
    "verify_checkpoint",
]
_HOMES = {
    "DiffusersSchedule": "optimization",
    "EMA": "averages",
    "ExactResume": "resume",
    "ImageGrid": "run_record",
    "InpaintDiffusion": "inpaint_diffusion",
    "LearningRate": "optimization",
    "Leftovers": "checks",
    "NonFiniteGuard": "nonfinite_guard",
    "PredictionWriter": "run_record",
    "RunRecord": "run_record",
    "Throughput": "speed",
    "ValidationLoss": "watch",
    "VerifiedCheckpointIO": "checkpoints",
    "newest_valid_checkpoint": "checkpoints",
    "verify_checkpoint": "checkpoints",
}


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
