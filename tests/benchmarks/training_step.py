"""One way to train: how it reads, prepares and encodes; optimizer, clipping and clock are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inpaint_module.base_models import CompiledForward
from tests.benchmarks.phase_clock import PhaseClock
from tests.benchmarks.step_settings import Setting

DATA, PREPARE, ENCODE = "waiting for data", "transfer + masks", "encode"
DENOISER, OPTIMIZER, REST = "denoiser forward + backward", "optimizer", "rest"
PHASES = (DATA, PREPARE, ENCODE, DENOISER, OPTIMIZER, REST)
PREFETCH = 2  # batches that a worker prepares ahead, torch's default


Call = tuple[tuple[Any, ...], dict[str, Any]]


class Place(NamedTuple):
    """Where and how all ways run.

    Attributes:
        device: "cpu" or "cuda".
        workers: processes that read.
        threads: of torch in this process.
        autocast: the denoiser computes in bfloat16.
    """

    device: str
    workers: int
    threads: int
    autocast: bool


class TrainingStep(ABC):
    """A denoiser with its optimizer, and abstract: where the batches come from and how they become a loss.

    Args:
        setting: models and sizes.
        place: where it runs.
        vae_dtype: of the VAE's weights.
        channels_last: memory format of the denoiser's weights.
        fused: the optimizer's pass over the weights.
        cached: clean latents are made before the run.
        compiled: the denoiser's training pass, as `InpaintDiffusion(compile="reduce-overhead")` does it.
    """

    vae: Any
    denoiser: nn.Module

    def __init__(
        self,
        setting: Setting,
        place: Place,
        *,
        vae_dtype: torch.dtype,
        channels_last: bool = False,
        fused: bool = False,
        cached: bool = False,
        compiled: bool = False,
    ):
        self.setting, self.place, self.cached = setting, place, cached
        self.compiled = CompiledForward("reduce-overhead" if compiled else None)
        self.clock = PhaseClock(place.device)
        # past diffusers' own `to`, which warns of every cast
        self.vae = nn.Module.to(setting.new_vae().eval().requires_grad_(False), dtype=vae_dtype)
        self.denoiser = setting.new_denoiser()
        self.assemble()
        self.denoiser.to(place.device)
        if channels_last:
            self.denoiser.to(memory_format=torch.channels_last)
        self.denoiser.register_forward_pre_hook(lambda *_: self.clock.enter(DENOISER))
        self.denoiser.register_forward_hook(lambda *_: self.clock.enter(REST))
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=1e-5, fused=fused)

    @abstractmethod
    def assemble(self) -> None:
        """Put `vae` and `denoiser` where they belong, the VAE on the device."""

    @abstractmethod
    def batches(self) -> Iterator[dict[str, Any]]:
        """Endless batches on the CPU."""

    @abstractmethod
    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """To the device, with masks."""

    @abstractmethod
    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Encode (clocked as such), add noise, denoise, compare: float32 ()."""

    def run(self, batches: Iterator[dict[str, Any]]) -> None:
        """A whole step."""
        self.clock.enter(DATA)
        self.train_on(next(batches))

    def train_on(self, batch: dict[str, Any]) -> None:
        """A step but for the wait."""
        self.clock.enter(PREPARE)
        batch = self.prepare(batch)
        self.clock.enter(REST)
        loss = self.loss(batch)
        self.clock.enter(DENOISER)
        loss.backward()
        self.clock.enter(OPTIMIZER)
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def autocast(self) -> torch.autocast:
        """Around the denoiser."""
        return torch.autocast(self.place.device, torch.bfloat16, enabled=self.place.autocast)

    def models_alone(self, batch: dict[str, Any]) -> Callable[[], None]:
        """The VAE's and denoiser's calls of a step on this batch, to be made again on the very same tensors."""
        encodes, denoises = self._calls_of(batch)

        def again() -> None:
            with torch.no_grad():
                for arguments, options in encodes:
                    self.vae.encode(*arguments, **options)
            with self.autocast(), self.compiled.within(self.denoiser):
                for arguments, options in denoises:
                    self.denoiser(*arguments, **options).sample.float().square().mean().backward()
            self.optimizer.zero_grad()

        return again

    def _calls_of(self, batch: dict[str, Any]) -> tuple[list[Call], list[Call]]:
        """Positional and keyword arguments of every call of the VAE's `encode` and of the denoiser in a step."""
        encodes: list[Call] = []
        denoises: list[Call] = []
        encode = self.vae.encode

        def recorded(*arguments: Any, **options: Any) -> Any:
            encodes.append((arguments, options))
            return encode(*arguments, **options)

        hook = self.denoiser.register_forward_pre_hook(
            lambda _, arguments, options: denoises.append((arguments, options)), with_kwargs=True
        )
        self.vae.encode = recorded
        self.train_on(batch)
        self.vae.encode = encode
        hook.remove()
        return encodes, denoises
