"""Pairs: an image, and beside it the target that it should become."""

from __future__ import annotations

import io
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from data_fixtures import Halves, encode, exif_turned, in_parts, photo, sample_decoder, write_tar
from PIL import Image, ImageDraw
from recipes.removal_pairs import make_pairs, show
from test_train import QUICK
from tiny_models import tiny_module, tiny_vae
from torch import Tensor, nn
from torchvision.transforms import v2

import train
from datamodules.account import Account, RefusedError
from datamodules.cache_latents import cache_latents
from datamodules.decode.augmentations import Augmentations
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.doctor.data_measures import Sizes, measure_pairs
from datamodules.doctor.examination import Examination, examine_model
from datamodules.doctor.findings import check_pairs
from datamodules.doctor.model_measures import Speeds
from datamodules.index_shards import index_shards
from datamodules.make_shards import make_shards
from datamodules.shards.shard_set import RawSample, look_into
from datamodules.shards.shard_specs import open_shards
from datamodules.webdataset_datamodule import WebDatasetDataModule
from datamodules.writing.source_samples import Resize
from inpaint_module import InpaintEncoder
from inpaint_module.cli import command
from inpaint_module.morphology import dilate
from inpaint_module.pixels import padding_mask_crop

ROOT = Path(__file__).parents[1]
BOX = (10, 8, 22, 20)


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning 2.6 on torch's newest pytree
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resume goes on there
]


def scribbled(number: int, width: int = 48, height: int = 40) -> Image.Image:
    """The photo with a red square on it."""
    picture = photo(number, width, height)
    ImageDraw.Draw(picture).rectangle(BOX, fill=(255, 0, 0))
    return picture


def hole(width: int = 48, height: int = 40) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle(BOX, fill=255)
    return mask


def pair_folder(folder: Path, count: int = 6, every: int = 1) -> Path:
    """Scribbled photos with masks; every n-th has its target."""
    folder.mkdir(parents=True)
    for number in range(count):
        scribbled(number).save(folder / f"p{number}.png")
        hole().save(folder / f"p{number}.mask.png")
        if number % every == 0:
            photo(number).save(folder / f"p{number}.target.png")
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    make_shards(pair_folder(tmp_path / "pairs"), tmp_path / "shards")
    return tmp_path / "shards"


def data_module(shards: Path, **options: Any) -> WebDatasetDataModule:
    chosen = {"batch_size": 3, "image_size": 32, "mask_generator": Halves(), "min_scale": 0.6} | options
    return WebDatasetDataModule(str(shards), **in_parts(**chosen))


def batches(data: WebDatasetDataModule, count: int) -> list[dict[str, Any]]:
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(data.train_dataloader(), count)]


def decoder(**options: Any) -> SampleDecoder:
    return sample_decoder(**({"image_size": (32, 32), "seed": 3, "augment": True} | options))


def sample(position: int = 0, **fields: bytes) -> RawSample:
    return RawSample("a.tar", "k", {name.replace("_", "."): data for name, data in fields.items()}, position)


# --- into shards


def test_a_folder_a_table_and_metadata_bring_targets(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "folder", 2)
    photo(1).save(folder / "clean.bmp")
    (tmp_path / "table.csv").write_text("path,mask,target\nfolder/p0.png,folder/p0.mask.png,folder/clean.bmp\n")
    make_shards(folder, tmp_path / "a")
    make_shards(tmp_path / "table.csv", tmp_path / "b")
    (folder / "metadata.csv").write_text("file_name,target\np1.png,clean.bmp\n")
    make_shards(folder, tmp_path / "c")
    found = {name: open_shards(str(tmp_path / name)) for name in "abc"}
    assert [len(shards) for shards in found.values()] == [3, 1, 2]
    first = found["a"].read(1).fields
    assert set(first) == {"png", "mask.png", "target.png"}
    assert first["target.png"] == (folder / "p0.target.png").read_bytes()
    for name, number in (("b", 0), ("c", 1)):
        target = Image.open(io.BytesIO(found[name].read(number).fields["target.png"]))
        assert np.array_equal(target, photo(1))
    assert look_into(found["a"]).account.found["targets"] == 2


