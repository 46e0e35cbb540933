"""Captions and class labels: found where they are, refused by name where they are not."""

import codecs

import pytest
from data_fixtures import encode, photo, sample_decoder

from datamodules.decode.fields import decode_text, parse_caption, parse_label
from datamodules.shards.shard_set import RawSample


def decode(fields: dict[str, bytes], **options: object) -> dict[str, object]:
    decoder = sample_decoder(**options)
    return decoder(RawSample("s.tar", "k", {"png": encode(photo(1)), **fields}, 0))


def test_captions() -> None:
    assert parse_caption({"txt": " été\n".encode()}, 9) == "été"
    assert parse_caption({"json": b'{"caption": "a"}'}, 9) == "a"
    assert parse_caption({"json": b'{"caption": "a", "long": "b"}'}, 9, "long") == "b"
    assert parse_caption({"txt": b"t", "json": b'{"caption": "a"}'}, 9) == "t"
    assert parse_caption({"json": b'{"caption": null}'}, 9) == parse_caption({}, 9) == ""
    assert decode({"json": b'{"long": "b"}'}, caption_key="long")["caption"] == "b"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["", "\n", "\0\0", "\n\0\r\n\0"])
def test_marks_and_nuls_are_no_part_of_a_caption(encoding: str, end: str) -> None:
    assert parse_caption({"txt": f"größe {end}".encode(encoding)}, 99) == "größe"


def test_other_encodings_are_read_if_they_are_named() -> None:
    assert decode_text(b"gr\xf6\xdfe", "latin-1") == decode_text("größe".encode("utf-16-be"), "utf-16-be") == "größe"
    assert decode_text("größe".encode("utf-8-sig"), "latin-1") == "größe"
    assert decode_text(codecs.BOM_UTF16_BE + "größe".encode("utf-16-be")) == "größe"
    assert parse_caption({"json": '{"caption": "\ufeffa\\u0000"}'.encode()}, 9) == "a"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"txt": b"\xff"}, "can't decode byte 0xff"),
        ({"txt": b"a\0b"}, "expected a text in UTF-8, got NULs in it"),
        ({"txt": "abc".encode("utf-16-le")}, "got NULs in it, as UTF-16 read so has"),
        ({"txt": codecs.BOM_UTF16_LE + b"abc"}, "expected a text in UTF-16: .*truncated data"),
        ({"txt": b"x" * 21}, "expected a caption of at most 20 bytes, got 21"),
        ({"json": b'{"caption": 3}'}, "expected a text as caption in json, got int"),
        ({"json": b'{"caption": "\\ud800"}'}, "surrogates not allowed"),
        ({"json": b"{"}, "Expecting property name"),
        ({"json": b"[]"}, "expected an object in json, got list"),
    ],
)
def test_bad_captions_are_named(fields: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.tar: sample 'k': .*{message}"):
        decode(fields, max_caption_bytes=20)


def test_labels() -> None:
    assert parse_label({"cls": b" 7\n"}) == parse_label({"cls": b"\xef\xbb\xbf7\0"}) == 7
    assert parse_label({"json": b'{"label": 0}'}) == 0
    assert parse_label({"json": b'{"label": 1, "class": 2}'}, "class") == 2
    assert parse_label({"cls": b"3", "json": b'{"label": 1}'}) == 3
    assert parse_label({"cls": str(2**63 - 1).encode()}) == 2**63 - 1


def test_labels_come_only_if_asked_for() -> None:
    assert decode({"cls": b"4"}, label_key="label")["label"] == 4
    assert "label" not in decode({"cls": b"4"})
    assert "label" not in decode({"cls": b"nonsense"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            r"expected a class label in cls, or as kind in json, got none; data.decoder.label_key: null trains without",
        ),
        ({"json": b"{}"}, "expected a class label in cls, or as kind in json, got none"),
        ({"json": b'{"kind": null}'}, "expected a class label in cls, or as kind in json, got none"),
        ({"json": b'{"kind": true}'}, "whole number from 0 to 2\\^63 - 1 as class label in kind in json, got True"),
        ({"json": b'{"kind": "3"}'}, "as class label in kind in json, got '3'"),
        ({"json": b'{"kind": -1}'}, "as class label in kind in json, got -1"),
        ({"json": b"[1]"}, "expected an object in json, got list"),
        ({"cls": b"cat"}, "as class label in cls, got 'cat'"),
        ({"cls": b""}, "as class label in cls, got ''"),
        ({"cls": "²".encode()}, "as class label in cls, got '²'"),
        ({"cls": b"-1"}, "as class label in cls, got '-1'"),
        ({"cls": b"9223372036854775808"}, "as class label in cls, got 9223372036854775808"),
        ({"cls": b"1" * 9999}, "as class label in cls, got '1111"),
    ],
)
def test_bad_labels_are_named(fields: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.tar: sample 'k': .*{message}"):
        decode(fields, label_key="kind")
