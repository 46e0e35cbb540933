"""Memory: what a run takes, computed before its first step, and what it took at its peak."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from itertools import chain
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from inpaint_module.base_models import offloaded_blocks, quantized_state
from inpaint_module.base_models.quantize import CountedLinear
from inpaint_module.batch import Batch, DescribedData
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.weights import NEEDS_CONTENT, FakeTensorMode, LiveBytes, frozen, no_content, runnable

GIB = 2**30
Kind = tuple[tuple[int, ...], torch.dtype]
_TRIED = 2**16  # numbers of a real tensor on which an optimizer is tried


class Memory(NamedTuple):
    """Bytes that a training run holds from its first step to its last, by what they are for.

    Attributes:
        weights: of the denoiser, frozen ones and the base model beside a ControlNet included.
        gradients: of what trains; twice that with DDP, which keeps them in its buckets too.
        optimizer: its state after the first step; None if it cannot be known before.
        average: the second copy that EMA keeps of what trains.
        vae: its weights.
        text: the weights of all text encoders.
        visiting: the largest of the VAE and text encoders that are sent from the CPU for each use (`offload`), while
            no activations are held; of blocks that are, `weights` has the largest.
    """

    weights: int
    gradients: int
    optimizer: int | None
    average: int
    vae: int
    text: int
    visiting: int = 0

    @property
    def held(self) -> int:
        """All of it."""
        return sum(part or 0 for part in self)

    def parts(self) -> dict[str, int]:
        """What there is of it, by the words that a table shows."""
        words = {"average": "average (EMA)", "vae": "VAE", "text": "text encoders", "visiting": "visiting from the CPU"}
        return {words.get(name, name): part for name, part in self._asdict().items() if part}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib(part)}" for name, part in self.parts().items())
        later = ", the optimizer's state is known after the first step" if self.optimizer is None else ""
        return f"{parts}: {gib(self.held)} GiB, and activations{later}"


def gib(size: int) -> str:
    """Bytes as GiB, two digits after the point, or for small ones three that count."""
    return f"{size / GIB:.2f}" if size >= GIB / 10 else f"{size / GIB:.2g}"


def held_memory(module: InpaintDiffusion, trainer: Trainer | None = None) -> Memory:
    """What a model and its training hold, computed from shapes and dtypes alone.

    Args:
        module: with weights or without their content.
        trainer: whose strategy and callbacks count; None for one device and no average.
    """
    trained = module.optimized()
    gradients, average = bytes_of(trained), 0
    if trainer is not None:
        averages = any(isinstance(each, WeightAveraging) for each in trainer.callbacks)  # type: ignore[attr-defined]
        average = gradients if averages else 0
        gradients *= 2 if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1 else 1
    blocks = [bytes_of(chain(*map(frozen, each))) for each in offloaded_blocks(_networks(module))] or [0]
    vae, text = module.encoder.vae, module.conditioning
    away = {id(each) for part in (vae, text) for each in part.offloaded_models()}
    sizes = [{id(each): model_bytes(each) for each in part.models()} for part in (vae, text)]
    return Memory(
        weights=sum(map(model_bytes, _networks(module))) - sum(blocks) + max(blocks),
        gradients=gradients,
        optimizer=optimizer_bytes(module.optimizer, trained),
        average=average,
        vae=sum(size for each, size in sizes[0].items() if each not in away),
        text=sum(size for each, size in sizes[1].items() if each not in away),
        visiting=max((size for part in sizes for each, size in part.items() if each in away), default=0),
    )


def _networks(module: InpaintDiffusion) -> list[nn.Module]:
    """What trains, and the base model beside a ControlNet."""
    return [module.denoiser, *([] if module.control is None else [module.control.base.model])]


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers; of layers that are quantized, or will be, those of codes and scales."""
    counted = [each for each in model.modules() if isinstance(each, CountedLinear)]
    apart = {id(each.weight) for each in counted}
    tensors = (each for each in chain(model.parameters(), model.buffers()) if id(each) not in apart)
    scales = quantized_state(model).values()
    return bytes_of(chain(tensors, scales)) + sum(each.held_bytes() for each in counted)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages under tensors, each counted once; of this rank's part, where they are sharded."""
    storages = {part.untyped_storage()._cdata: part.untyped_storage().nbytes() for part in _plain(tensors)}
    return sum(storages.values())