def test_a_pair_may_have_a_text_and_a_reference_of_its_own(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "folder", 4)
    for number in range(4):
        (folder / f"p{number}.txt").write_text("a photo")
        photo(5, 60, 30).save(folder / f"p{number}.REFERENCE.bmp")
        if number:
            (folder / f"p{number}.Instruction.TXT").write_text("remove the red square ")
    make_shards(folder, tmp_path / "a")
    fields = open_shards(str(tmp_path / "a")).read(1).fields
    assert set(fields) == {"png", "mask.png", "target.png", "reference.png", "instruction.txt", "txt"}
    assert look_into(open_shards(str(tmp_path / "a"))).account.found["references"] == 4
    (tmp_path / "table.csv").write_text("path,edit_prompt,reference,text\nfolder/p0.png,take it away,folder/p1.png,a\n")
    make_shards(tmp_path / "table.csv", tmp_path / "b")
    row = open_shards(str(tmp_path / "b")).read(0).fields
    assert (row["instruction.txt"], row["txt"]) == (b"take it away", b"a")
    assert row["reference.png"] == (folder / "p1.png").read_bytes()
    for place in (tmp_path / "a", folder):  # shards, and the folder as it is
        data = data_module(place, batch_size=4)
        (batch,) = batches(data, 1)
        texts = dict(zip(batch["__key__"], batch["caption"], strict=True))
        assert texts == {"p0": "a photo", **{f"p{n}": "remove the red square" for n in (1, 2, 3)}}
        middle = photo(5, 60, 30).crop((15, 0, 45, 30)).resize((32, 32), Image.Resampling.BICUBIC)
        shown = torch.from_numpy(np.array(middle)).movedim(-1, 0)
        assert batch["reference"].shape == (4, 3, 32, 32)
        assert (batch["reference"].int() - shown.int()).abs().max() <= 2
        assert "has_reference" not in batch
    cache_latents(data_module(tmp_path / "a"), tiny_module().encoder, tmp_path / "cache")
    (cached,) = batches(data_module(tmp_path / "cache", batch_size=4), 1)
    assert (cached["reference"].int() - shown.int()).abs().max() <= 2
    assert sorted(cached["caption"]) == ["a photo", *["remove the red square"] * 3]
    (folder / "p2.REFERENCE.bmp").unlink()
    (batch,) = batches(data_module(folder, batch_size=4), 1)
    assert {name for name, has in zip(batch["__key__"], batch["has_reference"], strict=True) if not has} == {"p2"}


def test_a_target_shrinks_with_its_image_and_lies_upright(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo(0).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "a.jpg", exif=exif_turned(6))
    photo(0).save(tmp_path / "in" / "a.target.png")
    make_shards(tmp_path / "in", tmp_path / "out", resize=Resize(short_side=20))
    fields = open_shards(str(tmp_path / "out")).read(0).fields
    sizes = [Image.open(io.BytesIO(fields[name])).size for name in ("jpg", "target.png")]
    assert sizes == [(24, 20), (24, 20)]


def test_a_target_of_another_size_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "in", 3)
    photo(0, 40, 48).save(folder / "p0.target.png")
    (folder / "p1.target.png").write_bytes(b"text")
    with pytest.raises(RefusedError) as refused:
        make_shards(folder, tmp_path / "out")
    first, second = refused.value.account.refused
    assert first.startswith(f"{folder}/p0.target.png: expected a target of the photo's size, 48 x 40")
    assert second.startswith(f"{folder}/p1.target.png: cannot be read as a picture")


def test_a_column_of_class_numbers_called_target_is_refused_with_advice(tmp_path: Path) -> None:
    photo(0).save(tmp_path / "a.png")
    (tmp_path / "table.csv").write_text("path,target\na.png,3\n")
    with pytest.raises(ValueError, match=r"row 1: column 'target': expected the path of a target.*--target-column ''"):
        make_shards(tmp_path / "table.csv", tmp_path / "out")


