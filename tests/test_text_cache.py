"""Embeddings of captions that were computed once: the same loss as without, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from quiet_trainer import QUIET, quiet_trainer
from tiny_folders import CONFIGS, config_over
from tiny_models import tiny_batch
from torch.utils.data import DataLoader
from two_ranks import Batches, equal, weights

from datamodules import cache_text
from inpaint_module.base_models import TextOptions, text_of
from inpaint_module.base_models.text import FrozenTextEncoder
from inpaint_module.base_models.text_cache import TextCache, describe, write_text_cache
from inpaint_module.trained import module_from_configs
from inpaint_module.training.checkpoints import VerifiedCheckpointIO, read_plain
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:a caption fills all 77 tokens"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),
]
CAPTIONS = ["the cat", "a dog"]
FAMILIES = ["sd15", "sdxl", "sd3", "flux_fill"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def config(name: str, folder: Path) -> Path:
    path = folder / f"{name}.yaml"
    return path if path.exists() else config_over(name, folder)


def base_of(name: str, folder: Path) -> str:
    config(name, folder)
    return str(folder / f"{name}_base")


def write(name: str, folder: Path, out: Path, captions: list[str] = CAPTIONS, dtype: str = "float32") -> int:
    base, text = base_of(name, folder), TextOptions()
    return write_text_cache(out, captions, lambda: text_of(base, text), describe(base, text), dtype=dtype)


def module(name: str, folder: Path, *options: str) -> InpaintDiffusion:
    common = ["--model.base.dtype=float32", "--model.base.text.dtype=float32", "--model.caption_dropout=0.5"]
    return module_from_configs([CONFIGS / "quickstart.yaml", config(name, folder)], [*common, *options])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_that_without_the_cache(name: str, folder: Path, tmp_path: Path) -> None:
    """To the bit, dropped captions included, of encoders that are not called; each caption as it is read alone."""
    write(name, folder, tmp_path)
    batch = tiny_batch(4, 64, 64) | {"caption": [*CAPTIONS, *CAPTIONS], "position": torch.arange(4)}
    torch.manual_seed(0)
    plain = module(name, folder)
    torch.manual_seed(0)
    with mock.patch.object(FrozenTextEncoder, "__call__", side_effect=AssertionError("a text encoder was called")):
        cached = module(name, folder, f"--model.base.text.cache={tmp_path}")
        losses = [cached.loss(batch).item() for _ in range(2)]
    told = [plain.conditioning({**batch, "image": batch["image"][:1], "caption": [each]}) for each in CAPTIONS]
    read = cached.conditioning({**batch, "image": batch["image"][:2], "caption": CAPTIONS})
    for key in ("encoder_hidden_states", "pooled_projections"):
        if key in read:
            assert torch.cat([each[key] for each in told]).equal(read[key])
    assert losses[0] == losses[1] == pytest.approx(plain.loss(batch).item(), rel=1e-6)
    assert cached.conditioning.fingerprint() == plain.conditioning.fingerprint()
    assert cached.conditioning.models() == []
    whole, again = (each.conditioning.components() for each in (plain, cached))  # for an export
    assert list(again) == list(whole)
    for key, part in whole.items():
        if isinstance(part, torch.nn.Module):
            assert all(a.equal(b) for a, b in zip(part.parameters(), again[key].parameters(), strict=True))


def test_a_resumed_run_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    write("sd15", folder, tmp_path / "text", dtype="bfloat16")

    def fit(steps: int, start: int = 0) -> tuple[InpaintDiffusion, Any]:
        torch.manual_seed(0)
        model = module("sd15", folder, f"--model.base.text.cache={tmp_path / 'text'}")
        trainer = quiet_trainer(steps, plugins=[VerifiedCheckpointIO()], limit_val_batches=0, num_sanity_val_steps=0)
        batches = DataLoader(Batches(start, 0, 1), batch_size=None)
        trainer.fit(model, batches, batches, ckpt_path=tmp_path / "2.ckpt" if start else None)
        return model, trainer

    fit(2)[1].save_checkpoint(tmp_path / "2.ckpt")
    assert equal(weights(fit(4)[0]), weights(fit(4, start=2)[0]))
    kept = read_plain(tmp_path / "2.ckpt")
    assert kept["conditioning_sha256"] == module("sd15", folder).conditioning.fingerprint().hex()
    # a cache of other encoders does not go on
    record = json.loads((tmp_path / "text" / "text.json").read_text())
    (tmp_path / "text" / "text.json").write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="conditioning"):
        fit(4, start=2)


def test_bfloat16_is_read_by_a_denoiser_in_float32(folder: Path, tmp_path: Path) -> None:
    write("sdxl", folder, tmp_path, dtype="bfloat16")
    batch = tiny_batch(2, 64, 64) | {"caption": CAPTIONS, "position": torch.arange(2)}
    torch.manual_seed(0)
    plain = module("sdxl", folder).loss(batch)
    torch.manual_seed(0)
    cached = module("sdxl", folder, f"--model.base.text.cache={tmp_path}").loss(batch)
    assert cached.dtype == torch.float32
    assert 0 < abs(cached.item() / plain.item() - 1) < 1e-2


def test_a_cache_grows_and_keeps_what_it_has(folder: Path, tmp_path: Path) -> None:
    assert write("sd15", folder, tmp_path) == 2
    first = (tmp_path / "text-00000.safetensors").read_bytes()
    assert write("sd15", folder, tmp_path, ["the cat"]) == 0
    assert write("sd15", folder, tmp_path, ["the cat", "a bird"]) == 1
    assert (tmp_path / "text-00000.safetensors").read_bytes() == first
    found = TextCache(tmp_path, describe(base_of("sd15", folder), TextOptions()))
    assert found.read(["a bird", "a dog", "a bird"], torch.device("cpu"))["encoder_hidden_states"].shape[0] == 3


def test_what_a_kill_left_half_is_written_over(folder: Path, tmp_path: Path) -> None:
    """A file of embeddings that the record does not name yet."""
    write("sd15", folder, tmp_path)
    (tmp_path / "text-00001.safetensors").write_bytes(b"half")
    assert write("sd15", folder, tmp_path, [*CAPTIONS, "a bird"]) == 1
    found = TextCache(tmp_path, describe(base_of("sd15", folder), TextOptions()))
    assert found.read(["a bird"], torch.device("cpu"))


def test_what_a_cache_is_not_of_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base\.text\.cache: expected a folder that `inpaint shards cache-text`"):
        TextCache(tmp_path / "none", {})
    write("sd15", folder, tmp_path)
    base = base_of("sd15", folder)
    with pytest.raises(ValueError, match="but option clip_skip was None and is 1: write it again"):
        TextCache(tmp_path, describe(base, TextOptions(clip_skip=1)))
    made = describe(base, TextOptions())
    weights = next(name for name in made["files"] if name.endswith(".safetensors"))
    with pytest.raises(ValueError, match=f"but file {weights} was [0-9a-f]+ and is 0: write it again"):
        TextCache(tmp_path, made | {"files": made["files"] | {weights: "0"}})
    with pytest.raises(ValueError, match=r"expected every caption in .*, got one that is not: 'a bird'"):
        TextCache(tmp_path, made).read(["the cat", "a bird"], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"--dtype: expected float32, as of the cache in .*, got bfloat16"):
        write_text_cache(tmp_path, ["x"], lambda: text_of(base, TextOptions()), made)
    (tmp_path / "text-00000.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"text-00000\.safetensors cannot be read"):
        TextCache(tmp_path, made).read(["the cat"], torch.device("cpu"))
    (tmp_path / "text.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match=r"text\.json.*made_of"):
        TextCache(tmp_path, made)


def test_weights_of_the_same_size_are_told_apart(folder: Path) -> None:
    base = Path(base_of("sd15", folder))
    file = base / "text_encoder" / "model.safetensors"
    before, content = describe(str(base), TextOptions()), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert describe(str(base), TextOptions()) != before
    finally:
        file.write_bytes(content)


def test_large_files_are_told_apart_by_pieces(tmp_path: Path) -> None:
    """What a training moves, all of the weights, is seen in a file of any size; in a small one a single byte."""
    (tmp_path / "text_encoder").mkdir()
    file = tmp_path / "text_encoder" / "model.safetensors"
    for size in (0, 1, 70_000, 3 << 20, 5 << 20):
        file.write_bytes(bytes(size))
        before = describe(str(tmp_path), TextOptions())
        assert before == describe(str(tmp_path), TextOptions())
        file.write_bytes(bytes(size + 1))
        assert describe(str(tmp_path), TextOptions()) != before
        if size:
            middle = size // 2 if size <= 4 << 20 else 0
            file.write_bytes(bytes(middle) + b"1" * (size - middle))
            assert describe(str(tmp_path), TextOptions()) != before


def test_a_cache_does_not_grow_by_other_encoders(folder: Path, tmp_path: Path) -> None:
    """Even if what is looked at of their files is the same."""
    write("sd15", folder, tmp_path)
    base = base_of("sd15", folder)
    other = text_of(base, TextOptions())
    next(other.models()[0].parameters()).data.add_(1)
    with pytest.raises(
        ValueError, match=r"expected the text encoders that its embeddings are of, with weights of sha256"
    ):
        write_text_cache(tmp_path, ["new"], lambda: other, describe(base, TextOptions()), dtype="float32")


def test_captions_of_as_many_tokens_as_they_have_are_refused(folder: Path, tmp_path: Path) -> None:
    path = config("z_image_plain", folder)
    command = [str(tmp_path / "text"), "--config", str(CONFIGS / "quickstart.yaml"), "--config", str(path)]
    assert cache_text.main([*command, "--data.val_shards=embedded:val", "--data.train_shards=embedded:val"]) == 1


def test_by_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The captions of train and val with their trigger word, the empty one and one more; tags that move are refused."""
    out = tmp_path / "text"
    configs = [str(CONFIGS / "quickstart.yaml"), str(config("sd15", folder))]
    options = [option for each in configs for option in ("--config", each)]
    options += ["--data.train_shards=embedded:val", "--data.decoder.captions.prefix=zwx "]
    command = [str(out), *options, "--caption", "a bird", "--dtype", "float32"]
    assert cache_text.main(command) == 0
    assert "captions written, 0 were there" in capsys.readouterr().out
    assert cache_text.main(command) == 0
    assert f"{out}: 0 captions written" in capsys.readouterr().out
    tags = ["--data.decoder.captions.shuffle_tags=true"]
    assert cache_text.main([*command, *tags]) == 1
    assert "expected shuffle_tags: false" in capsys.readouterr().err
