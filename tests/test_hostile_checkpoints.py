"""Checkpoints that would run code, from the disk and from a server: refused, and nothing is run."""

from __future__ import annotations

import pickle
import re
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from mine import Mine

from inpaint_module.training.checkpoints import VerifiedCheckpointIO, newest_valid_checkpoint


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_index: int) -> Any:
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def go_on_from(path: str | Path, folder: Path) -> None:
    quiet = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"], False)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, plugins=[VerifiedCheckpointIO()], default_root_dir=folder, **quiet
    )
    trainer.fit(Tiny(), torch.utils.data.DataLoader([torch.zeros(1)]), ckpt_path=path, weights_only=False)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, sealed: bool) -> None:
    """A bare pickle, and one that somebody wrote with our own seal."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    if sealed:
        VerifiedCheckpointIO().save_checkpoint({"state_dict": Mine(tmp_path / "executed")}, path)
    else:
        path.write_bytes(pickle.dumps(Mine(tmp_path / "executed")))
        with pytest.raises(ValueError, match="expected a checkpoint that verifies"):
            newest_valid_checkpoint(path.parent)
    message = "Weights only load failed" if sealed else r"last\.ckpt: expected a sha256 at its end, got none"
    with pytest.raises(Exception, match=message):
        go_on_from(path, tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server on loopback, and the requests that it has got."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", seen
        http.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_checkpoint_from_a_server_is_refused_before_any_request(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, seen = server
    with pytest.raises(ValueError, match=rf"checkpoint {re.escape(address)}/a\.ckpt: expected a local path, got a URL"):
        go_on_from(f"{address}/a.ckpt", tmp_path)
    assert seen == []
    with pytest.raises(urllib.request.HTTPError):  # it does see requests
        urllib.request.urlopen(f"{address}/b")
    assert seen == ["/b"]