def test_an_index_that_left_targets_aside_is_made_anew(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.png", encode(photo(0))), ("a.target.png", encode(photo(1)))])
    index_shards(str(tmp_path), ignore=())
    index = next(tmp_path.glob("*.json*")) if not (tmp_path / "a.index.json").exists() else tmp_path / "a.index.json"
    text = index.read_text()
    assert "target.png" in text
    assert index_shards(str(tmp_path)).fresh == 0
    assert index_shards(str(tmp_path)).account.found["targets"] == 1
    assert tar.exists()


# --- decoded


@pytest.mark.parametrize("position", range(4))
def test_image_and_target_go_through_one_crop(position: int) -> None:
    """The same picture as image and target comes out the same, whatever its file."""
    upright, turned = photo(2, 96, 80), photo(2, 96, 80).transpose(Image.Transpose.ROTATE_90)
    files = {
        "as it is": encode(upright),
        "turned by EXIF": encode(turned, exif=exif_turned(6)),
        "webp": encode(upright, "WEBP", lossless=True),
    }
    for name, data in files.items():
        got = decoder()(sample(position, png=data, target_png=encode(upright)))
        assert torch.equal(got["image"], got["target"]), name


def test_a_jpeg_that_would_be_reduced_lies_on_its_png(tmp_path: Path) -> None:
    """A JPEG of a target a quarter of its size is decoded whole, as its target is."""
    data = encode(photo(2, 256, 256), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    got = decoder(augment=False)(sample(jpg=data, target_png=encode(whole)))
    apart = (got["image"].int() - got["target"].int()).abs()
    assert apart.max() <= 12  # chroma, which a reduced crop does not interpolate
    assert apart.float().mean() < 1


def test_alpha_of_a_target_is_laid_over_the_background() -> None:
    clear = Image.new("RGBA", (48, 40), (0, 0, 0, 0))
    got = decoder(background=(1, 2, 3))(sample(png=encode(photo(0)), target_png=encode(clear)))
    assert got["target"][:, 0, 0].tolist() == [1, 2, 3]


def test_sizes_that_differ_are_named() -> None:
    raw = sample(png=encode(photo(0)), target_png=encode(photo(0, 40, 48)))
    with pytest.raises(
        ValueError, match=r"a.tar: sample 'k': target: expected a target of the photo's size, 48 x 40 .* 40 x 48"
    ):
        decoder()(raw)
    with pytest.raises(ValueError, match="sample 'k': target: cannot identify it"):
        decoder()(sample(png=encode(photo(0)), target_png=b"text"))
    with pytest.raises(ValueError, match=r"sample 'k': target: .*truncated"):
        decoder()(sample(png=encode(photo(0)), target_png=encode(photo(1))[:-60]))


def test_a_bad_pair_is_replaced_in_training_and_ends_an_evaluation(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "in", 4)
    make_shards(folder, tmp_path / "good")
    samples = open_shards(str(tmp_path / "good"))
    members = [(f"p{n}.{name}", data) for n in range(4) for name, data in sorted(samples.read(n).fields.items())]
    members[2] = ("p0.target.png", encode(photo(0, 40, 48)))
    (tmp_path / "bad").mkdir()
    write_tar(tmp_path / "bad" / "a.tar", members)
    data = data_module(tmp_path / "bad", max_bad_share=1.0, val_shards=str(tmp_path / "bad"))
    got = batches(data, 4)
    assert not any("p0" in batch["__key__"] for batch in got)
    assert any("target: expected a target" in text for batch in got for text in batch.get("notes", {}).get("bad", ()))
    with pytest.raises(ValueError, match="sample 'p0': target: expected a target"):
        list(data.val_dataloader())


def test_a_pair_keeps_its_own_mask(shards: Path) -> None:
    """No mask of another sample and no painted one, under which the model would be shown what it is to take away."""
    data = data_module(shards, share=0.0, removal_share=1.0, flip=0.5)
    for batch in batches(data, 3):
        for image, mask, target in zip(batch["image"], batch["mask"], batch["target"], strict=True):
            near = dilate(mask[None].float(), torch.ones(5, 5))[0] > 0  # the resize spreads the square
            assert not ((image != target).any(0) & ~near[0]).any()


def test_a_pair_lends_no_mask() -> None:
    pair = sample(png=encode(scribbled(1)), target_png=encode(photo(1)), mask_png=encode(hole()))
    alone = sample(png=encode(photo(0)))
    lent = {name: data for name, data in pair.fields.items() if name != "target.png"}
    assert "mask" not in decoder()(alone._replace(removal=pair))
    assert "mask" in decoder(min_scale=1.0)(alone._replace(removal=pair._replace(fields=lent)))


# --- transforms


class Own(nn.Module):
    """Adds noise of a generator that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randint(0, 9, image.shape, generator=self.generator, dtype=torch.uint8)
        return (image.float() * 0.9).to(torch.uint8) + noise, mask


ALIKE = [
    v2.ColorJitter(brightness=0.5, hue=0.2),
    v2.RandomHorizontalFlip(),
    v2.RandomResizedCrop((32, 32), antialias=True),
    v2.RandomApply([v2.GaussianBlur(5)]),
    v2.RandomPhotometricDistort(contrast=(1.0, 1.0)),
    v2.RandomRotation(20),
]


@pytest.mark.parametrize("transform", ALIKE, ids=lambda transform: type(transform).__name__)
def test_transforms_do_the_same_to_both(transform: nn.Module) -> None:
    """What they make of a picture that is its own target."""
    augmentations = Augmentations([transform], seed=1)
    image = torch.from_numpy(np.array(photo(3, 32, 32))).movedim(-1, 0).contiguous()
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    for position in range(4):
        assert torch.equal(augmentations(image, mask, position).image, augmentations.target(image, mask, position))


@pytest.mark.parametrize(
    "transform", [v2.ColorJitter(contrast=0.5), v2.RandomEqualize(1.0), v2.RandomAutocontrast(), Own()]
)
def test_transforms_that_cannot_are_refused_by_name(transform: nn.Module, shards: Path) -> None:
    with pytest.raises(ValueError, match=rf"data.decoder.transforms: {type(transform).__name__} changes an image and"):
        data_module(shards, transforms=[transform]).train_dataloader()


# --- batches


def test_a_mixed_set_takes_images_for_the_targets_that_are_missing(tmp_path: Path) -> None:
    make_shards(pair_folder(tmp_path / "in", 6, every=3), tmp_path / "shards")
    data = data_module(tmp_path / "shards", batch_size=2)
    for batch in batches(data, 6):
        assert batch["target"].dtype == torch.uint8
        assert batch["target"].shape == batch["image"].shape
        has = batch.get("has_target", torch.ones(2, dtype=torch.bool))
        assert has.tolist() == [int(key[1:]) % 3 == 0 for key in batch["__key__"]]
        assert torch.equal(batch["target"][~has], batch["image"][~has])


def test_a_set_without_targets_has_none(tmp_path: Path) -> None:
    make_shards(pair_folder(tmp_path / "in", 3, every=9), tmp_path / "a")
    folder = pair_folder(tmp_path / "plain", 3, every=9)
    (folder / "p0.target.png").unlink()
    make_shards(folder, tmp_path / "b")
    assert "target" in batches(data_module(tmp_path / "a"), 1)[0]
    assert "target" not in batches(data_module(tmp_path / "b"), 1)[0]


def test_a_stream_of_pairs_goes_on_where_it_was(shards: Path) -> None:
    whole = batches(data_module(shards), 4)
    data = data_module(shards)
    data.advance(6)
    for a, b in zip(batches(data, 2), whole[2:], strict=True):
        assert a["__key__"] == b["__key__"]
        for name in ("image", "mask", "target", "position"):
            assert torch.equal(a[name], b[name])


def test_a_crop_around_the_hole_takes_the_target_along(shards: Path) -> None:
    (batch,) = batches(data_module(shards), 1)
    same = {**batch, "target": batch["image"].clone()}
    cut = padding_mask_crop(same, 2)
    assert torch.equal(cut["target"], cut["image"])
    assert not torch.equal(cut["image"], batch["image"])
    assert torch.equal(cut["image"], padding_mask_crop({n: v for n, v in batch.items() if n != "target"}, 2)["image"])


# --- training


def test_the_encoder_takes_a_target() -> None:
    """In the same pass: what it makes of the target as an image of its own."""
    encoder = InpaintEncoder(tiny_vae(), grow_mask_by=0)
    image, target = torch.rand(2, 2, 3, 35, 32)
    mask = torch.zeros(2, 1, 35, 32)
    mask[..., :9] = 1
    got, plain = encoder(image, mask, target=target), encoder(image, mask, target=True)
    assert torch.equal(got.samples, plain.samples)
    torch.testing.assert_close(got.target, encoder(target, mask * 0).samples)
    with pytest.raises(ValueError, match=r"target must be .* of their size \(2, 3, 35, 32\); got \(2, 3, 32, 32\)"):
        encoder(image, mask, target=target[:, :, :32])


def test_the_module_learns_and_measures_the_target(shards: Path) -> None:
    (batch,) = batches(data_module(shards), 1)
    module = tiny_module()
    encoder = module.encoder
    got = module.encode(batch)
    torch.testing.assert_close(got.samples, encoder(batch["image"], batch["mask"]).samples)
    torch.testing.assert_close(got.target, encoder(batch["target"], batch["mask"] & False).samples)
    result = module.inpaint(batch)
    assert torch.equal(result.image, batch["target"].float() / 255)
    kept = (result.noise_mask == 0).expand_as(result.image)
    assert torch.equal(result.composite[kept], (batch["image"].float() / 255)[kept])
    assert torch.equal(module.encode(batch, target=False).samples, encoder(batch["image"], batch["mask"]).samples)


@pytest.mark.parametrize("every", [1, 2], ids=["pairs", "mixed"])
def test_a_latent_cache_holds_the_targets_latents(every: int, tmp_path: Path) -> None:
    make_shards(pair_folder(tmp_path / "in", 6, every=every), tmp_path / "shards")
    module = tiny_module()
    cache_latents(data_module(tmp_path / "shards"), module.encoder, tmp_path / "cache")
    data = data_module(tmp_path / "cache")
    assert data.latents is not None
    assert data.latents.target
    assert "of targets" in str(data.latents)
    source = data_module(tmp_path / "shards", share=0.0)
    for cached in batches(data, 2):
        assert "target" not in cached
        for row, key in enumerate(cached["__key__"]):
            position = int(key.rpartition("-")[2])
            raw = source.train_set.read(position)._replace(position=position)
            found = source.train_decoder(raw)
            assert torch.equal(cached["image"][row], found["image"])
            whole = found.get("target", found["image"])[None]
            mask = cached["mask"][row : row + 1]
            one = {name: value[row : row + 1] for name, value in cached.items() if name != "notes"}
            uncached = {**one, "target": whole}
            del uncached["latents"]
            assert module.loss(one).item() == pytest.approx(module.loss(uncached).item(), rel=1e-6)
            assert ("target" in found) == torch.equal(mask[0], found.get("mask", ~mask[0]))


def test_latents_of_the_image_beside_a_target_are_refused(shards: Path, tmp_path: Path) -> None:
    module = tiny_module()
    plain = pair_folder(tmp_path / "plain", 2, every=9)
    (plain / "p0.target.png").unlink()
    make_shards(plain, tmp_path / "plain_shards")
    cache_latents(data_module(tmp_path / "plain_shards"), module.encoder, tmp_path / "cache")
    fields = open_shards(str(tmp_path / "cache")).read(0).fields
    (tmp_path / "mixed").mkdir()
    target = encode(photo(0, 32, 32))
    write_tar(tmp_path / "mixed" / "a.tar", [*((f"a.{n}", d) for n, d in fields.items()), ("a.target.png", target)])
    with pytest.raises(ValueError, match=r"a.tar: expected latents of the target, as the sample has target.png"):
        data_module(tmp_path / "mixed").latents  # noqa: B018


RUNS = [pytest.param({"removal": (2,)}, id="once")]
RUNS.append(pytest.param({"whole": (2,), "removal": (1, 2)}, id="resumed", marks=pytest.mark.slow))


@pytest.mark.parametrize("runs", RUNS)
def test_the_removal_recipe_trains(
    runs: dict[str, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn, packed and trained by the commands of configs/README.md; a resumed run ends as one that was not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for part in ("train", "val"):
        assert make_pairs(f"embedded:{part}", Path(f"data/scribbled/{part}"), most=4) == 4
        assert command.main(["shards", "make", f"data/scribbled/{part}", f"data/pairs/{part}"]) == 0
    configs = [f"--config={ROOT / 'configs' / name}" for name in ("quickstart.yaml", "removal.yaml", "from_image.yaml")]
    quiet = [*QUICK, "--data.val_batch_size=4", "--samples=null"]
    quiet.append("--trainer.callbacks.ModelCheckpoint.every_n_train_steps=1")
    for name, stops in runs.items():
        for steps in stops:
            more = [f"--trainer.max_steps={steps}", f"--trainer.logger.init_args.name={name}"]
            with mock.patch.object(sys, "argv", ["train", "fit", *configs, *quiet, *more]):
                os.environ.pop("PL_GLOBAL_SEED", None)  # of the run before
                assert train.main() == 0
    found = [torch.load(f"runs/{name}/checkpoints/last.ckpt")["state_dict"] for name in runs]
    assert all(torch.equal(found[0][name], found[-1][name]) for name in found[0])
    assert Path("runs/removal/grids/step_000002.png").exists()
    said = show(Path("data/scribbled/val"), Path("runs/removal"), Path("removal.jpg"))
    assert set(said) == {"drawn on", "smooth fill", "this model"}
    assert Path("removal.jpg").stat().st_size < 300_000


# --- the doctor


def test_the_doctor_measures_pairs(shards: Path) -> None:
    (batch,) = batches(data_module(shards), 1)
    own = [torch.ones(3, dtype=torch.bool)]
    good = measure_pairs([batch], own)
    assert good is not None
    assert good.outside.max() < 3
    assert good.inside.nan_to_num(99).min() > 30
    assert check_pairs(good) == []
    shifted = {**batch, "target": batch["target"].roll(3, -1)}
    (finding,) = [found for found in check_pairs(measure_pairs([shifted], own)) if "misaligned" in found.title]
    assert "3 of 3 pairs differ outside of the mask by" in finding.came
    (finding,) = check_pairs(measure_pairs([{**batch, "target": batch["image"]}], own))
    assert finding.title == "pairs with nothing to change"
    assert measure_pairs([{n: v for n, v in batch.items() if n != "target"}], own) is None
    assert Account().found.get("targets") is None


def test_the_doctor_takes_no_target_for_a_bad_round_trip(shards: Path, tmp_path: Path) -> None:
    """Of a latent cache of pairs it encodes the images itself: the latents are of pictures that it has not."""
    module = tiny_module()
    cache_latents(data_module(shards), module.encoder, tmp_path / "cache")
    data = data_module(tmp_path / "cache")
    exam = Examination(batches=batches(data, 1), speeds=Speeds(1.0), sizes=Sizes([(32, 32)], 8, 8))
    examine_model(exam, data, module, device=torch.device("cpu"), precision="32-true", step=False)
    whole = {name: value for name, value in exam.batches[0].items() if name != "latents"}
    assert torch.equal(exam.encoded[0].latents, module.encode(whole).target)  # type: ignore[arg-type]
