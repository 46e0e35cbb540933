"""Masks from a recording are those of the generator; most of it needs a GPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from mask_cases import GENERATORS, KEYS

from inpaint_module.masks import CudaGraphed, Curriculum, Full, Outpaint, Union, graph_masks, preset


def test_elsewhere_the_generator_paints() -> None:
    assert torch.equal(CudaGraphed(preset("sd"))(KEYS, 64, 48), preset("sd")(KEYS, 64, 48))


def test_what_changes_with_the_step_is_refused() -> None:
    message = "paints the same at every step, but Curriculum changes with it; put CudaGraphed around"
    with pytest.raises(ValueError, match=message):
        CudaGraphed(Union([Full(), Curriculum([Outpaint(), Full()], [0, 10])]))
    around = Curriculum([CudaGraphed(Outpaint()), CudaGraphed(Full())], [0, 10])
    around.set_step(10)
    assert around(KEYS, 32, 32).all()


def test_as_much_as_can_be_is_recorded() -> None:
    plain = Union([CudaGraphed(Outpaint()), Curriculum([Outpaint(), Full()], [0, 10])])
    made = graph_masks(plain)
    assert [type(part) for part in made.parts] == [CudaGraphed, Curriculum]
    assert [type(part) for part in made.parts[1].parts] == [CudaGraphed, CudaGraphed]
    assert [type(part) for part in plain.parts[1].parts] == [Outpaint, Full]
    for step in (0, 5, 10):
        plain.set_step(step)
        made.set_step(step)
        assert torch.equal(made(KEYS, 32, 32), plain(KEYS, 32, 32))
    assert isinstance(graph_masks(preset("sd")), CudaGraphed)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_copies_paint_the_same(again: Callable[[CudaGraphed], CudaGraphed]) -> None:
    masks = CudaGraphed(Outpaint())
    assert torch.equal(again(masks)(KEYS, 32, 32), masks(KEYS, 32, 32))


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "curriculum"])
def test_a_recording_paints_what_the_generator_does(name: str) -> None:
    plain, recorded = GENERATORS[name], CudaGraphed(GENERATORS[name])
    keys = KEYS.cuda()
    first = recorded(keys[:8], 128, 128)
    for chosen, size in (
        (keys[:8], (128, 128)),
        (keys[8:16], (128, 128)),
        (keys[:5], (64, 96)),
        (keys[3:11], (128, 128)),
    ):
        assert torch.equal(recorded(chosen, *size), plain(chosen, *size))
    assert torch.equal(first, plain(keys[:8], 128, 128))  # a replay leaves earlier masks alone


@pytest.mark.cuda
def test_a_recording_of_a_validation_serves_in_training() -> None:
    recorded, keys = CudaGraphed(preset("sd")), KEYS.cuda()
    with torch.inference_mode():
        recorded(keys, 64, 64)
    assert torch.equal(recorded(keys + 1, 64, 64), preset("sd")(keys + 1, 64, 64))
