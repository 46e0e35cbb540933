"""Redaction: what is shown, or recorded for others to read, without the secrets in addresses and options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "***"
PRIVATE, SHARED = 0o600, 0o666  # permissions of files, less the umask

_SECRET_ENDS = (
    *("secret", "token", "password", "passwd", "passphrase", "pwd", "credential", "credentials", "authorization"),
    *("sig", "signature", "api_key", "apikey", "access_key", "secret_key", "private_key", "account_key"),
)
_NAME = r"(?:[\w.-]*[_.-])?(?:" + "|".join(end.replace("_", "[_-]?") for end in _SECRET_ENDS) + ")"
_SECRET_NAME = re.compile(f"[-]*{_NAME}", re.IGNORECASE)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_SECRET = re.compile(r"|null|none|true|false|[0-9.+-]+", re.IGNORECASE)
_REST = r"[^\s\"'<>`]*?(?=[:,;.)\]}]*(?:[\s\"'<>`]|$))"  # of an address in a text, without the stops after it
_RULES = (
    # user:password@, however many of them
    (re.compile(r"://[^\s/?#\"'<>`]*@"), "://"),
    # a password with a character that ends the host's part of an address: no host has such a port
    (re.compile(rf"://(?!\[)[^\s/?#\"'<>`:]*:(?![0-9{{}},.]*(?:[\s/?#\"'<>`:,;)\]]|$)){_REST}"), f"://{HIDDEN}"),
    # the query and the fragment
    (re.compile(rf"(://[^\s?#\"'<>`]*)[?#]{_REST}"), r"\1"),
    # name=value, "name": "value" and, a line to itself, name: value
    (re.compile(rf"((?<![\w.]){_NAME}=)(?!\"|')[^\s&,;)\]}}\"']+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"((?<![\w.]){_NAME}=)(\"[^\"]*\"|'[^']*')", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"(([\"']){_NAME}\2\s*:\s*)(\"[^\"]*\"|'[^']*')", re.IGNORECASE), rf"\1\2{HIDDEN}\2"),
    (
        re.compile(rf"^(\s*(?:- )?{_NAME}:[ ]+)(?!(?:null|true|false|[0-9.]+)\s*$)(?!\*)\S+\s*$", re.I | re.M),
        rf"\1{HIDDEN}",
    ),
    # what a header says, and tokens that are known by their form
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"(\b(?:(?:Proxy-)?Authorization|X-[\w-]*(?:Key|Token)): *)(?!Bearer\b|Basic\b)(?:token +)?[^\s\"',;]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}|\b(?:gh[oprsu]|github_pat)_\w{16,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"\bsk-[\w-]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bwandb_v\d_\w{16,}"), HIDDEN),
)


def redact(text: str) -> str:
    """A text without the secrets in it.

    Addresses (`scheme://...`) lose `user:password@`, their query and their fragment; values of names that end with
    token, secret, password, signature, api_key and the like become `***`, as do what headers of authorization say and
    the tokens of Hugging Face, GitHub, Weights & Biases, AWS and others that are known by their form. A local path and
    all other text stay as they are.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def is_secret(name: str) -> bool:
    """Whether a value of this name is a secret: `api_key`, `--data.token`, `secretKey`; not `label_key`."""
    return _SECRET_NAME.fullmatch(_CAPITAL.sub("_", name)) is not None


def redacted(value: Any) -> Any:
    """Nested dicts, lists and tuples without their secrets: texts as by `redact`, `***` for values of secret names."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        pairs = {str(name).lower() for name in value}
        secret = {name for name in value if is_secret(str(name)) or (name == "key" and "secret" in pairs)}
        return {redacted(n): _hidden(v) if n in secret else redacted(v) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value)) if type(value) in (list, tuple) else list(map(redacted, value))
    return value


def _hidden(value: Any) -> Any:
    """A secret, or several; numbers, and words such as null, are none."""
    if isinstance(value, Mapping):
        return {name: _hidden(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_hidden, value))
    return value if not isinstance(value, str) or _NO_SECRET.fullmatch(value) else HIDDEN


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """A command line without its secrets: also the value that follows an option such as `--logger.api_key`."""
    return list(_redacted_arguments(arguments))


def _redacted_arguments(arguments: Sequence[str]) -> Iterator[str]:
    follows = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if follows and not argument.startswith("--"):
            yield _hidden(argument)
        elif equals and name.startswith("-") and is_secret(name):
            yield f"{name}={_hidden(value)}"
        else:
            yield redact(argument)
        follows = not equals and name.startswith("-") and is_secret(name)


def permissions_for(text: str) -> int:
    """Of a file that must hold this text as it is: its owner's alone if there are secrets in it, else everybody's."""
    return SHARED if redact(text) == text else PRIVATE
