"""What a kill leaves in a checkpoint folder is removed at the next start, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import tiny_batch, tiny_module
from torch.utils.data import DataLoader

from inpaint_module.training import checks
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.checks import Leftovers

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
]
FIRST, SECOND, THIRD = (f"epoch=0-step={step}.ckpt" for step in (1, 2, 3))


def die(*arguments: object) -> None:
    raise KeyboardInterrupt("a kill")


def fit(folder: Path, steps: int, saves: ModelCheckpoint, ckpt_path: Path | None = None, goes_on: bool = True) -> None:
    """Train, a checkpoint a step."""
    data = DataLoader([tiny_batch(2, first=2 * step) for step in range(9)], batch_size=None)
    callbacks = [Leftovers(goes_on=goes_on), saves]
    trainer = quiet_trainer(steps, default_root_dir=folder, callbacks=callbacks, plugins=[VerifiedCheckpointIO()])
    trainer.fit(tiny_module(), data, ckpt_path=ckpt_path, weights_only=True)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Checkpoints of a run that was killed after it had replaced the first one."""
    saves = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1)
    saves._remove_checkpoint = die  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        fit(tmp_path, 3, saves)
    assert sorted(os.listdir(tmp_path)) == [FIRST, SECOND]
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_replaced_and_what_was_never_whole_is_removed_by_name(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(checks, "rank_zero_info", told.append)
    (killed / f"{THIRD}.tmp").write_bytes(b"PK")
    kept = ["a copy.ckpt", "epoch=0-step=99.ckpt", "notes.tmp"]
    for name in kept:
        shutil.copy(killed / FIRST, killed / name)
    fit(killed, 3, ModelCheckpoint(dirpath=killed, every_n_train_steps=1), killed / SECOND)
    assert files(killed) == sorted([*kept, THIRD])  # the second in its turn, though the run went on from it
    assert told == [f"resume: removed what a kill had left: {killed / FIRST}, {killed / (THIRD + '.tmp')}"]


def test_a_checkpoint_that_the_user_has_named_stays(killed: Path) -> None:
    saves = ModelCheckpoint(dirpath=killed, every_n_train_steps=1)
    fit(killed, 3, saves, killed / SECOND, goes_on=False)
    assert files(killed) == [SECOND, THIRD]


def test_whoever_keeps_all_keeps_all(killed: Path) -> None:
    saves = ModelCheckpoint(dirpath=killed, every_n_train_steps=1, save_top_k=-1)
    fit(killed, 3, saves, killed / SECOND)
    assert files(killed) == [FIRST, SECOND, THIRD]


def test_a_file_of_another_kind_under_the_name_stays(killed: Path) -> None:
    (killed / FIRST).write_text("mine")
    fit(killed, 3, ModelCheckpoint(dirpath=killed, every_n_train_steps=1), killed / SECOND)
    assert files(killed) == [FIRST, THIRD]
