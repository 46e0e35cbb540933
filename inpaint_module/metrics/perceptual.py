"""Distances that other people's numbers can be compared with: LPIPS and FID through torchmetrics.

Their networks are loaded from a folder that the user has, never from a network. The linear layers of LPIPS ship with
torchmetrics; the networks under them are torchvision's, and FID's is torch-fidelity's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

NETWORKS = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_PLACES = ("", "checkpoints", "hub/checkpoints")  # where torch.hub keeps what it has downloaded
_SMALLEST = 32


class LPIPS:
    """Learned perceptual image patch similarity: Zhang et al. 2018, version 0.1, as torchmetrics computes it.

    Of whole pictures, so that the numbers can be compared with published ones of the same network. The network is
    frozen, in eval mode, and as this is no `nn.Module`, in no state dict.

    Args:
        folder: holds torchvision's ImageNet weights under their own file name; also the folder where torch.hub keeps
            them, such as ~/.cache/torch.
        network: alex, which most papers report, vgg or squeeze.

    Raises:
        ValueError: an unknown network, or no file of its weights there.
    """

    def __init__(self, folder: str, network: str = "alex"):
        if network not in NETWORKS:
            raise ValueError(f"LPIPS network: expected one of {', '.join(NETWORKS)}, got {network!r}")
        name, file = NETWORKS[network]
        advice = f"torchvision.models.{name}(weights='IMAGENET1K_V1') downloads it once, to the folder of torch.hub"
        path = weights_file(folder, file, "LPIPS", advice)
        self.metric = _from_file(
            path,
            lambda: LearnedPerceptualImagePatchSimilarity(network, normalize=True),  # type: ignore[arg-type]
        )

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of pictures float (B, 3, H, W) in 0..1, sides of at least 32 pixels: (B,), 0 for equal ones.

        Raises:
            ValueError: smaller pictures.
        """
        if min(first.shape[-2:]) < _SMALLEST:
            size = " x ".join(map(str, first.shape[-2:]))
            raise ValueError(f"LPIPS expects pictures of at least {_SMALLEST} x {_SMALLEST} pixels, got {size}")
        self.to(first.device)
        net: Any = self.metric.net
        return net(first.float(), second.float(), normalize=True).reshape(len(first))

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self.metric.to(device)


class PerceptualMetrics(Callback):
    """Logs `val/lpips` and `val/fid` of the composites of all validation photos; `test/...` likewise.

    FID (Heusel et al. 2017) compares two sets of pictures and needs thousands; of a few it says nothing.

    Args:
        lpips: the distance, with its weights; null for none.
        fid_folder: holds torch-fidelity's Inception weights under their own file name; null for no FID. Needs the extra
            `metrics`.

    Raises:
        ValueError: neither is asked for, torch-fidelity is not installed, or no file of its weights is there.
    """

    def __init__(self, lpips: LPIPS | None = None, fid_folder: str | None = None):
        if lpips is None and fid_folder is None:
            raise ValueError("PerceptualMetrics: expected lpips, fid_folder or both, got neither")
        self.lpips, self.fid = lpips, None if fid_folder is None else _fid(fid_folder)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Add a batch, but for samples that only fill it up."""
        counted = batch["position"] >= 0
        image, made = (outputs[name][counted].float().clamp(0, 1) for name in ("image", "composite"))
        if trainer.sanity_checking or not len(image):
            return
        if self.lpips is not None:
            self.lpips.metric.to(image.device).update(made, image)
        if self.fid is not None:
            self.fid.to(image.device)
            self.fid.update(image, real=True)
            self.fid.update(made, real=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, over all ranks."""
        stage = "test" if trainer.testing else "val"
        metrics = {"lpips": None if self.lpips is None else self.lpips.metric, "fid": self.fid}
        for name, metric in metrics.items():
            if metric is None or trainer.sanity_checking:
                continue
            pl_module.log(f"{stage}/{name}", metric.compute().float())
            metric.reset()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """As in validation."""
        self.on_validation_batch_end(*args, **kwargs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As in validation."""
        self.on_validation_epoch_end(trainer, pl_module)


def weights_file(folder: str, name: str, what: str, advice: str) -> Path:
    """The file of that name in a folder, or where torch.hub would keep it there.

    Raises:
        ValueError: there is none.
    """
    for place in _PLACES:
        path = Path(folder).expanduser() / place / name
        if path.is_file():
            return path.resolve()
    raise ValueError(f"{what}: expected the weights {name} in the folder {folder!r}, got none there; {advice}")


def _fid(folder: str) -> FrechetInceptionDistance:
    if find_spec("torch_fidelity") is None:
        raise ValueError("FID needs torch-fidelity, whose network it is: pip install 'inpaint-module[metrics]'")
    path = weights_file(folder, INCEPTION, "FID", "torch-fidelity's releases have it")
    return _from_file(
        path, lambda: FrechetInceptionDistance(2048, normalize=True, feature_extractor_weights_path=str(path))
    )


def _from_file(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` builds, which finds the file as if torch.hub had downloaded it.

    torchmetrics takes no path for the networks of LPIPS; this is the way that torch.hub documents.
    """
    before = torch.hub.get_dir()
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # refuses code: torch-fidelity would run it
        with TemporaryDirectory() as hub, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision's older names
            (Path(hub) / "checkpoints").mkdir()
            os.symlink(path, Path(hub) / "checkpoints" / path.name)
            torch.hub.set_dir(hub)
            return make()
    except Exception as error:
        raise ValueError(f"{path}: expected the weights of {path.name}, got another file: {error}") from error
    finally:
        torch.hub.set_dir(before)
