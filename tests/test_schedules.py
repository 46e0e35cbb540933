"""Learning rates: a run that goes on for longer than its schedule, for every schedule of torch and of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import optimization
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import tiny_module
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

from inpaint_module.training.optimization import DiffusersSchedule, ScheduledModule, length_of, pace_of, step_of

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # of the schedules taken by hand
    pytest.mark.filterwarnings("ignore:.*is not available but strict"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in"),  # SequentialLR's own
]
STEPS, LONGER = 4, 8
warmed: dict[str, Any] = {"num_warmup_steps": 1}
whole: dict[str, Any] = warmed | {"num_training_steps": STEPS}


def sequence(optimizer: Any) -> Any:
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=2), schedulers.CosineAnnealingLR(optimizer, STEPS - 2)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[2])


def chain(optimizer: Any) -> Any:
    return schedulers.ChainedScheduler(
        [schedulers.ExponentialLR(optimizer, 0.9), schedulers.PolynomialLR(optimizer, STEPS)]
    )


ENDLESS: dict[str, LRSchedulerCallable] = {
    "LambdaLR": partial(schedulers.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "MultiplicativeLR": partial(schedulers.MultiplicativeLR, lr_lambda=lambda step: 0.9),
    "StepLR": partial(schedulers.StepLR, step_size=3),
    "MultiStepLR": partial(schedulers.MultiStepLR, milestones=[2, 6]),
    "ConstantLR": partial(schedulers.ConstantLR, total_iters=2),
    "LinearLR": partial(schedulers.LinearLR, total_iters=3),
    "ExponentialLR": partial(schedulers.ExponentialLR, gamma=0.9),
    "CyclicLR": partial(schedulers.CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=2, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": partial(schedulers.CosineAnnealingWarmRestarts, T_0=3),
    "constant": optimization.get_constant_schedule,
    "constant with warm-up": partial(optimization.get_constant_schedule_with_warmup, **warmed),
    "piecewise constant": partial(optimization.get_piecewise_constant_schedule, step_rules="1:2,0.1:6,0.01"),
    "by name, constant": partial(DiffusersSchedule, name="constant"),
}
ENDING: dict[str, LRSchedulerCallable] = {
    "OneCycleLR": partial(schedulers.OneCycleLR, max_lr=1.0, total_steps=STEPS),
    "CosineAnnealingLR": partial(schedulers.CosineAnnealingLR, T_max=STEPS),
    "PolynomialLR": partial(schedulers.PolynomialLR, total_iters=STEPS),
    "LinearLR downwards": partial(schedulers.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=STEPS),
    "SequentialLR": sequence,
    "ChainedScheduler": chain,
    "linear": partial(optimization.get_linear_schedule_with_warmup, **whole),
    "cosine": partial(optimization.get_cosine_schedule_with_warmup, **whole),
    "restarts": partial(optimization.get_cosine_with_hard_restarts_schedule_with_warmup, **whole),
    "polynomial": partial(optimization.get_polynomial_decay_schedule_with_warmup, **whole),
    "by scheduler's name": lambda optimizer: optimization.get_scheduler("cosine", optimizer, **whole),
    "by name, linear": partial(DiffusersSchedule, name="linear", **whole),
}


class Line(ScheduledModule):
    """One weight, and the learning rates that it was trained with."""

    def __init__(self, schedule: LRSchedulerCallable | None, *, stretch: bool = False) -> None:
        super().__init__()
        self.layer, self.rates = nn.Linear(1, 1), list[float]()
        self.optimizer, self.lr_scheduler, self.stretch_schedule = partial(torch.optim.SGD, lr=1.0), schedule, stretch

    def optimized(self) -> list[Tensor]:
        return list(self.parameters())

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss


def rates(
    schedule: LRSchedulerCallable | None, steps: int, folder: Path, *, start: int = 0, **options: Any
) -> list[float]:
    """Train up to `steps`, from the checkpoint of `start`; what was trained with."""
    module, trainer = Line(schedule, **options), quiet_trainer(steps, log_every_n_steps=1)
    path = folder / f"{start}.ckpt" if start else None
    trainer.fit(module, DataLoader(torch.ones(64, 1)), ckpt_path=path, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.rates


def by_hand(make: LRSchedulerCallable, steps: int) -> list[float]:
    """As torch or diffusers have it, without a trainer."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step()  # type: ignore[call-arg]
    return found


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schedule_without_an_end_goes_on(name: str, tmp_path: Path) -> None:
    found = rates(ENDLESS[name], STEPS, tmp_path) + rates(ENDLESS[name], LONGER, tmp_path, start=STEPS)
    assert found == by_hand(ENDLESS[name], LONGER)


