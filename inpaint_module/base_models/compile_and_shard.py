"""A denoiser compiled for the training steps, or its weights split over ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class CompiledForward:
    """Puts compiled code in the place of a module's method; outside the block the module is as it was.

    Hooks of the module stay outside of the compiled code, its state dict keeps its names, and other callers, such as a
    validation with its own shapes, compile nothing. A copy compiles anew, for the module that it is used with.

    Args:
        mode: of torch.compile, one of `MODES`; None leaves the module alone.
        name: of the method; one that somebody has put in its place before stays.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: str | None, name: str = "forward"):
        if mode is not None and mode not in MODES:
            raise ValueError(f"compile must be true, false or one of {', '.join(MODES)}; got {mode!r}")
        self.mode, self.name = mode, name
        self._module: nn.Module | None = None
        self._forward: Callable[..., Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mode, self.name)

    @contextmanager
    def within(self, module: nn.Module | None = None) -> Iterator[None]:
        """Compiled while this lasts; the first call of each shape compiles."""
        if self.mode is None or module is None or self.name in vars(module):
            yield
            return
        if self._module is not module:
            self._module, self._forward = module, torch.compile(getattr(module, self.name), mode=self.mode)
        module.__dict__[self.name] = self._forward
        try:
            yield
        finally:
            del module.__dict__[self.name]


def shard(denoiser: nn.Module, mesh: DeviceMesh) -> None:
    """Split the parameters of a denoiser, in place, over the ranks of a mesh.

    Each of its blocks is gathered when it computes and freed after, so that no rank holds all weights at once. A
    denoiser that is sharded already stays as it is.

    Args:
        denoiser: any module; the blocks are the members of its ModuleLists.
        mesh: one-dimensional, such as `self.device_mesh["data_parallel"]` of a LightningModule.
    """
    if isinstance(denoiser, FSDPModule):
        return
    for block in blocks(denoiser):
        fully_shard(block, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The members of its ModuleLists that have parameters; of a list inside a block, the block alone."""
    for child in denoiser.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            if next(block.parameters(), None) is not None:
                yield block
