"""shard: a denoiser's weights split over ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


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
