"""One cache for all tests here, and a silent parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from latent_caches import CONFIGS, SMALL

from datamodules.cache_latents import main


@pytest.fixture(autouse=True)
def quiet_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops each of the embedded validation photos, by the embedded VAE, in shards of about nine samples."""
    folder = tmp_path_factory.mktemp("cache") / "latents"
    config = f"--config={CONFIGS / 'quickstart.yaml'}"
    assert main([str(folder), config, "--crops=2", "--shard-bytes=120000", "--device=cpu", *SMALL]) == 0
    return folder
