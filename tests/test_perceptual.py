"""LPIPS and FID with weights from a folder: the right numbers, and what is said without them."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torchvision.models import squeezenet1_1
from vision_weights import SQUEEZENET, saved

from inpaint_module.metrics import LPIPS, PerceptualMetrics
from inpaint_module.metrics.perceptual import INCEPTION

TAPS = (2, 5, 8, 10, 11, 12, 13)  # of SqueezeNet's features, after which LPIPS looks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("torch"), "hub/checkpoints")


def photo(seed: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, 40, 56, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_hand(first: Tensor, second: Tensor, folder: str) -> Tensor:
    """Zhang et al. 2018, eq. 1, over SqueezeNet; shift, scale and linear weights are those of its version 0.1."""
    net = squeezenet1_1().eval()
    net.load_state_dict(torch.load(Path(folder) / "hub/checkpoints" / SQUEEZENET))
    shipped = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/squeeze.pth"
    weights = [
        weight for name, weight in torch.load(shipped, map_location="cpu").items() if name.endswith("model.1.weight")
    ]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total, pair = (
        torch.zeros(len(first)),
        [(2 * x - 1 - shift[:, None, None]) / scale[:, None, None] for x in (first, second)],
    )
    for (start, end), weight in zip(zip((0, *TAPS[:-1]), TAPS, strict=True), weights, strict=True):
        pair = [net.features[start:end](x) for x in pair]
        one, other = (nn.functional.normalize(x, eps=1e-8) for x in pair)
        total += ((one - other).square() * weight).sum(1).mean((1, 2))
    return total


def test_lpips_by_hand(folder: str) -> None:
    lpips, first, second = LPIPS(folder, "squeeze"), photo(0, 2), photo(1, 2)
    assert lpips(first, first).tolist() == [0, 0]
    torch.testing.assert_close(lpips(first, second), by_hand(first, second, folder), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="LPIPS expects pictures of at least 32 x 32 pixels, got 16 x 40"):
        lpips(first[:, :, :16, :40], second[:, :, :16, :40])


def test_the_folder_of_torch_hub_stays_and_is_not_asked(folder: str) -> None:
    before = torch.hub.get_dir()
    with mock.patch("torch.hub.download_url_to_file", side_effect=AssertionError("a network was asked")):
        LPIPS(folder, "squeeze")
        with pytest.raises(ValueError, match="expected the weights alexnet-owt"):
            LPIPS(folder)
    assert torch.hub.get_dir() == before


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


FILES = {
    "no weights": b"not at all",
    "cut short": None,
    "code": pickle.dumps(Code()),
}


@pytest.mark.parametrize("kind", FILES)
def test_another_file_under_the_name_is_refused(kind: str, tmp_path: Path) -> None:
    data = FILES[kind] or Path(saved(tmp_path), SQUEEZENET).read_bytes()[:-1000]
    (tmp_path / SQUEEZENET).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{SQUEEZENET}: expected the weights of {SQUEEZENET}, got another file"):
        LPIPS(str(tmp_path), "squeeze")


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / SQUEEZENET)
    with pytest.raises(ValueError, match=r"got another file: Error.* in loading state_dict for SqueezeNet"):
        LPIPS(str(tmp_path), "squeeze")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "LPIPS network: expected one of alex, vgg, squeeze, got 'resnet'"),
        (
            {"network": "vgg"},
            r"LPIPS: expected the weights vgg16-397923af.pth in .*models.vgg16\(weights",
        ),
    ],
)
def test_what_lpips_refuses(folder: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LPIPS(folder, **options)


def test_fid_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected lpips, fid_folder or both, got neither"):
        PerceptualMetrics()
    with (
        mock.patch("inpaint_module.metrics.perceptual.find_spec", return_value=None),
        pytest.raises(ValueError, match=r"FID needs torch-fidelity.*pip install 'inpaint-module\[metrics\]'"),
    ):
        PerceptualMetrics(fid_folder=str(tmp_path))
    with (
        mock.patch("inpaint_module.metrics.perceptual.find_spec"),
        pytest.raises(ValueError, match=f"FID: expected the weights {INCEPTION} in the folder"),
    ):
        PerceptualMetrics(fid_folder=str(tmp_path))


def logged(callback: PerceptualMetrics, *batches: tuple[Tensor, Tensor, list[int]]) -> dict[str, float]:
    found: dict[str, float] = {}
    trainer: Any = SimpleNamespace(sanity_checking=False, testing=True)
    module: Any = SimpleNamespace(log=lambda name, value: found.update({name: value.item()}))
    for image, made, positions in batches:
        batch = {"position": torch.tensor(positions)}
        callback.on_test_batch_end(trainer, module, {"image": image, "composite": made}, batch, 0)
    callback.on_test_epoch_end(trainer, module)
    return found


def test_lpips_over_batches_leaves_out_what_fills_up(folder: str) -> None:
    lpips, images, made = LPIPS(folder, "squeeze"), photo(0, 3), photo(1, 3)
    found = logged(PerceptualMetrics(lpips), (images[:2], made[:2], [0, 1]), (images[1:], made[1:], [2, -1]))
    each = lpips(made, images)
    assert found == {"test/lpips": pytest.approx((each[0] + 2 * each[1]).item() / 3, rel=1e-5)}


@pytest.mark.slow
def test_fid_of_pictures(tmp_path: Path) -> None:
    """With random weights in the real format: next to none for equal sets, more for others."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with mock.patch.object(inception.FeatureExtractorInceptionV3, "load_state_dict"), mock.patch("torch.load"):
        network = inception.FeatureExtractorInceptionV3("x", ["2048"], "none")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 3)  # lest random features all be nearly 0
    torch.save(network.state_dict(), tmp_path / INCEPTION)
    callback = PerceptualMetrics(fid_folder=str(tmp_path))
    same = logged(callback, (photo(0, 4), photo(0, 4), [0, 1, 2, 3]))["test/fid"]
    other = logged(callback, (photo(0, 4), photo(1, 4) / 2, [0, 1, 2, 3]))["test/fid"]
    assert other > 10 * abs(same)
