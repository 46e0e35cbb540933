"""Augmentations: functions of the position, which move the mask along and leave the global generators alone."""

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from data_fixtures import encode, photo, sample_decoder
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from datamodules.decode.augmentations import Augmentations, augment, position_seed, random_numbers
from datamodules.shards.shard_set import RawSample
from inpaint_module.randomness import Stream, fold_in, key, uniform

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities")  # of v2.JPEG
IMAGE = torch.arange(3 * 16 * 20, dtype=torch.uint8).reshape(3, 16, 20)
MASK = torch.zeros(1, 16, 20, dtype=torch.bool)
MASK[:, 3:9, 2:8] = True


def config_transforms() -> list[nn.Module]:
    """As a config gives them, through jsonargparse."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transforms", type=list[nn.Module] | None)
    name = "torchvision.transforms.v2"
    transforms = [
        {"class_path": f"{name}.ColorJitter", "init_args": {"brightness": 0.3, "hue": 0.1}},
        {"class_path": f"{name}.GaussianBlur", "init_args": {"kernel_size": 5, "sigma": [0.1, 2.0]}},
        {"class_path": f"{name}.RandomGrayscale", "init_args": {"p": 0.5}},
        {"class_path": f"{name}.JPEG", "init_args": {"quality": [40, 90]}},
    ]
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name until jsonargparse 4.49
    return build(parser.parse_object({"transforms": transforms})).transforms


class OtherGenerators(nn.Module):
    """Draws from numpy's and Python's global generators."""

    def forward(self, image: Tensor) -> Tensor:
        return image + int(np.random.randint(100)) + random.randrange(100)  # noqa: NPY002


class Drawn(nn.Module):
    """Fails after it has drawn."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.rand(2)


def states() -> tuple[bytes, bytes, object]:
    numpy_state = np.random.get_state()[1].tobytes()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()


def test_without_transforms_nothing_is_touched() -> None:
    image, mask = Augmentations([], seed=0)(IMAGE, MASK, 3)
    assert image is IMAGE
    assert mask is MASK


class Positions(Dataset[Tensor]):
    def __init__(self, augmentations: Augmentations) -> None:
        self.augmentations = augmentations

    def __getitem__(self, position: int) -> Tensor:
        return self.augmentations(IMAGE, None, position).image


def test_the_same_bits_in_any_worker() -> None:
    augmentations = Augmentations(config_transforms(), seed=5)
    here = [augmentations(IMAGE, None, position).image for position in range(8)]
    order = [5, 1, 7, 0, 2, 6, 3, 4]
    loader = DataLoader(Positions(augmentations), batch_size=None, num_workers=2, sampler=order)
    assert all(image.equal(here[position]) for image, position in zip(loader, order, strict=True))


def test_a_function_of_seed_and_position() -> None:
    """In any order, after any draws, and pickled."""
    augmentations = Augmentations(config_transforms(), seed=5)
    first = [augmentations(IMAGE, None, position).image for position in range(6)]
    torch.rand(17)
    copy = pickle.loads(pickle.dumps(augmentations))
    again = [copy(IMAGE, None, position).image for position in reversed(range(6))][::-1]
    other = Augmentations(config_transforms(), seed=6)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert len({image.numpy().tobytes() for image in [*first, other(IMAGE, None, 0).image]}) == 7
    assert all(type(image) is Tensor and image.dtype == torch.uint8 and image.shape == IMAGE.shape for image in first)


def test_the_generators_go_on_as_if_nothing_was_drawn() -> None:
    before = states()
    augmentations = Augmentations([*config_transforms(), OtherGenerators()], seed=5)
    images = [augmentations(IMAGE, None, position).image for position in (0, 1, 0)]
    assert states() == before
    assert images[0].equal(images[2])
    assert not images[0].equal(images[1])
    with pytest.raises(ValueError, match="from Drawn"):
        Augmentations([Drawn()], seed=5)(IMAGE, None, 0)
    assert states() == before