@pytest.mark.parametrize("name", ENDING)
def test_after_its_end_the_rate_of_the_last_step_is_kept(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = rates(ENDING[name], STEPS, tmp_path) + rates(ENDING[name], LONGER, tmp_path, start=STEPS)
    expected = by_hand(ENDING[name], STEPS)
    assert found == expected + expected[-1:] * (LONGER - STEPS)
    assert rates(ENDING[name], LONGER, tmp_path) == found  # in one go
    said = [each.message for each in caplog.records if each.message.startswith("learning rate: ")]
    assert said[0] == said[-1]
    assert "has 4 steps, trainer.max_steps is 8: the rate of its last step is kept from there on, " in said[0]
    assert f"{expected[-1]:.3g}; model.init_args.stretch_schedule: true" in said[0]


@pytest.mark.parametrize("metric", ["train/loss", "val/none"])
def test_a_plateau_watches_the_loss_or_what_it_is_told(metric: str, tmp_path: Path) -> None:
    def make(optimizer: Any) -> Any:
        schedule = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")
        if metric != "train/loss":
            schedule.monitor = metric  # as Lightning's own class has it
        return schedule

    found = rates(make, STEPS, tmp_path) + rates(make, LONGER, tmp_path, start=STEPS)
    assert found == ([1.0, 1.0] + [0.5**n for n in range(1, 7)] if metric == "train/loss" else [1.0] * 8)


def test_stretched_to_the_training(tmp_path: Path) -> None:
    """Two optimizer steps to one of the schedule, or one to two; as long as the training, it is as it was."""
    cosine = ENDING["CosineAnnealingLR"]
    expected = by_hand(cosine, STEPS)
    assert rates(cosine, LONGER, tmp_path, stretch=True) == [rate for rate in expected for _ in range(2)]
    assert rates(cosine, STEPS, tmp_path, stretch=True) == expected
    assert rates(cosine, 2, tmp_path, stretch=True) == expected[::2]
    module = Line(ENDING["OneCycleLR"], stretch=True)
    module.trainer = quiet_trainer(LONGER)
    assert [module.schedule_at(step)[0].param_groups[0]["lr"] for step in (2, 7)] == [
        by_hand(ENDING["OneCycleLR"], STEPS)[step] for step in (1, 3)
    ]


def test_lengths() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    assert {name: length_of(make(optimizer)) for name, make in ENDLESS.items()} == dict.fromkeys(ENDLESS)
    assert {name: length_of(make(optimizer)) for name, make in ENDING.items()} == dict.fromkeys(ENDING, STEPS)


@pytest.mark.parametrize(
    ("length", "total", "step", "stretch", "expected"),
    [(None, 8, 5, True, 5), (4, 8, 3, False, 3), (4, 8, 7, False, 3), (4, 8, 7, True, 3), (4, -1, 7, True, 3)],
)
def test_pace(length: int | None, total: int, step: int, stretch: bool, expected: int) -> None:
    assert pace_of(length, total, step, stretch=stretch) == expected


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("cosine", optimization.get_cosine_schedule_with_warmup),
        ("polynomial", optimization.get_polynomial_decay_schedule_with_warmup),
    ],
)
def test_a_schedule_of_diffusers_by_name_is_its_own(name: str, theirs: Callable[..., Any]) -> None:
    ours = partial(DiffusersSchedule, name=name, num_warmup_steps=2, num_training_steps=9)
    assert by_hand(ours, 9) == by_hand(partial(theirs, num_warmup_steps=2, num_training_steps=9), 9)


def test_the_step_of_a_run_that_does_not_train_is_the_checkpoints() -> None:
    module = tiny_module()
    validating, training = (cast(Trainer, SimpleNamespace(global_step=step)) for step in (0, 9))
    assert step_of(validating, module) == step_of(validating, LightningModule()) == 0
    module.on_load_checkpoint({"global_step": 7})
    assert (step_of(validating, module), step_of(training, module)) == (7, 9)
