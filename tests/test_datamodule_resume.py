"""Training goes on in the stream exactly where it stopped, and says what it cannot go on from."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import Halves, photo_shards
from quiet_trainer import QUIET, quiet_trainer
from recorded_fits import COUNT, Recorder, fit, module
from torch import Tensor

from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.masks import Curriculum, Full, MaskGenerator, Mixture

pytestmark = QUIET


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(photo_shards(tmp_path_factory.mktemp("data"), COUNT))


class Schedule(MaskGenerator):
    """Masks as many rows as optimizer steps were taken, and all of them at the end of the schedule."""

    step = 0

    def set_step(self, step: int) -> None:
        self.step = step

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        rows = (torch.arange(height) < self.step)[:, None]
        return rows.expand(len(keys), 1, height, width)


class Rows(MaskGenerator):
    """The first so many rows."""

    def __init__(self, count: int):
        self.count = count

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        return (torch.arange(height) < self.count)[:, None].repeat(len(keys), 1, 1, width)


def test_a_curriculum_follows_the_optimizer_steps_and_a_resume(shards: str, tmp_path: Path) -> None:
    seen = fit(module(shards, mask_generator=Schedule()), 2, tmp_path, accumulate_grad_batches=2)
    seen += fit(module(shards, mask_generator=Schedule()), 3, tmp_path, tmp_path / "2.ckpt", accumulate_grad_batches=2)
    assert [row[-1] // 16 for row in seen] == [0] * 6 + [1] * 6 + [2] * 6
    recorder = Recorder()
    quiet_trainer(1, default_root_dir=tmp_path).validate(
        recorder, module(shards, mask_generator=Schedule()), verbose=False
    )
    assert {row[-1] for row in recorder.validated} == {16 * 16}


def test_a_curriculum_of_the_package_is_stepped_within_others(shards: str, tmp_path: Path) -> None:
    """No row at step 0, half of them or all at step 1, all from step 2 on."""
    course = Curriculum([Curriculum([Rows(0), Rows(8)], [0, 1]), Rows(16)], [0, 2])
    seen = fit(module(shards, mask_generator=Mixture([course])), 4, tmp_path)
    rows = [row[-1] // 16 for row in seen]
    assert rows[:3] == [0] * 3
    assert set(rows[3:6]) <= {8, 16}
    assert rows[6:] == [16] * 6


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0)])
def test_resume_is_exact(shards: str, tmp_path: Path, before: int, after: int) -> None:
    """7 steps at once, or 3 and a restart with another number of workers: the same samples, crops and masks."""
    whole = fit(module(shards), 7, tmp_path, accumulate_grad_batches=2)
    first = fit(module(shards, num_workers=before), 3, tmp_path, accumulate_grad_batches=2)
    rest = fit(module(shards, num_workers=after), 7, tmp_path, tmp_path / "3.ckpt", accumulate_grad_batches=2)
    assert first + rest == whole
    assert [row[0] for row in whole] == list(range(7 * 2 * 3))
    assert sorted(row[1] for row in whole[:COUNT]) == [f"p{number:03d}" for number in range(COUNT)]


def test_resume_with_another_batch_size_keeps_the_stream(shards: str, tmp_path: Path) -> None:
    whole = fit(module(shards), 4, tmp_path)
    fit(module(shards), 2, tmp_path)
    rest = fit(module(shards, batch_size=1), 8, tmp_path, tmp_path / "2.ckpt")
    assert rest == whole[6:]


def test_short_epochs_go_on_in_the_stream(shards: str, tmp_path: Path) -> None:
    seen = fit(module(shards), 5, tmp_path, limit_train_batches=2)
    assert [row[0] for row in seen] == list(range(15))


def test_overfit_batches_repeats_them(shards: str, tmp_path: Path) -> None:
    seen = fit(module(shards), 4, tmp_path, overfit_batches=2)
    assert seen[:6] == seen[6:]


def test_a_second_fit_goes_on(shards: str, tmp_path: Path) -> None:
    data = module(shards)
    fit(data, 2, tmp_path)
    assert data.state_dict()["position"] == 6
    assert [row[0] for row in fit(data, 1, tmp_path)] == [6, 7, 8]


def test_an_exception_keeps_the_position(shards: str, tmp_path: Path) -> None:
    class Failing(Recorder):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == 2:
                raise RuntimeError("stop")

    data = module(shards)
    with pytest.raises(RuntimeError, match="stop"):
        quiet_trainer(5, default_root_dir=tmp_path, limit_val_batches=0).fit(Failing(), data)
    assert data.state_dict()["position"] == 6


def test_position_without_a_trainer(shards: str) -> None:
    data, other = module(shards), module(shards)
    data.load_state_dict({**other.state_dict(), "position": 20})
    batch = next(iter(data.train_dataloader()))
    assert batch["position"].tolist() == [20, 21, 22]
    batches = list(islice(module(shards).train_dataloader(), 8))
    assert batches[7]["__key__"][0] == next(iter(data.train_dataloader()))["__key__"][1]  # both position 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "data seed: expected 4 as in the checkpoint, got 5"),
        ({"window": 3}, "data window: expected 2 as in the checkpoint, got 3"),
    ],
)
def test_another_stream_is_refused(shards: str, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(shards, **change).load_state_dict(module(shards).state_dict())


def test_another_dataset_or_plan_is_refused(shards: str, tmp_path: Path) -> None:
    state = module(shards).state_dict()
    other = module(str(photo_shards(tmp_path, 2)))
    with pytest.raises(ValueError, match=r"data dataset_fingerprint: expected '[0-9a-f]{64}' as in the checkpoint"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="data plan_version: expected 0 as in the checkpoint, got 2"):
        module(shards).load_state_dict({**state, "plan_version": 0})
    with pytest.raises(ValueError, match="data seed: expected None as in the checkpoint, got 4"):
        module(shards).load_state_dict({name: state[name] for name in state if name != "seed"})


def test_other_masks_are_told(shards: str) -> None:
    state = module(shards).state_dict()
    other = module(shards, mask_generator=Curriculum([Halves(), Full()], [0, 5]))
    with pytest.warns(UserWarning, match=r"data mask_generator: the checkpoint was trained with masks [0-9a-f]{16}"):
        other.load_state_dict(state)
    assert other.position() == state["position"]
    with pytest.warns(UserWarning, match=r"trained with masks that it does not name, and this run paints [0-9a-f]{16}"):
        module(shards).load_state_dict({name: state[name] for name in state if name != "masks_sha256"})


def test_evaluating_a_checkpoint_needs_no_training_data(shards: str, tmp_path: Path) -> None:
    fit(module(shards), 1, tmp_path)
    recorder = Recorder()
    data = WebDatasetDataModule("missing", shards, batch_size=5, image_size=16, mask_generator=Halves(), seed=9)
    quiet_trainer(1, default_root_dir=tmp_path).test(
        recorder, data, ckpt_path=tmp_path / "1.ckpt", weights_only=True, verbose=False
    )
    assert len(recorder.validated) == 15


def test_training_without_end_is_refused(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps: expected a number of optimizer steps, got -1"):
        fit(module(shards), -1, tmp_path)


def test_training_ends_by_epochs_or_time(shards: str, tmp_path: Path) -> None:
    assert len(fit(module(shards), -1, tmp_path, max_epochs=2, limit_train_batches=2)) == 2 * 2 * 3
    assert fit(module(shards), -1, tmp_path, max_time={"seconds": 1})


def test_two_optimizers_are_refused(shards: str, tmp_path: Path) -> None:
    class Adversarial(Recorder):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    with pytest.raises(ValueError, match=r"model\.configure_optimizers: expected one optimizer, got 2"):
        quiet_trainer(2, default_root_dir=tmp_path).fit(Adversarial(), module(shards))
