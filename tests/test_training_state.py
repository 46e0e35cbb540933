"""The frozen VAE in real training runs: absent from every state, untouched by every precision and strategy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from quiet_trainer import QUIET
from run_records import finish, launch
from tiny_models import tiny_batch
from tiny_vaes import kl
from torch import Tensor, nn
from two_ranks import equal, fit, tiny, weights

from inpaint_module import InpaintEncoder, InpaintLatents
from inpaint_module.randomness import Stream, key
from inpaint_module.training.averages import EMA
from inpaint_module.training.watch import encoded, error_sums, losses_of

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),  # only training is looked at
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),  # the tests hand over the position
]
TESTS = Path(__file__).parent
EXTRA = "encoder._extra_state"
FSDP_RUNS = hasattr(torch.cpu.Stream, "record_event")  # FSDP2 of torch 2.6 does not run on a CPU


def saved(path: Path) -> dict[str, Any]:
    """A checkpoint, read without unpickling, in which of the encoder only the fingerprint may be."""
    checkpoint = torch.load(path, weights_only=True)
    states = [checkpoint["state_dict"], checkpoint.get("current_model_state", {})]
    assert {name for state in states for name in state if not name.startswith("denoiser.")} == {EXTRA}
    assert (checkpoint["state_dict"][EXTRA].dtype, len(checkpoint["state_dict"][EXTRA])) == (torch.uint8, 32)
    return checkpoint


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per verb of `two_ranks.py`, with what it left there and returned on each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(launch(str(TESTS / "two_ranks.py"), str(folder), "ddp", *(["fsdp"] if FSDP_RUNS else []), folder=folder))
    return folder


def returned(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def vae_state(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.encoder.vae.module.state_dict().items()}


def latents_in_training(precision: str) -> tuple[InpaintLatents, nn.Module]:
    """What the encoder returned in the first step of a run, and the trained module."""
    module, seen = tiny(), []
    module.encoder.register_forward_hook(lambda encoder, arguments, latents: seen.append(latents))
    fit(module, precision=precision)
    return seen[0], module


def test_checkpoint_holds_no_vae_and_loads_strictly(tmp_path: Path) -> None:
    module = tiny()
    before = weights(module)
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    assert not equal(weights(module), before)
    twin = tiny()
    twin.load_state_dict(saved(tmp_path / "a.ckpt")["state_dict"], strict=True)
    assert equal(weights(twin), weights(module))


def test_resume_continues_to_the_bit(tmp_path: Path) -> None:
    in_one_go, resumed = tiny(), tiny()
    fit(in_one_go, 4)
    fit(tiny(), 2).save_checkpoint(tmp_path / "a.ckpt")
    fit(resumed, 4, start=2, ckpt_path=tmp_path / "a.ckpt")
    assert equal(weights(resumed), weights(in_one_go))


def test_resume_with_another_vae_is_refused(tmp_path: Path) -> None:
    fit(tiny()).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="trained with a VAE whose weights have sha256"):
        fit(tiny(vae_seed=1), 4, ckpt_path=tmp_path / "a.ckpt")


def test_deepcopy_after_training_shares_the_vae() -> None:
    module = tiny()
    fit(module)
    twin = copy.deepcopy(module)
    assert twin.encoder.vae is module.encoder.vae
    assert equal(weights(twin), weights(module))
    fit(twin)
    assert not equal(weights(twin), weights(module))


def test_ema_averages_the_denoiser_alone(tmp_path: Path) -> None:
    module, ema = tiny(), EMA(decay=0.5)
    vae, start, kernel = vae_state(module), weights(module), module.encoder.kernel.clone()
    trainer = fit(module, callbacks=[ema])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    average = ema._average_model.module
    assert average.encoder.vae is module.encoder.vae
    assert equal(vae_state(module), vae)
    assert torch.equal(average.encoder.kernel, kernel)
    checkpoint = saved(tmp_path / "a.ckpt")
    assert checkpoint["current_model_state"].keys() == checkpoint["state_dict"].keys()
    assert not equal(weights(module), start)
    twin = tiny()
    twin.load_state_dict(checkpoint["state_dict"], strict=True)
    assert equal(weights(twin), weights(module))  # the run has ended: the module is the average


def test_the_vae_stays_in_eval_mode_while_training() -> None:
    module, modes = tiny(), []
    vae: Any = module.encoder.vae
    vae.module.encoder.register_forward_hook(lambda encoder, arguments, out: modes.append(encoder.training))
    module.denoiser.register_forward_hook(lambda denoiser, arguments, out: modes.append(not denoiser.training))
    module.train()
    fit(module)
    assert modes == [False] * 6  # two steps, each of the masked images, the whole ones, and the denoiser
    vae.module.train()  # someone reaches past the module
    module.loss(tiny_batch())
    assert not vae.module.training


def test_to_bfloat16_leaves_the_vae_in_float32() -> None:
    module, plain = tiny().to(torch.bfloat16), tiny()
    vae: Any = module.encoder.vae
    assert next(module.denoiser.parameters()).dtype == torch.bfloat16
    assert vae.dtype == torch.float32
    batch = tiny_batch()
    found, expected = (m.encoder(batch["image"], batch["mask"], target=True) for m in (module, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_trains_on_the_same_latents(precision: str) -> None:
    expected, _ = latents_in_training("32-true")
    found, module = latents_in_training(precision)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {value.dtype for value in module.parameters()} == {dtype}
    assert all(value.isfinite().all() for value in module.parameters())
    assert not equal(weights(module), weights(tiny().to(dtype)))


def test_ddp_on_two_ranks(ranks: Path) -> None:
    first, second = returned(ranks / "ddp")
    assert equal(first["weights"], second["weights"])
    assert not equal(first["weights"], weights(tiny()))
    saved(ranks / "ddp" / "full.ckpt")
    for rank in (first, second):
        assert "the VAE's weights on rank 1 are not those on rank 0" in rank["refused"]


def test_a_step_that_one_rank_cannot_take_is_dropped_on_all(ranks: Path) -> None:
    first, second = returned(ranks / "ddp")
    assert first["dropped"] == second["dropped"] == 1
    assert equal(first["guarded"], second["guarded"])
    assert all(value.isfinite().all() for value in first["guarded"].values())


def test_the_validation_loss_is_that_of_all_ranks(ranks: Path) -> None:
    first, second = (each["losses"] for each in returned(ranks / "ddp"))
    one = {**tiny_batch(first=2)}
    one["position"][1] = -1
    module, batches = tiny().eval(), (tiny_batch(), one)
    with torch.no_grad():
        sums = [error_sums(module, batch["position"], *encoded(module, batch), 0) for batch in batches]  # type: ignore[arg-type]
    whole = losses_of(sums[0] + sums[1])
    assert first == second == pytest.approx({f"val/{name}": value for name, value in whole.items()}, rel=1e-6)


@pytest.mark.skipif(not FSDP_RUNS, reason="FSDP2 of this torch (2.6) does not run on a CPU")
def test_fsdp2_full_checkpoint_saves_and_resumes(ranks: Path) -> None:
    first, second = returned(ranks / "fsdp")
    assert first["shard"] == (4, 9, 3, 3)  # half of the first convolution's 8 output channels
    assert equal(first["weights"], second["weights"])
    assert equal(first["weights"], first["in_one_go"])
    for rank in (first, second):
        assert "trained with a VAE whose weights have sha256" in rank["refused"]
    module: LightningModule = tiny()
    module.load_state_dict(saved(ranks / "fsdp" / "full.ckpt")["state_dict"], strict=True)
    fit(module, 4, start=2, ckpt_path=ranks / "fsdp" / "full.ckpt")  # on one rank, without sharding


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"posterior": "sample", "normalize": True}, {"max_batch": 2}], ids=" ".join)
def test_compiled_encoder_equals_the_eager_one(options: dict[str, Any]) -> None:
    """With default options: tests/test_frozen_vae.py."""
    torch.manual_seed(0)
    encoder, batch = InpaintEncoder(kl(blocks=2), **options), tiny_batch(3, 35, 51)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    keys = key(0, batch["position"], Stream.POSTERIOR)
    found, expected = (e(batch["image"], batch["mask"], target=True, generator=keys) for e in (compiled, encoder))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
