"""Masks by CUDA graphs: for models so small that starting the painter's kernels takes a visible part of the step."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inpaint_module.masks.generator import MaskGenerator


class _Recording(NamedTuple):
    """A graph, and the memory that it reads from and writes to at every replay."""

    graph: torch.cuda.CUDAGraph
    keys: Tensor
    masks: Tensor


class CudaGraphed(MaskGenerator):
    """A generator's masks, painted on a GPU by replaying a recording of its kernels; elsewhere by the generator itself.

    Painting takes some hundred short kernels, each of which the CPU starts by itself; a replay starts them at once: the
    quickstart's masks took 10 to 14 ms a batch beside an H100, and 1.4 ms so. It pays where the CPU, not the GPU,
    bounds the step, as with small models. The first batch of each size is recorded; the memory that painting needs
    meanwhile, some tenths of a GiB, is kept.

    Args:
        generator: what paints. What it does must depend on keys and size alone: no `Curriculum` within.

    Raises:
        ValueError: the generator, or a part of it, changes with the step.
    """

    def __init__(self, generator: MaskGenerator):
        changing = _with_steps(generator)
        if changing:
            raise ValueError(
                f"a CUDA graph paints the same at every step, but {changing} changes with it; "
                f"put {type(self).__name__} around the generators in it instead"
            )
        self.parts = (generator,)
        self._recordings: dict[tuple[torch.device, int, int, int], _Recording] = {}
        self._pools: dict[torch.device, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.parts[0],)  # copies and other processes record anew

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        if not keys.is_cuda or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return self.parts[0](keys, height, width)
        place = (keys.device, len(keys), height, width)
        if place not in self._recordings:
            self._recordings[place] = self._record(keys, height, width)
        recording = self._recordings[place]
        recording.keys.copy_(keys)
        recording.graph.replay()
        return recording.masks.clone()

    @torch.inference_mode(False)  # a recording made in a validation is written to in training
    def _record(self, keys: Tensor, height: int, width: int) -> _Recording:
        """All recordings of a device share their memory: they never run side by side, and masks are copied out."""
        keys, graph = keys.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.device(keys.device):
            pool = self._pools.setdefault(keys.device, torch.cuda.graph_pool_handle())
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # what is made at first use alone must not be recorded
                self.parts[0](keys, height, width)
            current.wait_stream(side)
            # another thread may pin the next batch's memory meanwhile
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                masks = self.parts[0](keys, height, width)
        return _Recording(graph, keys, masks)


def graph_masks(generator: MaskGenerator) -> MaskGenerator:
    """The same masks with as much of their painting in `CudaGraphed` as can be.

    Args:
        generator: what paints. Of one that changes with the step, such as a `Curriculum`, the parts are wrapped; itself
            it stays as it is, as does one that is wrapped already.
    """
    if isinstance(generator, CudaGraphed):
        return generator
    if _with_steps(generator) is None:
        return CudaGraphed(generator)
    around = copy.copy(generator)
    around.parts = list(map(graph_masks, generator.parts))
    return around


def has_graphs(generator: MaskGenerator) -> bool:
    """Whether it, or a part of it, is painted by CUDA graphs."""
    return isinstance(generator, CudaGraphed) or any(map(has_graphs, generator.parts))


def is_ours(generator: MaskGenerator) -> bool:
    """Whether it and all parts are of classes of this package, whose painting never waits for a GPU."""
    return type(generator).__module__.startswith(f"{__package__}.") and all(map(is_ours, generator.parts))


def _with_steps(generator: MaskGenerator) -> str | None:
    """The name of the first part's class whose masks depend on the step, if there is one."""
    if type(generator).set_step is not MaskGenerator.set_step:
        return type(generator).__name__
    return next(filter(None, map(_with_steps, generator.parts)), None)
