"""From a batch to a loss, with real tiny models."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin, UNet2DModel
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from quiet_trainer import quiet_trainer
from tiny_models import ClassConditioning, tiny_batch, tiny_denoiser, tiny_module, tiny_vae
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from inpaint_module import InpaintEncoder
from inpaint_module.base_models import ModelParts, StableDiffusionLayout, drop_mask, grow_input_channels
from inpaint_module.objectives.loss import Huber, LossWeights, weighted_loss
from inpaint_module.objectives.objectives import DiffusionObjective, FlowMatchingObjective
from inpaint_module.objectives.timesteps import LogitNormal
from inpaint_module.randomness import Stream, draw, integers, key, normal
from inpaint_module.sampling import inpaint_latents
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def test_loss_has_gradients_for_the_denoiser_alone() -> None:
    module = tiny_module()
    loss = module.loss(tiny_batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in module.denoiser.parameters())
    assert len(list(module.parameters())) == len(list(module.denoiser.parameters()))
    assert not any("vae" in name for name in module.state_dict())


def test_the_vae_takes_no_more_than_a_batch_at_once() -> None:
    module = tiny_module()
    vae = module.encoder.vae
    with mock.patch.object(vae.module, "encode", wraps=vae.module.encode) as encode:
        module.loss(tiny_batch(3))
    assert [call.args[0].shape for call in encode.call_args_list] == [(3, 3, 32, 48)] * 2


def test_noise_and_timesteps_are_functions_of_the_position() -> None:
    module = tiny_module()
    batch = tiny_batch(4)
    inputs = []
    with mock.patch.object(module.denoiser, "forward", side_effect=module.denoiser.forward) as forward:
        module.loss(batch)
        for part in (slice(0, 1), slice(1, 4)):
            module.loss({name: value[part] for name, value in batch.items()})
        inputs = [call.args for call in forward.call_args_list]
    whole, parts = inputs[0], [torch.cat(pair) for pair in zip(*inputs[1:], strict=True)]
    torch.testing.assert_close(whole[0], parts[0], rtol=0, atol=1e-5)
    assert torch.equal(whole[1], parts[1])


def test_the_loss_falls() -> None:
    torch.manual_seed(0)
    module, batch = tiny_module(), tiny_batch()
    optimizer = torch.optim.AdamW(module.denoiser.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("kind", "golden"), [("v_prediction", 0.26849678), ("epsilon", 1.23409665), ("sample", 0.10240221)]
)
def test_golden_losses(kind: str, golden: float) -> None:
    """Of the days when the loss was one function with the scheduler's own `add_noise`."""
    module = tiny_module(scheduler=DDPMScheduler(prediction_type=kind))
    assert module.loss(tiny_batch(4)).item() == pytest.approx(golden, rel=1e-4)


def test_a_denoiser_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 9 channels, got 4"):
        InpaintDiffusion(
            ModelParts(
                tiny_denoiser(in_channels=4),
                InpaintEncoder(tiny_vae(), normalize=True),
                StableDiffusionLayout(),
                DDIMScheduler(),
            )
        )


def test_an_encoder_that_does_not_suit_the_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="expects an encoder with normalize=True"):
        InpaintDiffusion(
            ModelParts(tiny_denoiser(), InpaintEncoder(tiny_vae()), StableDiffusionLayout(), DDIMScheduler())
        )


def test_inpaint_keeps_known_pixels_and_is_repeatable() -> None:
    module, batch = tiny_module(), tiny_batch(2, 35, 52)
    first, again = module.inpaint(batch), module.inpaint(batch)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.image.shape == first.composite.shape == (2, 3, 32, 48)
    kept = (first.noise_mask == 0).expand_as(first.image)
    assert torch.equal(first.composite[kept], first.image[kept])
    ring = (first.noise_mask > 0.5) & ~first.mask  # grown over, and so the model's
    assert ring.any()
    assert torch.equal(first.composite, torch.where(first.noise_mask > 0.5, first.inpainted, first.image))
    assert not torch.equal(first.composite[ring.expand_as(first.image)], first.image[ring.expand_as(first.image)])
    assert first.inpainted.min() >= 0
    assert first.inpainted.max() <= 1
    hole = first.mask.expand_as(first.image)
    assert (first.masked_image[hole] == 0.5).all()


