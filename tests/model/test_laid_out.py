"""Weights laid out once give the products that they give as they are."""

import pytest
import torch

from sphere_pl.model import laid_out as module
from sphere_pl.model.laid_out import laid_out

LINEAR = pytest.mark.skipif(not module._knows_layouts(), reason="this processor has no bfloat16 products")


def run(lm):
    """Logits and the gradient at what enters block 1."""
    ids = torch.arange(24).reshape(2, 12)
    positions = torch.arange(12).expand(2, 12)
    calls = lm.block_calls(ids, torch.ones_like(ids), positions)
    hidden = lm.run(calls.hidden, calls, 0, 1).detach().requires_grad_()
    logits = lm.logits(lm.run(hidden, calls, 1, lm.n_layers))
    return logits.detach(), torch.autograd.grad(logits.square().sum(), hidden)[0]


@LINEAR
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_outputs_and_gradients_are_the_same_to_the_bit_and_nothing_stays_behind(tiny_lm, family):
    lm = tiny_lm(family, dtype=torch.bfloat16)
    plain = run(lm)
    with laid_out(lm, 1):
        changed = [each for each in lm.model.modules() if "forward" in vars(each)]
        assert bool(changed) == (family != "gpt2")  # whose maps are of another class
        assert not any(each in list(lm.block(0).modules()) for each in changed)
        found = run(lm)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not any("forward" in vars(each) for each in lm.model.modules())


@LINEAR
def test_only_what_fits_is_copied(tiny_lm, monkeypatch):
    lm = tiny_lm(dtype=torch.bfloat16)
    some = 2.5 * lm.block(1).self_attn.q_proj.weight.nbytes  # the first map, twice, and not the next ones
    monkeypatch.setattr(module, "free_memory", lambda device: some / module.SHARE)
    with laid_out(lm, 1):
        changed = [each for each in lm.model.modules() if "forward" in vars(each)]
    assert changed == [lm.block(1).self_attn.q_proj]


def test_other_types_are_left_as_they_are(tiny_lm):
    lm = tiny_lm()
    with laid_out(lm, 0):
        assert not any("forward" in vars(each) for each in lm.model.modules())
