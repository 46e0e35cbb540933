"""A denoiser compiled for the training steps, or its weights split over ranks (FSDP2), or on the CPU between uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from inpaint_module.base_models.quantize import is_quantized
from inpaint_module.weights import brought_to, frozen, kept_on_cpu

if TYPE_CHECKING:
    from inpaint_module.base_models.base_model import ModelParts

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


OFFLOADS = (False, True, "blocks")


def offload_frozen(base: ModelParts, what: bool | str, compiled: bool = False) -> None:
    """Keep frozen weights on the CPU between uses, from the next move of the model on.

    Args:
        base: whose weights.
        what: False for none; True for those of VAE and text encoders; "blocks" for those of the denoiser's blocks too,
            and of the base model beside a ControlNet.
        compiled: whether the denoiser is.

    Raises:
        ValueError: another value; or blocks that are compiled, quantized, all train, or keep their activations.
    """
    if what not in OFFLOADS:
        raise ValueError(f"offload must be true, false or blocks; got {what!r}")
    if what:
        base.encoder.vae.offload()
        base.conditioning.offload()
    if what == "blocks":
        if compiled:
            raise ValueError("offload: expected true or false where the denoiser is compiled, got blocks")
        networks = [base.denoiser, *([] if base.control is None else [base.control.base.model])]
        if not any(map(_offload_blocks, networks)):
            raise ValueError("offload: expected true or false where all weights train, got blocks: give base.lora")


def _offload_blocks(denoiser: Any) -> bool:
    found = [block for block in blocks(denoiser) if not all(each.requires_grad for each in block.parameters())]
    if found and not getattr(denoiser, "is_gradient_checkpointing", False):
        raise ValueError("offload: blocks needs base.gradient_checkpointing: true, or the backward pass would hold all")
    if found and is_quantized(denoiser):
        raise ValueError("offload: expected true or false where the base is quantized, got blocks")
    for block in found:
        for layer in block.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not any(each.requires_grad for each in layer.parameters()):
                _OffloadedLayer(layer)
    return bool(found)


def offloaded_blocks(networks: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Of each block of some denoisers the layers whose weights are on the CPU between uses."""
    layers = ([each for each in block.modules() if "_apply" in vars(each)] for one in networks for block in blocks(one))
    return list(filter(None, layers))


class _OffloadedLayer:
    """Hooks of a frozen layer that send its weights for each call, those of the backward pass included.

    Activation checkpointing calls the layers of a block again there; what autograd needs of their weights it holds
    until that block's backward pass is done. Not of blocks, as U-Nets checkpoint parts of theirs.
    """

    def __init__(self, layer: nn.Module):
        self._called: list[ExitStack] = []
        layer.register_forward_pre_hook(self._bring)
        layer.register_forward_hook(self._leave, always_call=True)
        layer.__dict__["_apply"] = partial(_stay, layer)

    def __deepcopy__(self, memo: dict[int, Any]) -> _OffloadedLayer:
        return self  # a copy of the model, as EMA's, shares what is frozen

    def _bring(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        stack = ExitStack()
        stack.enter_context(brought_to(layer, inputs[0].device))
        self._called.append(stack)

    def _leave(self, *_: Any) -> None:
        self._called.pop().close()


def _stay(layer: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In the place of `nn.Module._apply`: the weights take the dtype of a move, and stay on the CPU."""
    for each in frozen(layer):
        there = fn(each.data.new_empty(0))
        each.data = each.data.to(there.dtype)
        kept_on_cpu([each], there.device)
    return layer


def blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The members of its ModuleLists that have parameters; of a list inside a block, the block alone."""
    for child in denoiser.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            if next(block.parameters(), None) is not None:
                yield block
