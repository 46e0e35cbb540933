"""What a trainer watches: the loss at fixed noise and timesteps, by hand and in runs; learning rate, gradient norm."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from lightning.pytorch import Callback, LightningModule, Trainer
from quiet_trainer import QUIET, quiet_trainer
from test_ema import loader
from test_ema import module as tiny_run_module
from tiny_folders import CONTROLNET_BASES, PLAIN_BASES, saved
from tiny_models import tiny_batch, tiny_module
from torch import Tensor
from two_ranks import equal, weights

from inpaint_module.base_models import BaseModel
from inpaint_module.objectives.objectives import Objective
from inpaint_module.randomness import Stream, fold_in, key, normal, uniform
from inpaint_module.training import EMA, LearningRate, NonFiniteGuard
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.nonfinite_guard import whole_norm
from inpaint_module.training.watch import (
    ValidationLoss,
    encoded,
    error_sums,
    lacks_target,
    losses_of,
)

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*")]
SCHEDULERS = {
    "epsilon": DDPMScheduler(prediction_type="epsilon"),
    "v": DDPMScheduler(prediction_type="v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@torch.no_grad()
def measured(module: InpaintDiffusion, *batches: Any, seed: int = 0) -> dict[str, float]:
    module.eval()
    return losses_of(sum(error_sums(module, batch["position"], *encoded(module, batch), seed) for batch in batches))  # type: ignore[arg-type]


def draws(position: int, quarter: int, shape: tuple[int, ...], seed: int = 0) -> tuple[float, Tensor]:
    keys = fold_in(key(seed, torch.tensor([position]), Stream.VALIDATION), quarter)
    return (quarter + uniform(fold_in(keys, 0), 1).item()) / 4, normal(fold_in(keys, 1), shape)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_loss_by_hand(kind: str) -> None:
    scheduler = SCHEDULERS[kind]
    module, batch = tiny_module(scheduler=scheduler), tiny_batch(2)
    with torch.no_grad():
        latents = module.encode(batch)  # type: ignore[arg-type]
    target, errors = cast(Tensor, latents.target), torch.zeros(4, 2, 4, 4, 6)
    for quarter in range(4):
        for number in range(2):
            time, noise = draws(number, quarter, target.shape[1:])
            clean = target[number : number + 1]
            told = torch.tensor([time * 1000 if kind == "flow" else int(time * 1000)])
            if kind == "flow":
                noisy, wanted = (1 - time) * clean + time * noise, noise - clean
            else:
                noisy = scheduler.add_noise(clean, noise, told)
                wanted = noise if kind == "epsilon" else scheduler.get_velocity(clean, noise, told)
            part = latents._replace(
                samples=latents.samples[number : number + 1], noise_mask=latents.noise_mask[number : number + 1]
            )
            with torch.no_grad():
                said = module.denoiser(module.layout(noisy, part), told).sample
            errors[quarter, number] = (said - wanted)[0].square()
    hole = F.max_pool2d(latents.noise_mask, 8)[:, 0].bool()
    assert 0 < hole.sum() < hole.numel()
    by_hand = {
        "loss": errors.mean(),
        **{f"loss_q{number + 1}": errors[number].mean() for number in range(4)},
        "loss_hole": errors.permute(0, 2, 1, 3, 4)[:, :, hole].mean(),
        "loss_known": errors.permute(0, 2, 1, 3, 4)[:, :, ~hole].mean(),
    }
    found = measured(module, batch)
    assert list(found) == list(by_hand)
    assert found == pytest.approx({name: value.item() for name, value in by_hand.items()}, rel=1e-5)
    share = hole.float().mean().item()
    assert found["loss"] == pytest.approx(share * found["loss_hole"] + (1 - share) * found["loss_known"], rel=1e-6)


def test_it_is_the_same_in_every_split_over_batches_and_ranks() -> None:
    module, batch = tiny_module(), tiny_batch(5)
    padded = {name: value[[0, 1, 2, 2]] if isinstance(value, Tensor) else value for name, value in batch.items()}
    padded["position"] = torch.tensor([0, 1, 2, -1])
    rest = {name: value[3:] for name, value in batch.items()}
    whole = measured(module, batch)
    assert measured(module, rest, padded) == pytest.approx(whole, rel=1e-6)
    assert measured(module, batch, seed=1)["loss"] != pytest.approx(whole["loss"], rel=1e-3)
    filler = {**padded, "position": torch.full((4,), -1)}
    assert measured(module, filler) == {}


class Given(Objective):
    """The draws of one quarter, as training's objective would have drawn them."""

    def __init__(self, other: Objective, quarter: int):
        self.other, self.quarter = other, quarter

    def __call__(self, clean: Tensor, noise: Tensor, keys: Tensor) -> Any:
        given = [draws(position, self.quarter, clean.shape[1:]) for position in range(len(clean))]
        return self.other.at(clean, torch.cat([noise for _, noise in given]), torch.tensor([time for time, _ in given]))

    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.other.clean(prediction, noisy, timesteps)


