"""NonFiniteGuard on one rank: a dropped step changes nothing, is counted, and too many end the training."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import tiny_module
from torch import Tensor, nn
from torch.utils.data import DataLoader
from two_ranks import Batches

from inpaint_module.training.nonfinite_guard import NonFiniteGuard, norm_of

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


class Line(LightningModule):
    """A linear model with momentum, whose gradients at some batches are not finite."""

    def __init__(self, factors: dict[int, float], optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW):
        super().__init__()
        self.factors, self.optimizer = factors, optimizer
        self.layer = nn.Linear(3, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
            self.layer.bias.zero_()

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        out = self.layer(batch) * self.factors.get(number, 1.0)
        return out.square().mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]


class States(Callback):
    """Weights and optimizer after each step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        optimizer = trainer.optimizers[0].state_dict()["state"]
        self.seen.append(copy.deepcopy([list(pl_module.parameters()), optimizer]))


def fit(factors: dict[int, float], guard: NonFiniteGuard, steps: int = 4, **options: Any) -> tuple[Trainer, list[Any]]:
    """Train on eight batches; the trainer, and the states after each."""
    states = States()
    module = Line(factors, options.pop("optimizer", torch.optim.AdamW))
    trainer = quiet_trainer(steps, callbacks=[guard, states], log_every_n_steps=1, **options)
    trainer.fit(module, DataLoader(torch.linspace(-1, 1, 48).reshape(16, 3), batch_size=2))
    return trainer, states.seen


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


def flat(states: Any) -> list[Tensor]:
    weights, optimizer = states
    return [*weights, *(value for state in optimizer.values() for value in state.values() if value is not None)]


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_a_dropped_step_changes_nothing(factor: float, clip: float | None, optimizer: Any) -> None:
    guard = NonFiniteGuard()
    trainer, seen = fit({1: factor}, guard, gradient_clip_val=clip, optimizer=optimizer)
    assert same(seen[1], seen[0])
    assert not same(seen[2], seen[1])
    assert all(value.isfinite().all() for value in flat(seen[3]))
    assert (guard.dropped, guard.in_a_row) == (1, 0)
    assert trainer.global_step == 4
    assert trainer.callback_metrics["train/dropped_steps"] == 1


def test_finite_steps_are_those_of_a_run_without_the_guard() -> None:
    guard = NonFiniteGuard()
    _, seen = fit({}, guard)
    guard.on_before_optimizer_step = lambda *arguments: None  # type: ignore[method-assign]
    _, plain = fit({}, guard)
    assert same(seen[-1], plain[-1])
    assert guard.dropped == 0


def test_one_bad_batch_drops_its_accumulation_window() -> None:
    guard = NonFiniteGuard()
    _, seen = fit({2: torch.nan}, guard, steps=2, accumulate_grad_batches=2)
    assert same(seen[3], seen[1])
    assert guard.dropped == 1


def test_too_many_in_a_row_end_the_training() -> None:
    factors = dict.fromkeys([0, 1, 3, 4, 5], torch.nan)
    guard = NonFiniteGuard(max_dropped=3)
    with pytest.raises(
        RuntimeError, match=r"step 5: expected finite gradients, .* 3 steps in a row .* 5 steps dropped in all"
    ):
        fit(factors, guard, steps=8)
    assert guard.in_a_row == 3


def test_state_goes_on_counting() -> None:
    guard, twin = NonFiniteGuard(), NonFiniteGuard()
    guard.dropped, guard.in_a_row = 5, 2
    twin.load_state_dict(guard.state_dict())
    assert (twin.dropped, twin.in_a_row) == (5, 2)


def test_the_norm_is_finite_if_all_are() -> None:
    good = torch.tensor([1e18, -1e-45])
    assert norm_of([good, good.to(torch.bfloat16) / 2]).isfinite()
    assert norm_of([torch.full((9,), 6e4, dtype=torch.float16)]).isfinite()
    assert norm_of([]).isfinite()
    assert not norm_of([torch.tensor([3e38, 3e38])]).isfinite()  # a norm that clipping cannot divide by
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not norm_of([good, torch.tensor([[0.0, bad]])]).isfinite()


def test_max_dropped_must_be_positive() -> None:
    with pytest.raises(ValueError, match="NonFiniteGuard max_dropped: expected at least 1, got 0"):
        NonFiniteGuard(max_dropped=0)


def test_the_samples_of_a_dropped_step_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Those of all batches since the optimizer step before."""

    class Keyed(Line):
        def training_step(self, batch: dict[str, Any], number: int) -> Tensor:  # type: ignore[override]
            return super().training_step(batch["x"], number)

    rows = [{"__key__": f"k{n}", "x": torch.full((3,), float(n))} for n in range(8)]
    options: dict[str, Any] = {"callbacks": [NonFiniteGuard()], "accumulate_grad_batches": 2}
    quiet_trainer(2, **options).fit(Keyed({3: torch.nan}), DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    assert (
        "step 1: gradients are not finite, the step is dropped (1 so far); its samples: k4, k5, k6, k7" in caplog.text
    )


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_clipping_takes_the_guards_norm_and_its_bits(clip: float) -> None:
    """One pass for both; gradients that somebody has changed in between are measured again."""
    norms: list[Any] = []
    for guarded, changes in ((True, False), (False, False), (True, True)):
        module, looks = tiny_module(), mock.patch("torch.nn.utils.clip_grad_norm_", wraps=nn.utils.clip_grad_norm_)
        torch.manual_seed(0)
        callbacks = ([NonFiniteGuard()] if guarded else []) + ([Doubled()] if changes else [])
        with looks as own:
            trainer = quiet_trainer(2, callbacks=callbacks, gradient_clip_val=clip, limit_val_batches=0)
            trainer.fit(module, DataLoader(Batches(0, 0, 1), batch_size=None), DataLoader([0]))
        assert own.call_count == (0 if guarded and not changes else 2)
        norms.append([each.detach().clone() for each in module.optimized()])
    assert all(torch.equal(one, other) for one, other in zip(norms[0], norms[1], strict=True))


class Doubled(Callback):
    """Changes the gradients after the guard has looked at them."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for each in pl_module.parameters():
            if each.grad is not None:
                each.grad.mul_(2)
