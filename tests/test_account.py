"""The account: counts and first names, in lines that fit a terminal."""

from __future__ import annotations

import json

from datamodules.account import WIDTH, Account


def small() -> Account:
    account = Account()
    account.take(["captions", "masks"], [("masks empty", "a.mask.png")])
    account.take([])
    account.leave("hidden or system", "._a.jpg", ".DS_Store", "Thumbs.db", "@eaDir")
    account.refused.append("b.jpg: image file is truncated")
    return account


def test_text() -> None:
    assert small().text() == (
        "2 photos taken\n"
        "  captions 1, masks 1, labels 0, json 0\n"
        "  1 masks empty: a.mask.png\n"
        "4 left aside\n"
        "  4 hidden or system: ._a.jpg, .DS_Store, Thumbs.db and 1 more\n"
        "1 refused\n"
        "  b.jpg: image file is truncated\n"
    )


def test_one_is_one() -> None:
    account = Account()
    account.take([])
    assert account.text().startswith("1 photo taken\n")
    assert account.text("samples in train_shards").startswith("1 sample in train_shards\n")


def test_parts_add_up_and_survive_a_file() -> None:
    both = small()
    both.add(Account.from_json(json.loads(json.dumps(small().as_json()))))
    assert both.taken == 4
    assert both.found == {"captions": 2, "masks": 2, "labels": 0, "json": 0}
    assert both.noted == {"masks empty": (2, ["a.mask.png", "a.mask.png"])}
    assert both.aside == {"hidden or system": (8, ["._a.jpg", ".DS_Store", "Thumbs.db"])}
    assert len(both.refused) == 2


def test_any_name_fits_and_commands_no_terminal() -> None:
    account = Account()
    account.leave("not used, ending in .xmp", "x" * 300, "\x1b[31mred\n\udce9.xmp", "größe (1).xmp")
    account.refused += [f"{'long ' * 40}{number}: no picture" for number in range(12)]
    lines = account.text().splitlines()
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert text.encode()  # no surrogates
    assert r"\x1b[31mred\n\udce9.xmp, größe (1).xmp" in " ".join(text.split())
    assert lines[-1] == "  and 2 more"