@pytest.mark.filterwarnings("ignore:a caption fills all 77 tokens")
@pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["sd15_plain", "flux_kontext_edit", "sd15_controlnet", "channels"])
def test_in_every_way_of_training_it_is_the_training_loss_at_these_draws(name: str, tmp_path: Path) -> None:
    if name == "channels":
        module = tiny_module()
    else:
        base = (PLAIN_BASES | CONTROLNET_BASES)[name]()
        module = InpaintDiffusion(BaseModel(saved(base, tmp_path), train=name.rpartition("_")[2]))
    batch: Any = tiny_batch(2, 32, 48) | {"caption": ["a cat", "two dogs on a sofa"]}
    found, objective = measured(module, batch), module.objective
    for quarter in (0, 3):
        module.objective = Given(objective, quarter)
        with torch.no_grad():
            assert module.loss(batch).item() == pytest.approx(found[f"loss_q{quarter + 1}"], rel=1e-4)


def test_what_a_model_cannot_learn_from_does_not_count() -> None:
    module: Any = SimpleNamespace(layout=SimpleNamespace(reference="image"))
    batch: Any = tiny_batch()
    assert lacks_target(module, batch)
    assert not lacks_target(module, batch | {"target": batch["image"]})


class Seen(Callback):
    """What each validation measured, and whether it left a trace."""

    def __init__(self) -> None:
        self.measured: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self.before: Any = None
        self.raw: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items() if "train/" in name})
        self.before = weights(pl_module)
        was = pl_module.training
        self.raw.append(measured(cast(InpaintDiffusion, pl_module), next(iter(loader(100))))["loss"])
        pl_module.train(was)

    def on_validation_start(self, *args: Any) -> None:
        self.stream = torch.get_rng_state()  # after that of the loader's workers

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert equal(weights(pl_module), self.before)
        assert torch.equal(torch.get_rng_state(), self.stream)
        self.measured.append({n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/loss")})


def test_a_run_watches_the_average_beside_the_trained_weights_and_leaves_no_trace() -> None:
    watched, plain = tiny_run_module(), tiny_run_module()
    for model, callbacks in ((watched, [EMA(0.5), ValidationLoss()]), (plain, [])):
        torch.manual_seed(0)
        seen, guard = Seen(), NonFiniteGuard()
        options: Any = {"limit_val_batches": 1, "val_check_interval": 2, "gradient_clip_val": 1e-3}
        callbacks = [*callbacks, guard, LearningRate(), seen]
        trainer = quiet_trainer(4, num_sanity_val_steps=1, callbacks=callbacks, log_every_n_steps=1, **options)
        trainer.fit(model, loader(), loader(100))
        if model is watched:
            first = seen
            trainer.callbacks.remove(seen)  # type: ignore[attr-defined]
            trainer.validate(model, loader(100), verbose=False)  # as a start does whose training was at its end
            again = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/loss")}
            assert again == first.measured[-1]
    assert first.steps == seen.steps, "training is that of a run without"
    assert all(step["train/learning_rate"] == pytest.approx(1e-3) for step in first.steps)
    assert all(step["train/grad_norm"] > 1e-3 for step in first.steps), "before clipping"
    assert [each["val/loss_raw"] for each in first.measured] == pytest.approx([first.raw[1], first.raw[3]], rel=1e-6)
    assert abs(first.measured[1]["val/loss"] / first.measured[1]["val/loss_raw"] - 1) > 1e-4
    names = {"loss", "loss_raw", "loss_hole", "loss_known", *(f"loss_q{number}" for number in range(1, 5))}
    assert first.measured[1].keys() == {f"val/{name}" for name in names}


def test_the_norm_is_that_of_all_ranks_and_of_unscaled_gradients() -> None:
    from lightning.pytorch.plugins.precision import MixedPrecision

    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    scaled = MixedPrecision("16-mixed", "cpu", SimpleNamespace(get_scale=lambda: 10.0))  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(precision_plugin=scaled)
    fused, plain = torch.optim.AdamW([weight], fused=True), torch.optim.AdamW([weight])
    assert whole_norm(trainer, fused, torch.tensor(50.0)) == 5
    assert whole_norm(trainer, plain, torch.tensor(5.0)) == 5


class Encoded(Callback):
    """How often the VAE encoded, and what was painted."""

    def __init__(self) -> None:
        self.images, self.painted = 0, []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module = cast(InpaintDiffusion, pl_module)
        plain = module.encoder.vae.posterior

        def counted(pixels: Tensor) -> Any:
            self.images += len(pixels)
            return plain(pixels)

        module.encoder.vae.posterior = counted  # type: ignore[method-assign]

    def on_validation_batch_end(self, *arguments: Any) -> None:
        self.painted.append(arguments[2]["inpainted"].clone())


@pytest.mark.parametrize("posterior", ["mode", "sample"])
@pytest.mark.parametrize("max_batch", [None, 3])
def test_a_validation_batch_is_encoded_once(posterior: str, max_batch: int | None) -> None:
    found = []
    for callbacks in ([], [ValidationLoss()]):
        module, encoded = tiny_module(), Encoded()
        module.encoder.posterior, module.encoder.max_batch = posterior, max_batch
        trainer = quiet_trainer(1, callbacks=[*callbacks, encoded], limit_val_batches=2, num_sanity_val_steps=0)
        trainer.validate(module, loader(100), verbose=False)
        assert module.encoded is None
        found.append((encoded, trainer.callback_metrics["val/psnr_inside"]))
    (plain, without), (watched, with_loss) = found
    assert len(plain.painted) == 2
    assert all(map(torch.equal, plain.painted, watched.painted))
    assert without == with_loss
    # the whole images in addition; in passes of another size bits might differ, so that all is encoded again
    assert watched.images == (2 if max_batch is None else 3) * plain.images
