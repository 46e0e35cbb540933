"""Secrets do not come out: not from addresses, options, tables or texts; and nothing else is lost."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import fault_server as faults
import pytest
from data_fixtures import photo_shards

import train
from inpaint_module import compare_runs
from inpaint_module.files import is_secret, permissions_for, redact, redacted, redacted_command

ROOT = Path(__file__).parents[1]
S = "SECRET"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"https://host/a/0.tar?sig={S}", "https://host/a/0.tar"),
        (f"https://host/{{000..099}}.tar?se=1&sig={S}#{S}", "https://host/{000..099}.tar"),
        (f"(https://host/a?sig={S}): HTTP 404", "(https://host/a): HTTP 404"),
        (f"HTTPS://user:{S}@host:81/a.tar", "HTTPS://host:81/a.tar"),
        (f"https://user:p@{S}@host/a.tar", "https://host/a.tar"),
        (f"https://{S}@host/@user/a.tar", "https://host/@user/a.tar"),
        (f"https://user:pa#{S}@host/a.tar", "https://***"),
        (f"https://user:pa/{S}@host/a.tar", "https://***"),
        (f"s3://{S}:{S}@bucket/a.tar?versionId={S}", "s3://bucket/a.tar"),
        (f"mysql://root:{S}@db/runs", "mysql://db/runs"),
        (
            f"pipe:curl -H 'Authorization: Bearer {S}99' https://h/a?x={S}",
            "pipe:curl -H 'Authorization: Bearer ***' https://h/a",
        ),
        (f"https://proxy/https://u:{S}@h/x.tar?a={S}", "https://proxy/https://h/x.tar"),
        (f"['https://h/a.tar?s={S}', \"https://h/b.tar?s={S}\"]", "['https://h/a.tar', \"https://h/b.tar\"]"),
        (f"GET /a.tar?se=1&sig={S}&x=2 failed", "GET /a.tar?se=1&sig=***&x=2 failed"),
        (f'{{"secret": "{S}", "anon": false}}', '{"secret": "***", "anon": false}'),
        (f"{{'api_key': '{S}'}}", "{'api_key': '***'}"),
        (f"wrong token={S}, got 3", "wrong token=***, got 3"),
        (f"a: 1\n  api_key: {S}\nb: 2", "a: 1\n  api_key: ***\nb: 2"),
        (f"token hf_{S}0123456789", "token ***"),
        (f"git said: github_pat_11AB_{S}0123456789", "git said: ***"),
        (f"curl -H 'Authorization: token {S}' failed", "curl -H 'Authorization: ***' failed"),
        (f'sent "X-Api-Key: {S}", got 403', 'sent "X-Api-Key: ***", got 403'),
        (f"key sk-proj-{S}0123456789ab", "key ***"),
        ("id AKIAIOSFODNN7EXAMPLE of AWS", "id *** of AWS"),
        (f"wandb_v1_{S}0123456789abcdef", "***"),
    ],
)
def test_addresses_and_texts(text: str, left: str) -> None:
    assert redact(text) == left
    assert redact(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "/a/0.tar?x",
        "data/{000..099}.tar",
        "http://h:{8001..8002}/a.tar",
        "http://[::1]:80/a.tar, https://h:80: expected",
        "https://h/a: HTTP 404 Not Found",
        "label_key: class",
        "token: expected a text, got 3",
        "  use_token: true\n  max_token: 77",
        '{"key": "p000", "caption": "a token of love"}',
        "val/psnr_inside=3",
        "C://x",
    ],
)
def test_all_else_stays(text: str) -> None:
    assert redact(text) == text
    assert permissions_for(text) == 0o666


def test_names() -> None:
    secret = ["token", "--data.token", "hf_token", "use_auth_token", "secretKey", "aws_secret_access_key", "api-key"]
    plain = ["key", "label_key", "caption_key", "tokenizer", "token_count", "max_tokens", "design", "signal", "author"]
    assert [name for name in secret + plain if is_secret(name)] == secret


def test_nested_values() -> None:
    value: dict[str, Any] = {
        "train_shards": [f"https://h/a.tar?sig={S}", ("b", f"s3://{S}:{S}@b/c")],
        "storage_options": {
            "key": S,
            "secret": S,
            "anon": False,
            "client_kwargs": {"endpoint_url": f"http://u:{S}@h/"},
        },
        "token": {"read": S, "write": [S]},
        "label_key": "class",
        "api_key": None,
        "max_token": 77,
        f"https://h/?{S}": 1,
    }
    assert redacted(value) == {
        "train_shards": ["https://h/a.tar", ("b", "s3://b/c")],
        "storage_options": {
            "key": "***",
            "secret": "***",
            "anon": False,
            "client_kwargs": {"endpoint_url": "http://h/"},
        },
        "token": {"read": "***", "write": ["***"]},
        "label_key": "class",
        "api_key": None,
        "max_token": 77,
        "https://h/": 1,
    }
    assert S not in redact(json.dumps(value["storage_options"]["secret"] and {"secret": S}))


def test_command_lines() -> None:
    command = ["train.py", "fit", f"--data.train_shards=https://h/a.tar?sig={S}", "--logger.api_key", S, "--seed", "3"]
    command += [f"--x.token={S}", "--token", "--verbose", f'--o={{"secret": "{S}"}}']
    left = ["train.py", "fit", "--data.train_shards=https://h/a.tar", "--logger.api_key", "***", "--seed", "3"]
    assert redacted_command(command) == [*left, "--x.token=***", "--token", "--verbose", '--o={"secret": "***"}']


def test_a_file_that_must_hold_a_secret_is_its_owners() -> None:
    assert permissions_for(f"train_shards: https://h/a.tar?sig={S}\n") == 0o600


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 on torch's newest pytree
def test_a_runs_files_and_words_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A step of the quickstart on shards whose address has a password and a token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    folder = photo_shards(tmp_path / "www", 4)
    with faults.fault_server(folder.parent) as server:
        address = f"{server.url.replace('//', f'//user:{S}@')}/shards?sig={S}"
        options = [
            f"--data.train_shards={address}",
            f'--data.val_shards=["{address}"]',
            "--data.image_size=32",
            "--data.val_batch_size=1",
        ]
        options += ["--data.loading.cache_dir=cache", "--data.batch_size=2", "--model.sampling_steps=1"]
        options += ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=1"]
        options += ["--trainer.callbacks.ValidationReport.photos=1"]
        options += [
            "--trainer.accelerator=cpu",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_model_summary=false",
        ]
        monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--config={ROOT / 'configs/quickstart.yaml'}", *options])
        train.main()
    assert compare_runs.main(["runs/quickstart", "runs/quickstart", "--out=cache/compare.html"]) == 0
    said = capfd.readouterr()
    assert "runs/quickstart" in said.out
    assert S not in said.out + said.err
    files = [path for place in ("runs", "cache") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "last.ckpt", "config.yaml", "compare.html"} <= {path.name for path in files}
    (told,) = (path for path in files if S.encode() in path.read_bytes())
    assert (told.name, stat.S_IMODE(told.stat().st_mode)) == ("config.yaml", 0o600)
