"""Captions and class labels: what a sample says about its image."""

from __future__ import annotations

import json
from typing import Any

_LARGEST_LABEL = 2**63 - 1


def read_json(fields: dict[str, bytes]) -> dict[str, Any]:
    """The object in `json`; empty without one.

    Raises:
        ValueError: if it is not JSON, or not an object.
    """
    content = json.loads(fields["json"]) if "json" in fields else {}
    if not isinstance(content, dict):
        raise ValueError(f"expected an object in json, got {type(content).__name__}")
    return content


def parse_caption(fields: dict[str, bytes], max_bytes: int, key: str = "caption") -> str:
    """The caption from `txt`, else from `key` in `json`, else empty.

    Raises:
        ValueError: if it is not UTF-8, not text, or longer than `max_bytes`.
    """
    data = fields.get("txt", b"")
    if "txt" not in fields and "json" in fields:
        caption = read_json(fields).get(key) or ""
        if not isinstance(caption, str):
            raise ValueError(f"expected a text as {key} in json, got {type(caption).__name__}")
        data = caption.encode()
    if len(data) > max_bytes:
        raise ValueError(f"expected a caption of at most {max_bytes} bytes, got {len(data)}")
    return data.decode("utf-8", errors="strict").strip()


def parse_label(fields: dict[str, bytes], key: str = "label") -> int:
    """The class number from `cls`, a whole number as text, else from `key` in `json`.

    Raises:
        ValueError: if there is none, or one that is not a whole number from 0 to 2^63 - 1.
    """
    if "cls" in fields:
        text = fields["cls"].strip()
        label: Any = int(text) if text.isdigit() and len(text) < 20 else text[:20]
    elif (label := read_json(fields).get(key)) is None:
        raise ValueError(f"expected a class label in cls, or as {key} in json, got none (data.class_labels: true)")
    if type(label) is not int or not 0 <= label <= _LARGEST_LABEL:
        place = "cls" if "cls" in fields else f"{key} in json"
        raise ValueError(f"expected a whole number from 0 to 2^63 - 1 as class label in {place}, got {label!r:.40}")
    return label
