"""A Trainer on the CPU that is silent, and the warnings of Lightning that say nothing of what is tested."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),  # tiny batches need none
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning 2.6 on torch's newest pytree
    pytest.mark.filterwarnings("ignore:.*available but not used.*"),  # the tests train on the CPU
]


def quiet_trainer(steps: int, **options: Any) -> Trainer:
    """It ends at step `steps`, logs nothing, and saves only by a ModelCheckpoint among its callbacks."""
    saves = any(isinstance(each, ModelCheckpoint) for each in options.get("callbacks", []))
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": saves,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return Trainer(**settings | options)
