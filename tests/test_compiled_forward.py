"""The denoiser is compiled in training steps alone. Without a GPU torch runs it: Inductor would need a C++ compiler."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from on_gpu import on_gpu
from tiny_models import tiny_batch, tiny_module
from torch import nn

from inpaint_module.base_models import CompiledForward
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion


def compiled_calls(module: InpaintDiffusion) -> list[bool]:
    """Filled by each call of the denoiser: whether compiled code stood in for its forward."""
    seen: list[bool] = []
    module.denoiser.register_forward_pre_hook(lambda part, _: seen.append(hasattr(part.forward, "get_compiler_config")))
    return seen


def test_training_is_compiled_and_sampling_is_not() -> None:
    plain, module, batch = tiny_module(), tiny_module(compile="reduce-overhead"), tiny_batch()
    seen = compiled_calls(module)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(module.loss(batch), plain.loss(batch))
        module.inpaint(batch)
    assert seen == [True, False, False]
    assert module.state_dict().keys() == plain.state_dict().keys()


def test_a_copy_computes_with_its_own_weights() -> None:
    module, batch = tiny_module(compile="default"), tiny_batch()
    with torch.compiler.set_stance("force_eager"):
        before = module.loss(batch)
        copied = copy.deepcopy(module)
        nn.init.zeros_(copied.denoiser.conv_out.weight)
        assert not torch.equal(copied.loss(batch), before)
        assert torch.equal(module.loss(batch), before)
    assert pickle.loads(pickle.dumps(module.compiled)).mode == "default"


def test_after_an_error_the_module_is_as_it_was() -> None:
    module = nn.Linear(2, 2)
    eager, compiled = torch.compiler.set_stance("force_eager"), CompiledForward("default")
    with eager, pytest.raises(RuntimeError, match="shapes"), compiled.within(module):
        module(torch.ones(3, 3))
    assert "forward" not in vars(module)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile must be true, false or one of default, .*; got 'fast'"):
        tiny_module(compile="fast")


@pytest.mark.cuda
def test_on_a_gpu_cuda_graphs_give_the_same_gradients() -> None:
    plain, module = tiny_module().cuda(), tiny_module(compile="reduce-overhead").cuda()
    for first in (0, 2, 4, 6):  # graphs are recorded at the second step and replayed from the third
        batch = on_gpu(tiny_batch(first=first))
        for each in (plain, module):
            each.zero_grad()
            each.loss(batch).backward()
        for expected, got in zip(plain.denoiser.parameters(), module.denoiser.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=0.05, atol=1e-3)
