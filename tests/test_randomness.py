"""Draws are pure functions of keys, equal in any batch, and look random."""

from __future__ import annotations

import hashlib

import pytest
import torch

from inpaint_module import randomness
from inpaint_module.randomness import Stream, draw, fold_in, hash32, integers, key, normal, uniform

KEYS = key(0, torch.arange(4096), Stream.MASK)


def pcg(x: int) -> int:
    """The hash in plain integers, from O'Neill's paper."""
    state = (x * 747796405 + 2891336453) % 2**32
    word = (((state >> ((state >> 28) + 4)) ^ state) * 277803737) % 2**32
    return (word >> 22) ^ word


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**63 - 1, -1, -(2**63), 1234567890123456789])
def test_hash_is_three_rounds_of_pcg(value: int) -> None:
    low, high = value % 2**32, (value >> 32) % 2**32
    expected = pcg((pcg(pcg(7) ^ low) + high) % 2**32)
    assert hash32(torch.tensor([value]), torch.tensor([7])).item() == expected


def test_golden() -> None:
    numbers = torch.cat([draw(KEYS[:64], 32).flatten(), KEYS[:64]])
    assert hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16] == "a98b492482da4648"


def test_a_row_does_not_depend_on_its_batch() -> None:
    whole = normal(KEYS[:9], (4, 5, 3))
    assert torch.equal(whole[[3, 7]], normal(KEYS[[3, 7]], (4, 5, 3)))


def test_offset_continues_the_same_row() -> None:
    assert torch.equal(draw(KEYS, 6)[:, 2:], draw(KEYS, 4, offset=2))


def test_keys_differ_by_seed_stream_position_and_branch() -> None:
    positions = torch.arange(1000)
    families = [key(seed, positions, stream) for seed in (0, 1, 2**32, 2**40) for stream in Stream]
    families += [fold_in(families[0], branch) for branch in range(3)]
    assert torch.cat(families).unique().numel() == len(families) * 1000


def test_keys_keep_more_than_32_bits() -> None:
    assert key(3, torch.arange(200_000), Stream.NOISE).unique().numel() == 200_000  # 32 bits would collide 4 times


def test_uniform_moments_and_neighbours() -> None:
    numbers = uniform(KEYS, 32).double()
    assert abs(numbers.mean().item() - 0.5) < 0.003
    assert abs(numbers.var().item() - 1 / 12) < 0.001
    pairs = torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))
    rows = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))
    assert abs(pairs[0, 1].item()) < 0.01
    assert abs(rows[0, 1].item()) < 0.01
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_integers_cover_their_range_evenly() -> None:
    counts = torch.bincount(integers(draw(KEYS, 16), 3, 8).flatten(), minlength=8)
    assert counts[:3].sum() == 0
    assert (counts[3:].double() / counts.sum() - 0.2).abs().max() < 0.01


def test_normal_moments() -> None:
    noise = normal(KEYS, (3, 3)).double()  # an odd count
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.01
    assert abs((noise**4).mean().item() - 3) < 0.15


@pytest.mark.cuda
def test_the_same_numbers_on_a_gpu() -> None:
    keys = KEYS.cuda()
    assert torch.equal(draw(keys, 32).cpu(), draw(KEYS, 32))
    assert torch.equal(uniform(keys, 32).cpu(), uniform(KEYS, 32))
    assert (normal(keys, (4, 64)).cpu() != normal(KEYS, (4, 64))).float().mean() < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("seed", [0, -1, 2**32 + 5, -(2**63)])
def test_the_same_keys_on_a_gpu(seed: int) -> None:
    positions = torch.tensor([0, 1, 2**31, 2**32, 2**63 - 1, -1, -(2**63)])
    keys = key(seed, positions, Stream.NOISE)
    assert torch.equal(key(seed, positions.cuda(), Stream.NOISE).cpu(), keys)
    counters = torch.tensor([0, 5, 2**31, 2**32 - 1])[:, None]
    assert torch.equal(hash32(keys.cuda(), counters.cuda()).cpu(), hash32(keys, counters))
    assert key(seed, positions[:0].cuda(), Stream.NOISE).shape == (0,)


def test_numpy_hashes_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.cat([KEYS[:50], torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**32 - 1, 2**32])])
    counters = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, -1])

    def drawn() -> list[torch.Tensor]:
        hashes = [hash32(keys[:, None], counters), hash32(keys[0], counters), hash32(keys[0], counters[3])]
        return [*hashes, hash32(keys[:0], counters[:1]), *(key(seed, keys, Stream.NOISE) for seed in (0, -3, 2**70))]

    fast = [*drawn(), fold_in(keys[1], 2)]
    monkeypatch.setattr(randomness, "_by_numpy", lambda _: False)
    for mine, expected in zip(fast, [*drawn(), fold_in(keys[1], 2)], strict=True):
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected)
