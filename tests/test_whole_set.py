"""`doctor --all`: each sample of a set once, on one page."""

from __future__ import annotations

import random
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import encode, in_parts, write_tar
from PIL import Image

from datamodules import WebDatasetDataModule
from datamodules.doctor import main
from datamodules.doctor.whole_set import NEAR, dhash, groups_alike, look_at_all, page, summary
from inpaint_module.masks import Boxes


def test_a_hash_says_where_it_gets_brighter_to_the_right() -> None:
    ramp = np.repeat(np.arange(9, dtype=np.uint8)[None] * 20, 8, axis=0)
    assert dhash(Image.fromarray(ramp)) == 2**64 - 1
    assert dhash(Image.fromarray(ramp[:, ::-1].copy())) == 0
    falls = ramp.copy()
    falls[0, 8] = 0  # the last pair of the first row, the eighth bit from the left
    assert dhash(Image.fromarray(falls)) == 2**64 - 1 - 2**56
    assert dhash(Image.new("RGB", (40, 30), (9, 9, 9))) is None


def noise(number: int) -> Image.Image:
    """A smooth picture without a pattern, another for each number."""
    values = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((160, 120), Image.Resampling.BICUBIC)


def test_copies_that_were_shrunk_and_compressed_look_alike_and_others_do_not() -> None:
    pictures = [noise(number) for number in range(6)]
    copies = [Image.open(BytesIO(encode(each.resize((80, 60)), "JPEG", quality=60))) for each in pictures[:2]]
    blank = [Image.new("RGB", (8, 8)), Image.new("L", (9, 9), 200)]
    assert groups_alike([dhash(each) for each in [*pictures, *copies, *blank]]) == [[0, 6], [1, 7]]


def test_groups_are_those_of_comparing_all_pairs() -> None:
    draw = random.Random(0)
    base = [draw.getrandbits(64) for _ in range(40)]
    hashes = [
        *base,
        *(value ^ sum(1 << bit for bit in draw.sample(range(64), 1 + n % 7)) for n, value in enumerate(base)),
    ]
    near = {pair for pair in combinations(range(80), 2) if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= NEAR}
    assert {tuple(group) for group in groups_alike(hashes)} == near  # each with its own copy alone
    assert len(near) == sum(1 + n % 7 <= NEAR for n in range(40))
    assert groups_alike([5, None, 5, 5, None]) == [[0, 2, 3]]


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        noise(number).resize((160, 96 + 32 * number)).save(folder / f"{number}.png")
    Image.open(folder / "0.png").resize((80, 48)).save(folder / "again.jpg", quality=70)
    (folder / "0.txt").write_text("a cat, indoors")
    (folder / "1.txt").write_text("a cat, <b>outdoors</b>")
    mask = np.zeros((96, 160), np.uint8)
    mask[:48] = 255
    (folder / "0.mask.png").write_bytes(encode(Image.fromarray(mask)))
    (folder / "bad.png").write_bytes((folder / "1.png").read_bytes()[:500])
    out = tmp_path / "page.html"
    options = [
        f"--data.train_shards={folder}",
        f"--data.loading.cache_dir={tmp_path / 'cache'}",
        "--data.image_size=64",
    ]
    assert main(["--config", "configs/quickstart.yaml", "--all", f"--out={out}", *options]) == 1
    told = capsys.readouterr().out
    assert "7, of which 1 cannot be used" in told
    assert "shorter side 48 to 160 pixels" in told
    assert "1 of 6, 50.0% masked on average; 0 empty, 0 full" in told
    assert "1 samples that look like another, 1 groups of such" in told
    assert "bad.png" in told
    text = out.read_text()
    assert text.count("data:image/jpeg") == 6 + 2
    assert "<td>a cat</td><td>2</td>" in text
    assert "<b>outdoors" not in text
    with pytest.raises(ValueError, match=r"--out: expected a name that ends in \.html"):
        main(["--config", "configs/quickstart.yaml", "--all", "--out=x.png", *options])
    (folder / "bad.png").unlink()
    data = WebDatasetDataModule(
        str(folder), batch_size=1, image_size=64, mask_generator=Boxes(), cache_dir=str(tmp_path)
    )
    found = look_at_all(data)
    assert sorted(found.facts[number].key for number in found.alike[0]) == ["0", "again"]
    assert summary(found)["samples"] == "6, of which 0 cannot be used"


def test_a_set_of_which_nothing_can_be_used_has_a_page(tmp_path: Path) -> None:
    """Shards are packed with what opens; that their images are too small is found here."""
    write_tar(tmp_path / "0.tar", [("a.png", encode(noise(1))), ("b.png", encode(noise(2)))])
    options = in_parts(batch_size=1, image_size=256, mask_generator=Boxes(), upscale=False)
    found = look_at_all(WebDatasetDataModule(str(tmp_path / "0.tar"), **options))
    assert [each.key for each in found.bad] == ["a", "b"]
    assert "2, of which 2 cannot be used" in page(found, "tiny", "doctor")
