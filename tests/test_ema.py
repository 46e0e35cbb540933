"""The average of the weights in one process: what validates, what is saved, what a resume goes on from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import ClassConditioning, tiny_denoiser, tiny_module
from torch import Tensor
from torch.utils.data import DataLoader
from two_ranks import Batches, equal, weights

from inpaint_module.training.averages import EMA
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),  # the tests hand over the position
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
DECAY = 0.75


class Watch(Callback):
    """Keeps the denoiser's weights of each training step and each validation batch, and what validation measured."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []
        self.measured: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.trained.append(weights(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.validated.append(weights(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measured.append(trainer.callback_metrics["val/psnr_inside"])


def module(**options: Any) -> InpaintDiffusion:
    torch.manual_seed(0)
    return tiny_module(denoiser=tiny_denoiser(num_class_embeds=2), conditioning=ClassConditioning(), **options)


def trainer_of(steps: int, *callbacks: Callback, every: int = 3) -> Trainer:
    limits = {"limit_val_batches": 1, "limit_predict_batches": 1, "num_sanity_val_steps": 0}
    return quiet_trainer(steps, val_check_interval=every, callbacks=list(callbacks), **limits)


def loader(start: int = 0) -> DataLoader[Any]:
    return DataLoader(Batches(start, 0, 1), batch_size=None)


def fit(
    model: InpaintDiffusion, steps: int, *callbacks: Callback, start: int = 0, path: Path | None = None, every: int = 3
) -> Trainer:
    trainer = trainer_of(steps, *callbacks, every=every)
    trainer.fit(model, loader(start), loader(100), ckpt_path=path, weights_only=True)
    return trainer


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first)


def averages(steps: list[dict[str, Tensor]], decay: float = DECAY) -> list[dict[str, Tensor]]:
    """The moving average after each step, which starts as the weights of the first."""
    return list(
        itertools.accumulate(
            steps, lambda mean, new: {name: decay * mean[name] + (1 - decay) * new[name] for name in new}
        )
    )


def denoiser_state(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("denoiser.")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, Path, InpaintDiffusion]:
    """Six steps with two validations, saved after the third and at the end."""
    folder = tmp_path_factory.mktemp("ema")

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            if trainer.global_step in (3, 6):
                trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")

    watch, model = Watch(), module()
    fit(model, 6, EMA(DECAY), watch, Save())
    return watch, folder, model


def test_validation_runs_with_the_average(run: tuple[Watch, Path, InpaintDiffusion]) -> None:
    watch, _, model = run
    expected = averages(watch.trained)
    assert len(watch.validated) == 2
    assert close(watch.validated[0], expected[2])
    assert close(watch.validated[1], expected[5])
    assert not close(watch.validated[0], watch.trained[2])
    assert close(weights(model), expected[5])  # after the run the module is the average


def test_training_is_as_without(run: tuple[Watch, Path, InpaintDiffusion]) -> None:
    watch, plain = run[0], Watch()
    fit(module(), 6, plain)
    assert all(equal(first, second) for first, second in zip(watch.trained, plain.trained, strict=True))


def test_a_checkpoint_holds_both_and_nothing_frozen(run: tuple[Watch, Path, InpaintDiffusion]) -> None:
    watch, folder, _ = run
    checkpoint = torch.load(folder / "3.ckpt", weights_only=True)
    states = (checkpoint["state_dict"], checkpoint["current_model_state"])
    assert equal(denoiser_state(states[0]), watch.validated[0])
    assert equal(denoiser_state(states[1]), watch.trained[2])
    for state in states:
        assert {name for name in state if not name.startswith("denoiser.")} == {"encoder._extra_state"}
    assert checkpoint["averaging_state"].keys() == {"n_averaged"}


def test_a_checkpoint_of_the_end_can_go_on(run: tuple[Watch, Path, InpaintDiffusion], tmp_path: Path) -> None:
    """ModelCheckpoint's last save comes when the average is in the module already."""
    watch, _, _ = run
    save = ModelCheckpoint(dirpath=tmp_path, save_last=True, every_n_train_steps=100)
    fit(module(), 3, EMA(DECAY), save)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert equal(denoiser_state(checkpoint["current_model_state"]), watch.trained[2])
    assert close(denoiser_state(checkpoint["state_dict"]), watch.validated[0])
    resumed, again = module(), Watch()
    fit(resumed, 6, EMA(DECAY), again, save, start=3, path=tmp_path / "last.ckpt")
    assert all(equal(first, second) for first, second in zip(again.trained, watch.trained[3:], strict=True))


def test_resume_is_equal_to_the_bit(run: tuple[Watch, Path, InpaintDiffusion]) -> None:
    watch, folder, model = run
    resumed, again = module(), Watch()
    fit(resumed, 6, EMA(DECAY), again, start=3, path=folder / "3.ckpt")
    assert all(equal(first, second) for first, second in zip(again.trained, watch.trained[3:], strict=True))
    assert equal(again.validated[-1], watch.validated[-1])
    assert torch.equal(again.measured[-1], watch.measured[-1])
    assert equal(weights(resumed), weights(model))


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_validate_and_predict_use_the_average(run: tuple[Watch, Path, InpaintDiffusion]) -> None:
    watch, folder, _ = run
    for callbacks in ([EMA(DECAY)], []):
        model, again = module(), Watch()
        trainer = trainer_of(6, *callbacks, again)
        trainer.validate(model, loader(100), ckpt_path=folder / "3.ckpt", weights_only=True, verbose=False)
        assert equal(again.validated[0], watch.validated[0])
        assert torch.equal(again.measured[0], watch.measured[0])
        pictures = trainer.predict(model, loader(100), ckpt_path=folder / "3.ckpt", weights_only=True)
        assert pictures is not None
        assert equal(weights(model), watch.validated[0])


def test_frozen_models_are_shared_and_frozen_weights_keep_their_bits() -> None:
    model, ema = module(), EMA(0.9)
    model.denoiser.conv_in.requires_grad_(False)
    frozen, kernel = model.denoiser.conv_in.weight.detach().clone(), model.encoder.kernel.clone()
    fit(model, 6, ema)
    average: Any = ema._average_model
    assert average.module.encoder.vae is model.encoder.vae
    assert average.module.conditioning is model.conditioning
    assert torch.equal(average.module.denoiser.conv_in.weight, frozen)
    assert torch.equal(average.module.encoder.kernel, kernel)


def test_when_it_starts_and_how_often() -> None:
    watch, model = Watch(), module()
    fit(model, 6, EMA(DECAY, update_starting_at_step=2, update_every_n_steps=2), watch, every=6)
    assert close(weights(model), averages([watch.trained[2], watch.trained[4]])[-1])


def test_until_it_starts_the_average_is_what_is_trained(tmp_path: Path) -> None:
    """Validated, saved, left in the module; and a resume over the start is exact."""

    def options() -> list[Callback]:
        return [EMA(DECAY, update_starting_at_step=4), ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **every)]

    every: Any = {"every_n_train_steps": 3}
    watch, short = Watch(), module()
    fit(short, 3, *options(), watch)
    assert equal(watch.validated[0], watch.trained[2])
    assert equal(weights(short), watch.trained[2])
    checkpoint = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    for state in ("state_dict", "current_model_state"):
        assert equal(denoiser_state(checkpoint[state]), watch.trained[2])
    whole, parts, again = module(), module(), Watch()
    fit(whole, 6, *options(), watch)
    fit(parts, 6, *options(), again, start=3, path=tmp_path / "step=3.ckpt")
    assert close(again.validated[-1], averages(again.trained[1:])[-1])
    assert equal(again.validated[-1], watch.validated[-1])
    assert equal(weights(parts), weights(whole))


def test_a_warm_up_averages_a_tenth_of_the_steps() -> None:
    """Decays by hand: 2/11, 3/12, 4/13 at the second, third and fourth update, and no more than the given one."""
    watch = Watch()
    fit(module(), 4, EMA(0.27, warmup=True), watch, every=4)
    expected = watch.trained[0]
    for decay, new in zip((2 / 11, 3 / 12, 0.27), watch.trained[1:], strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * new[name] for name in new}
    assert close(watch.validated[0], expected)


def test_after_the_training_the_average_is_evaluated(run: tuple[Watch, Path, InpaintDiffusion]) -> None:
    watch, folder, _ = run
    model, again = module(), Watch()
    trainer = fit(model, 6, EMA(DECAY), again)
    for path, expected in {None: watch.validated[1], folder / "3.ckpt": watch.validated[0]}.items():
        trainer.validate(model, loader(100), ckpt_path=path, weights_only=True, verbose=False)
        assert equal(again.validated[-1], expected)


def test_sharded_weights_are_refused() -> None:
    model = module()
    model._device_mesh = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="EMA expects a strategy that keeps all weights on every rank, such as ddp, g"):
        EMA().setup(trainer_of(1), model, "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "EMA decay must be in 0..1 and under 1, got 1.0"),
        ({"decay": -0.1}, "EMA decay must be in 0..1 and under 1, got -0.1"),
        ({"update_every_n_steps": 0}, "EMA update_every_n_steps must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(**options)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_average_lies_where_training_does_or_where_it_is_told(device: str | None) -> None:
    """Lightning's own would stay where the module is before it moves."""
    ema, trainer = EMA(device=device), trainer_of(1)
    with mock.patch.object(type(trainer.strategy), "root_device", torch.device("meta")):
        ema.setup(trainer, module(), "fit")
    average: Any = ema._average_model
    assert {value.device.type for value in average.parameters()} == {device or "meta"}