def test_seeds_are_those_of_the_position() -> None:
    rows = fold_in(key(9, torch.tensor([0, 63, 64]), Stream.CROP), 1).tolist()
    assert [position_seed(9, position, Stream.CROP, 1) for position in (0, 63, 64)] == rows


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (v2.RandomHorizontalFlip(p=1.0), lambda x: x.flip(-1)),
        (v2.RandomVerticalFlip(p=1.0), lambda x: x.flip(-2)),
        (v2.RandomInvert(p=0.0), lambda x: x),
    ],
)
def test_masks_move_with_images(transform: nn.Module, expected: Callable[[Tensor], Tensor]) -> None:
    image, mask = augment(IMAGE, MASK, [transform])
    assert image.equal(expected(IMAGE))
    assert mask.equal(expected(MASK))
    assert mask.dtype == torch.bool


def test_a_random_warp_meets_its_mask() -> None:
    """The image is the mask, drawn in white: they stay together."""
    picture = (MASK * 255).to(torch.uint8).expand(3, -1, -1).contiguous()
    transform = v2.RandomAffine(30, translate=(0.2, 0.2), interpolation=v2.InterpolationMode.NEAREST)
    augmentations = Augmentations([transform], seed=1)
    for position in range(8):
        image, mask = augmentations(picture, MASK, position)
        assert mask[0].equal(image[0] > 0)


class Twice(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image, image])


class Nothing(nn.Module):
    def forward(self, image: Tensor, mask: Tensor | None = None) -> None:
        return None


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Resize(8), r"an image torch.uint8 \(3, 16, 20\) from Resize, got torch.uint8 \(3, 8, 10\)"),
        (v2.ToDtype(torch.float32, scale=True), r"from ToDtype, got torch.float32 \(3, 16, 20\)"),
        (v2.Grayscale(), r"an image torch.uint8 \(3, 16, 20\) from Grayscale, got torch.uint8 \(1, 16, 20\)"),
        (Twice(), r"from Twice, got torch.uint8 \(6, 16, 20\)"),
        (Nothing(), "from Nothing, got NoneType"),
    ],
)
def test_what_does_not_fit_a_batch_is_refused(transform: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.decoder\.transforms: expected .*{message}"):
        augment(IMAGE, None, [transform])


class FloatMask(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return image, mask.float()


class ImageOnly(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return parts[0]


def test_a_lost_or_changed_mask_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected a mask torch.uint8 \(1, 16, 20\) from FloatMask, got torch.float32"
    ):
        augment(IMAGE, MASK, [FloatMask()])
    with pytest.raises(ValueError, match=r"expected image and mask from ImageOnly, got 1 of 2"):
        augment(IMAGE, MASK, [ImageOnly()])


def test_in_samples_they_come_after_crop_and_flip() -> None:
    options = {"image_size": (16, 20), "seed": 3, "augment": True}
    mask = Image.fromarray((np.arange(48)[None].repeat(40, 0) < 24).astype(np.uint8) * 255)
    raw = RawSample("s.tar", "k", {"png": encode(photo(1)), "mask.png": encode(mask)}, 11)
    plain = sample_decoder(**options)(raw)
    turned = sample_decoder(**options, transforms=[v2.RandomVerticalFlip(p=1.0)])(raw)
    jittered = sample_decoder(**options, transforms=config_transforms())(raw)
    assert turned["image"].equal(plain["image"].flip(-2))
    assert turned["mask"].equal(plain["mask"].flip(-2))
    assert jittered["image"].equal(Augmentations(config_transforms(), seed=3)(plain["image"], None, 11).image)
    assert jittered["mask"].equal(plain["mask"])
    with pytest.raises(ValueError, match=r"s\.tar: sample 'k': data\.decoder\.transforms: .* from Resize"):
        sample_decoder(**options, transforms=[v2.Resize(8)])(raw)


def test_numbers_of_a_position_are_its_row_of_the_batchs() -> None:
    positions = torch.tensor([-1, 0, 63, 64, 10**12])
    for stream, count in ((Stream.CROP, 3), (Stream.OWN_MASK, 2), (Stream.REMOVAL_MASK, 5)):
        rows = uniform(key(9, positions, stream), count).tolist()
        assert [random_numbers(9, int(position), stream, count) for position in positions] == rows