def _plain(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors that hold the numbers: of a sharded one this rank's part, of a quantized one its codes and scales."""
    for each in tensors:
        if isinstance(each, DTensor):
            yield from _plain([each.to_local()])
        elif hasattr(each, "__tensor_flatten__"):
            yield from _plain(getattr(each, name) for name in each.__tensor_flatten__()[0])
        else:
            yield each


def optimizer_bytes(optimizer: Callable[..., Any], trained: Iterable[Tensor]) -> int | None:
    """Bytes of an optimizer's state after its first step, which is tried on one tensor of each shape without content.

    One that cannot do this, as those of bitsandbytes, takes it on real tensors, of at most `_TRIED` numbers each; what
    their states take of more is as much the more.

    Returns:
        None if this optimizer has no such step.
    """
    counts = Counter((tuple(each.shape), each.dtype) for each in trained)
    try:
        with FakeTensorMode():
            return round(_tried_bytes(optimizer, counts))
    except Exception:  # of any kind: kernels that know no tensors without content
        with suppress(Exception):
            return round(_tried_bytes(optimizer, counts, _TRIED))
        return None


def _tried_bytes(optimizer: Callable[..., Any], counts: Mapping[Kind, int], most: int | None = None) -> float:
    """Bytes of the state for so many tensors of each shape and dtype."""
    total = 0.0
    for (shape, dtype), count in counts.items():
        size = math.prod(shape)
        tried = shape if most is None or size <= most else (most,)
        weight = nn.Parameter(torch.ones(tried, dtype=dtype))  # Prodigy keeps no zeros
        made = optimizer([weight])
        _pretend_step(made)
        total += count * bytes_of(_tensors(made.state.get(weight))) * size / max(1, weight.numel())
    return total


def _pretend_step(optimizer: Any) -> None:
    """One step on gradients without content, which leaves its state."""
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _tensors(state: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)


def step_peak(module: InpaintDiffusion, batch: Batch, precision: str = "32-true", parts: int = 1) -> int:
    """Bytes that a training step takes at its peak above weights, optimizer and frozen models: gradients, activations.

    Forward, backward and optimizer go over tensors without content, so it needs no memory and no GPU. Kernels'
    workspaces and the gaps that an allocator leaves are not in it.

    Args:
        module: made under `without_weights`.
        batch: one training batch.
        precision: of the trainer, such as bf16-mixed.
        parts: batches of one optimizer step; from the second on gradients are held while activations are.
    """
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for model in _networks(module):
        runnable(model)
    with no_content() as mode:
        optimizer: Any = None
        with suppress(Exception):  # of any kind: its kernels may know no tensors without content
            optimizer = module.optimizer(module.optimized())
            _pretend_step(optimizer)
        faked = {name: mode.from_tensor(v) if isinstance(v, Tensor) else v for name, v in batch.items()}
        with LiveBytes() as live:
            for _ in range(min(parts, 2)):
                with torch.autocast("cpu", mixed) if mixed else nullcontext():
                    loss = module.loss(faked)  # type: ignore[arg-type]
                loss.backward()
                del loss
            with suppress(Exception):
                optimizer.step()
    return live.peak


def first_batch(data: DescribedData, batch_size: int) -> Batch:
    """A batch as large as the largest of training; of its content nothing is known."""
    sizes = [size for shapes in data.image_sizes("fit").values() for size in shapes]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    batch: Batch = {
        "image": torch.zeros(batch_size, 3, height, width, dtype=torch.uint8),
        "mask": torch.zeros(batch_size, 1, height, width, dtype=torch.bool),
        "position": torch.arange(batch_size),
        "caption": ["a photo"] * batch_size,
    }
    if data.latents is not None:
        batch["latents"] = torch.zeros(batch_size, *data.latents.shape)
    return batch


def estimate_table(memory: Memory, peak: int | None, batch: Batch, precision: str) -> str:
    """What `inpaint fit --estimate` prints: a line for each part, in GiB."""
    count, _, height, width = batch["image"].shape
    rows = dict(memory.parts())
    if peak is not None:
        rows["activations"] = max(0, peak - memory.gradients)
        rows["peak"] = memory.held - memory.visiting + max(rows["activations"], memory.visiting)
    lines = [f"Memory of a step, batch {count} of {height} x {width} pixels, {precision}, computed, in GiB"]
    lines += [f"  {name:16}{gib(size):>8}" for name, size in rows.items()]
    if memory.optimizer is None:
        lines.append("  The optimizer's state is not in it: it cannot be known before its first step.")
    if peak is None:
        lines.append("  Activations are not in it: this model cannot go through a step without its weights.")
    else:
        lines.append("A GPU takes more on top: its context, about 0.5 GiB, kernels' workspaces and gaps, about 10 %.")
    return "\n".join(lines)


def estimate(module: InpaintDiffusion, data: DescribedData, trainer: Trainer, batch_size: int) -> str:
    """The table of a run that a trainer would do."""
    batch, precision = first_batch(data, batch_size), str(trainer.precision)
    try:
        peak = step_peak(module, batch, precision, trainer.accumulate_grad_batches)
    except NEEDS_CONTENT:
        peak = None
    return estimate_table(held_memory(module, trainer), peak, batch, precision)


class MemoryReport(Callback):
    """Says what the run holds, computed before the first step, and on a GPU what it took at its peak after it."""

    def __init__(self) -> None:
        self._measured = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute, and say it in one line."""
        if isinstance(pl_module, InpaintDiffusion):
            rank_zero_info(f"memory: {held_memory(pl_module, trainer)}")
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """After the first optimizer step, say the peak; the CPU's allocator tells none."""
        if not self._measured and trainer.global_step > 0:
            self._measured = True
            device = trainer.strategy.root_device
            if device.type == "cuda":
                rank_zero_info(f"memory: {gib(torch.cuda.max_memory_allocated(device))} GiB at the peak, measured")