def test_sampling_starts_from_other_noise_than_training() -> None:
    """A denoiser that has learned the noise of a training photo by heart must not be measured on it."""
    module, batch = tiny_module(seed=3), tiny_batch()
    with (
        mock.patch.object(module, "objective", wraps=module.objective) as objective,
        mock.patch("inpaint_module.training.inpaint_diffusion.inpaint_latents", wraps=inpaint_latents) as sample,
    ):
        module.loss(batch)
        module.inpaint(batch)
    trained, sampled = objective.call_args.args[1], sample.call_args.args[4]
    assert torch.equal(sampled, normal(key(3, batch["position"], Stream.SAMPLER), trained.shape[1:]))
    for photo in range(2):
        assert torch.corrcoef(torch.stack([trained[photo].flatten(), sampled[photo].flatten()]))[0, 1].abs() < 0.3


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*", "ignore:.*available but not used.*")
@pytest.mark.parametrize(("order", "how"), [(2.0, None), (2.0, "norm"), (torch.inf, "value")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_gradients_are_clipped_in_every_precision(precision: str, order: float, how: str | None) -> None:
    norms = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
            norms.append(get_total_norm([each.grad for each in pl_module.parameters() if each.grad is not None], order))

    module = tiny_module(optimizer=partial(torch.optim.AdamW, fused=precision == "bf16-mixed"))
    clipped: Any = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": how}
    trainer = quiet_trainer(2, precision=precision, callbacks=[Look()], **clipped)
    trainer.fit(module, DataLoader([tiny_batch()] * 2, batch_size=None))  # type: ignore[arg-type]
    assert [float(norm) for norm in norms] == pytest.approx([1e-3] * 2, rel=1e-2)


def test_deepcopy_shares_the_vae_and_copies_the_denoiser() -> None:
    module = tiny_module()
    twin = copy.deepcopy(module)
    assert twin.encoder.vae is module.encoder.vae
    assert twin.denoiser is not module.denoiser


def test_strict_load_needs_no_vae_keys() -> None:
    module = tiny_module()
    tiny_module().load_state_dict(module.state_dict(), strict=True)


def base_and_grown(scheduler: SchedulerMixin) -> tuple[UNet2DModel, InpaintDiffusion]:
    base = tiny_denoiser(in_channels=4)
    grown = grow_input_channels(copy.deepcopy(base), 9)
    encoder, layout = InpaintEncoder(tiny_vae(), normalize=True), StableDiffusionLayout("max")
    return base, InpaintDiffusion(ModelParts(grown, encoder, layout, scheduler))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDPMScheduler(prediction_type="v_prediction"),
        DDPMScheduler(prediction_type="sample"),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=["epsilon", "v_prediction", "sample", "flow"],
)
def test_the_first_loss_of_a_grown_model_is_the_base_models(scheduler: SchedulerMixin) -> None:
    base, module = base_and_grown(scheduler)
    batch = tiny_batch(3)
    latents, positions = module.encode(batch), batch["position"]
    assert latents.target is not None
    noise = normal(key(0, positions, Stream.NOISE), latents.target.shape[1:])
    words = draw(key(0, positions, Stream.TIMESTEP), 1)[:, 0]
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        time = (words.double() / 2**32).reshape(-1, 1, 1, 1)
        time = (3 * time / (1 + 2 * time)).float()
        noisy, timesteps = (1 - time) * latents.target + time * noise, time.flatten() * 1000
        target = noise - latents.target
    else:
        timesteps = integers(words, 0, 1000)
        noisy = scheduler.add_noise(latents.target, noise, timesteps)
        velocity = scheduler.get_velocity(latents.target, noise, timesteps)
        kinds = {"epsilon": noise, "v_prediction": velocity, "sample": latents.target}
        target = kinds[scheduler.config.prediction_type]
    expected = F.mse_loss(base(noisy, timesteps).sample, target)
    assert torch.equal(module.loss(batch), expected)


def test_flow_matching_trains_and_inpaints() -> None:
    module = tiny_module(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    module.loss(tiny_batch()).backward()
    assert module.inpaint(tiny_batch()).inpainted.isfinite().all()


def test_sample_weights_and_cell_weights_reach_the_loss() -> None:
    batch = tiny_batch(4)
    plain = tiny_module()
    each = [plain.loss({name: value[n : n + 1] for name, value in batch.items()}) for n in range(4)]
    weighted = tiny_module(objective=partial(DiffusionObjective, snr_gamma=5.0))
    keys = key(0, batch["position"], Stream.TIMESTEP)
    example = weighted.objective(torch.zeros(4, 4, 4, 6), torch.zeros(4, 4, 4, 6), keys)
    assert example.weight is not None
    torch.testing.assert_close(weighted.loss(batch), (torch.stack(each) * example.weight).mean())
    twice = tiny_module(loss_weights=LossWeights(mask=2, outside=2))
    torch.testing.assert_close(twice.loss(batch), 2 * plain.loss(batch))
    assert tiny_module(loss_weights=LossWeights(outside=0)).loss(batch) < plain.loss(batch)


def test_a_huber_loss_reaches_the_loss() -> None:
    batch = tiny_batch(4)
    plain = tiny_module().loss(batch)
    for c in (1e3, 0.5):
        module = tiny_module(objective=partial(DiffusionObjective, huber=Huber(c, schedule="constant")))
        with mock.patch("inpaint_module.training.inpaint_diffusion.weighted_loss", wraps=weighted_loss) as loss:
            found = module.loss(batch)
            prediction, target = loss.call_args.args[:2]
        expected = 2 * c * (((prediction - target).double().square() + c * c).sqrt() - c)
        assert found.item() == pytest.approx(expected.mean().item(), rel=1e-5)
        assert found.item() == pytest.approx(plain.item(), rel=1e-4) if c == 1e3 else found < plain


def conditioned(**options: Any) -> InpaintDiffusion:
    torch.manual_seed(0)
    return tiny_module(denoiser=tiny_denoiser(num_class_embeds=2), conditioning=ClassConditioning(), **options)


def told(module: InpaintDiffusion, step: str, batch: dict[str, Any]) -> list[list[int]]:
    with mock.patch.object(module.denoiser, "forward", side_effect=module.denoiser.forward) as forward:
        getattr(module, step)(batch)
    return [call.kwargs["class_labels"].tolist() for call in forward.call_args_list]


def test_captions_drop_by_position_and_never_in_validation() -> None:
    module, batch = conditioned(caption_dropout=0.5), tiny_batch(8)
    (whole,) = told(module, "loss", batch)
    assert whole == [int(not dropped) for dropped in drop_mask(0, torch.arange(8), 0.5)]
    (part,) = told(module, "loss", {name: value[3:] for name, value in batch.items()})
    assert part == whole[3:]
    assert told(module, "inpaint", batch) == [[1] * 8] * 2
    assert told(conditioned(), "loss", batch) == [[1] * 8]


def test_guidance_asks_with_and_without_captions() -> None:
    module, batch = conditioned(guidance_scale=3.0), tiny_batch(2)
    assert told(module, "inpaint", batch) == [[1, 1], [0, 0]] * 2
    guided, plain = module.inpaint(batch), conditioned().inpaint(batch)
    assert not torch.equal(guided.inpainted, plain.inpainted)


def test_conditioning_moves_along_and_is_in_no_state() -> None:
    module = conditioned()
    assert isinstance(module.conditioning, ClassConditioning)
    module.conditioning.device = torch.device("meta")
    module.to("cpu")
    assert module.conditioning.device == torch.device("cpu")
    assert copy.deepcopy(module).conditioning is module.conditioning
    assert not any("conditioning" in name for name in module.state_dict())


def test_another_conditioning_is_refused() -> None:
    checkpoint: dict[str, Any] = {}
    conditioned().on_save_checkpoint(checkpoint)
    conditioned().on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="trained with a conditioning whose weights have sha256 000102030405"):
        tiny_module().on_load_checkpoint(checkpoint)
    del checkpoint["conditioning_sha256"]  # as before there was one
    tiny_module().on_load_checkpoint(checkpoint)


def test_only_what_trains_is_optimized() -> None:
    module = tiny_module()
    module.denoiser.conv_in.requires_grad_(False)
    groups = module.configure_optimizers().param_groups
    assert len(groups[0]["params"]) == len(list(module.denoiser.parameters())) - 2


def test_a_config_says_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of the dict that `new_model` takes
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(InpaintDiffusion, "model")
    package = "inpaint_module."
    model = yaml.safe_load(CONFIG.read_text())["model"]
    small = {"block_out_channels": [8, 16], "attention_head_dim": 8, "norm_num_groups": 4}
    small |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    parts = model["init_args"]["base"]["init_args"]
    parts["denoiser"]["init_args"]["config"] |= small
    parts["scheduler"] = {"class_path": "diffusers.FlowMatchEulerDiscreteScheduler", "init_args": {"shift": 3.0}}
    model["init_args"] |= {
        "objective": {
            "class_path": package + "objectives.FlowMatchingObjective",
            "init_args": {
                "shift": 2.0,
                "weighting": "cosmap",
                "noise_offset": 0.1,
                "input_perturbation": 0.1,
                "huber": {"class_path": package + "objectives.Huber", "init_args": {"schedule": "exponential"}},
                "timesteps": {"class_path": package + "objectives.timesteps.LogitNormal", "init_args": {"mean": 0.5}},
            },
        },
        "loss_weights": {
            "class_path": package + "objectives.LossWeights",
            "init_args": {"outside": 0.5, "seam": 1.0, "by_area": True},
        },
    }
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name until jsonargparse 4.49
    module = build(parser.parse_object({"model": model})).model
    assert isinstance(module.objective, FlowMatchingObjective)
    assert (module.objective.shift, module.objective.schedule.config.shift) == (2.0, 3.0)
    assert isinstance(module.objective.timesteps, LogitNormal)
    assert (module.objective.weighting, module.objective.huber.schedule) == ("cosmap", "exponential")
    assert (module.objective.timesteps.mean, module.loss_weights.outside) == (0.5, 0.5)
    assert module.loss(tiny_batch()).isfinite()
