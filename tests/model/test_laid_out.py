"""Weights laid out once give the products that they give as they are."""

import copy
import pickle

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
    edited = [site.module for site in lm.sites([0])]
    with laid_out(lm, edited):
        changed = [each for each in lm.model.modules() if "forward" in vars(each)]
        in_blocks = [each for each in changed if each is not lm.model.get_output_embeddings()]
        assert len(in_blocks) == len(changed) - 1
        assert bool(in_blocks) == (family != "gpt2")  # whose maps in blocks are of another class
        assert not any(each is other for each in changed for other in edited)
        found = run(lm)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not any("forward" in vars(each) for each in lm.model.modules())


@LINEAR
@pytest.mark.parametrize("how", ["in place", "another one", "to be trained"])
def test_a_weight_that_is_changed_all_the_same_counts_as_it_is(tiny_lm, how):
    lm = tiny_lm(dtype=torch.bfloat16)
    changing = lm.block(1).self_attn.q_proj
    with laid_out(lm):
        before = run(lm)
        if how == "in place":
            changing.weight.mul_(2.0)
        elif how == "another one":
            changing.weight = torch.nn.Parameter(2 * changing.weight.detach(), requires_grad=False)
        else:
            changing.weight.requires_grad_(True)
        found = run(lm)
        if how == "to be trained":
            assert changing(input=torch.ones(1, changing.in_features, dtype=torch.bfloat16)).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(found, run(lm), strict=True))
    assert torch.equal(found[0], before[0]) == (how == "to be trained")


@LINEAR
@pytest.mark.parametrize("again", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_a_block_that_is_copied_or_stored_meanwhile_is_an_ordinary_one(tiny_lm, again):
    lm = tiny_lm(dtype=torch.bfloat16)
    states = torch.randn(2, 3, lm.config.hidden_size).to(torch.bfloat16)
    with laid_out(lm):
        expected, other = lm.block(1).mlp(states), again(lm.block(1).mlp)
        assert torch.equal(lm.block(1).mlp.up_proj(input=states), other.up_proj(states))
    assert torch.equal(other(states), expected)
    other.up_proj.weight.data.mul_(2.0)  # which layouts would not see
    assert not torch.equal(other(states), expected)
    assert torch.equal(lm.block(1).mlp(states), expected)


@LINEAR
def test_only_what_fits_is_copied_what_gradients_go_through_first(tiny_lm, monkeypatch):
    lm = tiny_lm(dtype=torch.bfloat16)
    head, last = lm.model.get_output_embeddings(), lm.block(lm.n_layers - 1).self_attn.q_proj
    some = 2 * head.weight.nbytes + 2.5 * last.weight.nbytes  # these two, twice, and not the next ones
    monkeypatch.setattr(module, "free_memory", lambda device: some / module.SHARE)
    with laid_out(lm):
        changed = [each for each in lm.model.modules() if "forward" in vars(each)]
    assert {id(each) for each in changed} == {id(head), id(last)}


def test_other_types_are_left_as_they_are(tiny_lm):
    lm = tiny_lm()
    with laid_out(lm):
        assert not any("forward" in vars(each) for each in lm.model.modules())
