"""What a denoiser is told: the face of frozen text encoders, dropped captions, and the call itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_batch
from torch import Tensor, nn

from inpaint_module.base_models import Conditioning, DenoiserCall, NoConditioning, check_captions, drop_mask


class Words(Conditioning):
    """A frozen table of one row per caption length, and one for none."""

    def __init__(self) -> None:
        self.table = nn.Embedding(8, 4)

    def embed(self, batch: Mapping[str, Any], dropped: Tensor | None) -> dict[str, Any]:
        lengths = torch.tensor([1 + len(caption) for caption in batch["caption"]])
        told = self.table(lengths if dropped is None else lengths.where(~dropped, 0))
        return {"told": told, "product": told @ told.T}

    def to(self, device: torch.device) -> None:
        self.table.to(device)

    def fingerprint(self) -> bytes:
        return bytes(range(32))


def test_neither_gradients_nor_autocast_reach_it() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        told = Words()(tiny_batch())
    assert told["product"].dtype == torch.float32
    assert not told["told"].requires_grad


def test_deepcopy_shares_it() -> None:
    words = Words()
    assert copy.deepcopy({"words": words})["words"] is words


def test_dropped_captions() -> None:
    words, batch = Words(), tiny_batch(3) | {"caption": ["a", "bb", "ccc"]}
    told = words(batch, torch.tensor([False, True, False]))["told"]
    assert torch.equal(told, words.table.weight[torch.tensor([2, 0, 4])])


def test_no_conditioning() -> None:
    assert NoConditioning()(tiny_batch(), torch.ones(2, dtype=torch.bool)) == {}
    assert NoConditioning().fingerprint() == bytes(32)


class TestDropMask:
    positions = torch.arange(20_000)

    def test_is_a_function_of_seed_and_position(self) -> None:
        whole = drop_mask(1, self.positions, 0.1)
        parts = [drop_mask(1, part, 0.1) for part in self.positions.split(7_001)]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(drop_mask(2, self.positions, 0.1), whole)

    @pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
    def test_share(self, probability: float) -> None:
        share = drop_mask(0, self.positions, probability).double().mean().item()
        assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 20_000) ** 0.5)

    def test_golden_positions(self) -> None:
        assert drop_mask(0, torch.arange(60), 0.1).nonzero().flatten().tolist() == [11, 22, 29, 48, 49]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=f"caption_dropout must be in 0..1, got {share}"):
        check_captions(Words(), share, 1.0)


@pytest.mark.parametrize(("dropout", "guidance"), [(0.1, 1.0), (0.0, 3.0)])
def test_captions_need_a_conditioning(dropout: float, guidance: float) -> None:
    check_captions(Words(), dropout, guidance)
    with pytest.raises(ValueError, match=f"caption_dropout {dropout} and guidance_scale {guidance} need a condition"):
        check_captions(None, dropout, guidance)


def test_the_call_matches_the_denoisers_dtype() -> None:
    told: dict[str, Any] = {}

    class Denoiser:
        dtype = torch.bfloat16

        def __call__(self, inputs: Tensor, timesteps: Tensor, **conditions: Any) -> SimpleNamespace:
            told.update(conditions, inputs=inputs, timesteps=timesteps)
            return SimpleNamespace(sample=inputs)

    conditions = {"text": torch.rand(2, 3), "added": {"ids": torch.arange(2), "pooled": torch.rand(2)}, "flag": True}
    DenoiserCall()(Denoiser(), torch.rand(2, 4, 2, 2), torch.tensor([999.0, 1.0]), conditions, (2, 2))
    assert told["inputs"].dtype == told["text"].dtype == told["added"]["pooled"].dtype == torch.bfloat16
    assert told["added"]["ids"].dtype == torch.int64
    assert told["timesteps"].tolist() == [999, 1]
    assert told["flag"] is True
    assert conditions["text"].dtype == torch.float32  # the caller's are left as they are
