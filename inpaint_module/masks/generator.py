"""What every mask generator is: a pure function from integer keys to masks, on the keys' device.

And one that replays another's kernels by CUDA graphs, for models so small that starting them takes a part of the step.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LAST_STEP = 2**62  # beyond the end of every curriculum


class MaskGenerator(ABC):
    """Random masks, one per key: the same key gives the same mask in any batch, order, process and device.

    Sizes of marks are given in pixels at a stated `resolution` and scale with the short side of the image; where the
    resolution is None they are pixels of the image itself, whatever its size. A mask is never empty unless a generator
    is asked for it, as by a count of marks that begins at 0.

    Attributes:
        parts: the generators that this one is composed of.
    """

    parts: Sequence[MaskGenerator] = ()

    def __call__(self, keys: Tensor, height: int, width: int) -> Tensor:
        """Draw and paint.

        Args:
            keys: int64 (B,), from `inpaint_module.randomness.key`.
            height: H in pixels.
            width: W in pixels.

        Returns:
            bool (B, 1, H, W) on the keys' device, True = inpaint.

        Raises:
            ValueError: keys of another shape or dtype, or sides below 1.
        """
        if keys.ndim != 1 or keys.dtype != torch.int64:
            raise ValueError(f"keys must be int64 (B,), got {keys.dtype} {tuple(keys.shape)}")
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1, got {height} x {width}")
        return self.paint(keys, height, width) if len(keys) else no_masks(keys, height, width)

    @abstractmethod
    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """The masks of checked keys; what a subclass implements. Shapes as for calling it."""

    def set_step(self, step: int) -> None:
        """Tell every `Curriculum` within how far the training is; the others do not change.

        Args:
            step: optimizer steps so far, as `trainer.global_step`.
        """
        for part in self.parts:
            part.set_step(step)

    def fingerprint(self, height: int, width: int) -> str:
        """What it paints, as 64 hexadecimal digits; another configuration or version gives other digits.

        The sha256 of the masks of 32 fixed keys, at the first step of a curriculum and at the end of it.

        Args:
            height: H in pixels; over 128 counts as 128, which is enough to tell masks apart.
            width: W in pixels, likewise.
        """
        painter, digest, keys = copy.deepcopy(self), hashlib.sha256(), torch.arange(32)
        for step in (0, LAST_STEP):
            painter.set_step(step)
            digest.update(painter(keys, min(height, 128), min(width, 128)).numpy().tobytes())
        return digest.hexdigest()


def checked_range(name: str, bounds: tuple[float, float], lowest: float, highest: float = float("inf")) -> None:
    """Check a (low, high) pair of a generator's configuration.

    Raises:
        ValueError: not two numbers with lowest <= low <= high <= highest.
    """
    if len(bounds) != 2 or not lowest <= bounds[0] <= bounds[1] <= highest:
        most = "" if highest == float("inf") else f" <= {highest}"
        raise ValueError(f"{name} must be [low, high] with {lowest} <= low <= high{most}, got {list(bounds)}")


def checked_at_least(lowest: int, **numbers: int | None) -> None:
    """Check whole numbers of a generator's configuration; one that is None is left out.

    Raises:
        ValueError: one is below `lowest`; the message names it.
    """
    for name, number in numbers.items():
        if number is not None and number < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {number}")


def checked_share(**shares: float) -> None:
    """Check probabilities and other shares of a generator's configuration.

    Raises:
        ValueError: one is not in 0..1; the message names it.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in 0..1, got {share}")


def pixel_scale(resolution: int | None, height: int, width: int) -> float:
    """Pixels of an image per pixel at the resolution at which sizes are given; 1 if there is none."""
    return 1.0 if resolution is None else min(height, width) / resolution


def cheap_to_read(x: Tensor) -> bool:
    """Whether values may be read back: eagerly on a CPU. A GPU would wait, and a compiled graph would break."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def paint_where(chosen: Tensor, generator: MaskGenerator, keys: Tensor, masks: Tensor) -> Tensor:
    """Masks with those of the chosen samples painted anew.

    Args:
        chosen: bool (B,).
        generator: what paints them. The others are not even painted where `chosen` is cheap to read.
        keys: int64 (B,).
        masks: bool (B, 1, H, W), which must be the caller's own: it may be written to.
    """
    if cheap_to_read(chosen):
        samples = chosen.nonzero()[:, 0]
        if len(samples):
            masks[samples] = generator(keys[samples], *masks.shape[-2:])
        return masks
    return torch.where(chosen[:, None, None, None], generator(keys, *masks.shape[-2:]), masks)


def in_groups(paint: Callable[[Tensor], Tensor], keys: Tensor, elements: int) -> Tensor:
    """Call `paint` on parts of the keys and join the results, so that what it holds meanwhile stays small.

    On a CPU the parts are small enough for its cache, which makes the work several times faster too. The parts depend
    on shapes alone.

    Args:
        paint: int64 (b,) -> (b, ...).
        keys: int64 (B,).
        elements: numbers that one key's intermediate tensors have, each.
    """
    most = 2**20 if keys.device.type == "cpu" else 2**25
    parts = [paint(part) for part in keys.split(max(1, most // elements))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def no_masks(keys: Tensor, height: int, width: int) -> Tensor:
    """Nothing painted yet: bool (B, 1, H, W)."""
    return torch.zeros(len(keys), 1, height, width, dtype=torch.bool, device=keys.device)


def unless_empty(masks: Tensor, otherwise: Tensor) -> Tensor:
    """Masks, with `otherwise` in place of the empty ones; both bool (B, 1, H, W)."""
    return torch.where(masks.flatten(1).any(1)[:, None, None, None], masks, otherwise)


def square_root(x: Tensor) -> Tensor:
    """The square root that every device and every version of torch rounds alike, correctly: float32 to float32.

    torch's own of float32 is off by one bit for a seventh of all numbers on some CPUs, none on a GPU; numpy's is the
    processor's. Where there is none, that of float64 may be off by its last bit too, which rounding to float32 takes
    away: no root of a float32 comes that close to the middle of two.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if cheap_to_read(x) else x.double().sqrt().float()


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
