"""Losses, gradients and features of a batch against whole forwards of the model, one request at a time."""

import pytest
import torch

from sphere_pl.editing.likelihood import TargetLikelihood
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import in_context, tokenize
from tests.others import flatten_tokens

LAYERS = [1, 2]


def literal_loss(lm, request, end=False):
    """Mean negative log-likelihood of the target's tokens, each given those before it; a whole forward."""
    entry = tokenize(lm.tokenizer, [in_context(request, "", request.target_new)])[0]
    ids = entry.ids + ([lm.tokenizer.eos_token_id] if end else [])
    log_probabilities = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits.float(), -1)[0]
    places = range(entry.target_start, len(ids))
    return -sum(log_probabilities[place - 1, ids[place]] for place in places) / len(places)


@pytest.mark.parametrize("bos", [False, True])
def test_loss_and_gradient_are_those_of_whole_forwards_in_every_family(tiny_lm, family, requests, bos):
    lm = tiny_lm(family, bos=bos)
    sites = lm.sites(LAYERS)
    likelihood = TargetLikelihood(lm, requests, sites, max_tokens=12)
    for index, site in enumerate(sites):
        likelihood.advance(index)
        chosen = torch.tensor([3, 0, 2])
        losses, gradient = likelihood.loss_and_gradient(site.read(), chosen)
        site.stored.requires_grad_()
        expected = torch.stack([literal_loss(lm, requests[i]) for i in chosen])
        wanted = torch.autograd.grad(expected.mean(), site.stored)[0]
        site.stored.requires_grad_(False)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, wanted.T if site.fan_in_fan_out else wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj"])
def test_the_given_matrix_counts_and_the_model_keeps_its_own(tiny_lm, requests, model_type):
    lm = tiny_lm(model_type)
    sites = lm.sites(LAYERS)
    before, other = sites[1].read(), sites[1].read() + 0.1
    likelihood = TargetLikelihood(lm, requests, sites)
    likelihood.advance(1)
    losses, _ = likelihood.loss_and_gradient(other, torch.arange(4))
    assert torch.equal(sites[1].read(), before)
    sites[1].write(other)
    expected = torch.stack([literal_loss(lm, request) for request in requests])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


def test_a_deeper_matrix_sees_what_a_shallower_one_has_become(tiny_lm, requests):
    lm = tiny_lm()
    sites = lm.sites(LAYERS)
    likelihood = TargetLikelihood(lm, requests, sites)
    sites[0].write(sites[0].read() + 0.1)
    likelihood.advance(1)
    losses, _ = likelihood.loss_and_gradient(sites[1].read(), torch.arange(4))
    likelihood.advance(0)
    again, _ = likelihood.loss_and_gradient(sites[0].read(), torch.arange(4))
    expected = torch.stack([literal_loss(lm, request) for request in requests])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


def test_the_end_of_text_can_be_part_of_the_target(tiny_lm, requests):
    lm = tiny_lm()
    likelihood = TargetLikelihood(lm, requests, lm.sites([1]), end_of_text=True)
    losses, _ = likelihood.loss_and_gradient(lm.sites([1])[0].read(), torch.arange(4))
    expected = torch.stack([literal_loss(lm, request, end=True) for request in requests])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    lm.tokenizer.eos_token = None
    with pytest.raises(UserError, match="end_of_text"):
        TargetLikelihood(lm, requests, lm.sites([1]), end_of_text=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_float32_whatever_the_model_is(tiny_lm, requests, dtype):
    lm = tiny_lm(dtype=dtype)
    likelihood = TargetLikelihood(lm, requests, lm.sites([1]))
    _, gradient = likelihood.loss_and_gradient(lm.sites([1])[0].read(), torch.arange(4))
    keys, gradients = likelihood.features()
    assert gradient.dtype == keys.dtype == gradients.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_features_are_inputs_and_output_gradients_at_every_token(tiny_lm, family, requests):
    """At each matrix, the sum over tokens of gradient x input is the matrix's own gradient."""
    lm = tiny_lm(family)
    sites = lm.sites(LAYERS)
    likelihood = TargetLikelihood(lm, requests, sites, max_tokens=16)
    prompts = [in_context(request, "", request.target_new) for request in requests]
    read = sum(len(entry.ids) - 1 for entry in tokenize(lm.tokenizer, prompts))
    for index, site in enumerate(sites):
        likelihood.advance(index)
        keys, gradients = likelihood.features()
        assert len(keys) == len(gradients) == read
        likelihood.advance(index)
        _, mean_gradient = likelihood.loss_and_gradient(site.read(), torch.arange(4))
        torch.testing.assert_close(gradients.T @ keys, 4 * mean_gradient, rtol=1e-3, atol=1e-4)
        # Rows of gradients lie with the keys of their own token.
        assert not torch.allclose(gradients.T @ keys.flip(0), 4 * mean_gradient, rtol=1e-3, atol=1e-4)


def test_features_are_found_where_blocks_hand_rows_and_columns_on_as_one(tiny_lm, requests):
    lms = tiny_lm(), flatten_tokens(tiny_lm())
    found = [TargetLikelihood(lm, requests, lm.sites(LAYERS)).features() for lm in lms]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)
