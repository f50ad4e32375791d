"""Loss and gradient of packed passes against whole forwards, one prompt at a time."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from sphere_pl.editing.asked import Joint
from sphere_pl.editing.objective import Objective, Pass, _losses
from sphere_pl.editing.target_rows import subject_states, target_rows
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.model.tokens import in_context, kl_prompt, tokenize

CONTEXTS = ["", "You and I. ", "Therefore a pianist. "]
SETTINGS = TargetSettings(steps=8, learning_rate=0.3, clamp=2.0, weight_decay=0.5, kl_weight=0.5, stop_loss=1.0)


def test_rows_of_all_lengths_and_the_divergence_are_one_pass_and_one_row(tiny_lm, requests, monkeypatch):
    lm, entered = tiny_lm(), []
    run = lm.run

    def noting(hidden, calls, start, stop):
        if start == 2:
            entered.append(tuple(hidden.shape[:2]))
        return run(hidden, calls, start, stop)

    monkeypatch.setattr(lm, "run", noting)
    optimize_targets(lm, requests, CONTEXTS, 1, replace(SETTINGS, steps=1))
    assert entered[0] == (1, len(requests))  # the reference of the divergence
    (packed,) = entered[1:]
    assert packed[0] == 1
    assert packed[1] > len(requests) * (len(CONTEXTS) + 1)


def test_the_gradient_is_the_same_however_few_logits_exist_at_a_time(tiny_lm, requests, monkeypatch):
    lm = tiny_lm()
    whole = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    monkeypatch.setattr("sphere_pl.editing.objective.LOGITS_AT_ONCE", 3 * lm.config.vocab_size)
    parts = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_the_gradient_at_the_logits_is_that_of_the_losses(start):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    reference = torch.log_softmax(torch.randn(2, 7, generator=generator, dtype=torch.float64), dim=1)
    blank = torch.zeros(0, dtype=torch.long)
    labels, weights = torch.tensor([1, 6, 0]), torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    some = Pass(cast(Any, None), blank, blank, blank, blank, blank, labels, weights, reference)
    leaf = logits[start:].clone().requires_grad_()
    logp = torch.log_softmax(leaf, dim=1)
    asked = max(0, 3 - start)
    expected = [-logp[row, labels[start + row]] * weights[start + row] for row in range(asked)]
    for row in range(asked, 5 - start):
        other = reference[start + row - 3]
        expected.append(0.3 * (logp[row].exp() * (logp[row] - other)).sum())
    losses, gradient = _losses(some, logits[start:].clone(), start, 0.3)
    torch.testing.assert_close(losses, torch.stack(expected).detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(torch.stack(expected).sum(), leaf)[0])


def literal_loss(lm, request, shift, norm):
    """The loss of one request with a shift of its state after block 1: a whole forward for each prompt, no padding."""
    loss = SETTINGS.decay(shift[None], norm[None]).sum()
    prompts = [in_context(request, context, request.target_new) for context in CONTEXTS]
    for t in tokenize(lm.tokenizer, [*prompts, kl_prompt(request)]):
        ids, found = torch.tensor([t.ids[:-1] if t.target else t.ids]), []
        for added in (shift, torch.zeros_like(shift)):

            def add(_, __, output, last=t.subject_last, added=added):
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden.index_add(1, torch.tensor([last]), added[None, None])
                return (hidden,) if isinstance(output, tuple) else hidden

            handle = lm.block(1).register_forward_hook(add)
            found.append(torch.log_softmax(lm.model(input_ids=ids).logits.float(), -1)[0])
            handle.remove()
        logp, unshifted = found
        if t.target:
            places = range(t.target_start - 1, len(t.ids) - 1)
            said = sum(logp[place, label] for place, label in zip(places, t.target, strict=True))
            loss = loss - said / len(t.target) / len(CONTEXTS)
        else:
            current, reference = logp[t.subject_last], unshifted[t.subject_last].detach()
            loss = loss + SETTINGS.kl_weight * (current.exp() * (current - reference)).sum()
    return loss


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "cohere2"])
def test_loss_and_gradient_are_those_of_whole_forwards_where_a_window_is_shorter_than_every_prompt(
    tiny_lm, requests, model_type
):
    lm = tiny_lm(model_type)
    lm.config.sliding_window = 4
    joint = Joint.separate(len(requests))
    groups, kl_groups = target_rows(lm, requests, CONTEXTS, 1, SETTINGS, joint)
    base = subject_states(groups, len(requests))
    shift = (0.1 * torch.randn(base.shape, generator=torch.manual_seed(0))).requires_grad_()
    losses, _, find_gradient = Objective(lm, 1, groups, kl_groups, base, SETTINGS, joint)(shift)
    expected = torch.stack([literal_loss(lm, *each) for each in zip(requests, shift, base.norm(dim=1), strict=True)])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    wanted = torch.autograd.grad(expected.sum(), shift)[0]
    torch.testing.assert_close(find_gradient(), wanted, rtol=1e-3, atol=1e-5)
