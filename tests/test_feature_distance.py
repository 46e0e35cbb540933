"""Distances by hand, and over tiny vision models in the real folder format."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny_vision import model_of, saved
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
)

from inpaint_module.metrics.feature_distance import FeatureDistance, as_map, feature_distance


def photo(seed: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, 40, 56, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    east, north = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.1])
    first = east.reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    second = first.clone()
    second[0, :, 0, 1] = north  # at right angles: squared difference 2; elsewhere 0
    left, right, both = (torch.tensor(mask).reshape(1, 1, 1, 4) for mask in ([1.0, 1, 0, 0], [0.0, 0, 1, 1], [1.0] * 4))
    assert feature_distance([first], [second], left).item() == 0
    assert feature_distance([first], [second], right).item() == pytest.approx(2)
    assert feature_distance([first], [second], both).item() == pytest.approx(1)
    assert feature_distance([first], [-first], both).item() == pytest.approx(4)
    assert feature_distance([first, first], [second, -first], both).item() == pytest.approx(2.5)
    partly = torch.tensor([1.0, 1, 1, 0]).reshape(1, 1, 1, 4)  # the right cell counts half
    assert feature_distance([first], [second], partly).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["dinov2", "registers", "vit", "clip", "resnet"])
def test_a_distance(kind: str, tmp_path: Path) -> None:
    distance, mask = FeatureDistance(saved(tmp_path, kind)), torch.ones(2, 1, 40, 56)
    first, second = photo(0, 2), photo(1, 2)
    assert distance(first, first, mask).tolist() == [0, 0]
    apart = distance(first, second, mask)
    assert (apart > 1e-6).all()
    assert (apart < 4).all()
    assert torch.equal(apart, distance(second, first, mask))
    nearer = distance(first, first.lerp(second, 0.1), mask)
    assert (nearer < apart).all()
    maps = distance.features(first)
    assert len(maps) == 2
    assert maps[0].shape[2:] == ((2, 2) if kind != "resnet" else (56, 56))


def test_features_are_the_models_own(tmp_path: Path) -> None:
    distance, model = FeatureDistance(saved(tmp_path)), model_of("dinov2").eval()
    image = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    pixels = (image - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states
    for found, state in zip(distance.features(image), expected[1:], strict=True):
        assert torch.allclose(found.flatten(2).movedim(1, 2), state[:, 1:], atol=1e-5)


def test_it_is_frozen(tmp_path: Path) -> None:
    distance = FeatureDistance(saved(tmp_path))
    assert not distance.model.training
    assert not any(weight.requires_grad for weight in distance.model.parameters())
    assert not distance(photo(0).requires_grad_(), photo(1), torch.ones(1, 1, 40, 56)).requires_grad
    assert not isinstance(distance, torch.nn.Module)


def test_an_empty_mask_is_nan(tmp_path: Path) -> None:
    assert FeatureDistance(saved(tmp_path))(photo(0), photo(1), torch.zeros(1, 1, 40, 56)).isnan().all()


def test_without_transformers_the_extra_is_named() -> None:
    with (
        mock.patch.dict(sys.modules, {"transformers": None}),
        pytest.raises(ValueError, match=r"feature_distance needs transformers: pip install 'inpaint-module\[text\]'"),
    ):
        FeatureDistance("somewhere")


def test_folders_without_a_vision_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"feature_distance.path: expected a vision model .* in '.*empty'"):
        FeatureDistance(str(tmp_path / "empty"))
    model_of("dinov2").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"with its preprocessor_config.json in '.*model'"):
        FeatureDistance(str(tmp_path / "model"))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**small, vocab_size=9)).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    with pytest.raises(ValueError, match=r"expected a vision model, got BertModel in '.*bert'"):
        FeatureDistance(str(tmp_path / "bert"))


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 x 3 tokens, got \(1, 5, 7\)"):
        as_map(torch.zeros(1, 5, 7), 2, 3)
