"""Batched targets against the literal procedure: one request at a time, full forwards, full logits."""

from dataclasses import replace

import pytest
import torch

from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.errors import UserError
from sphere_pl.model.batching import pad
from sphere_pl.model.self_check import check_parts
from sphere_pl.model.tokens import in_context, kl_prompt, tokenize
from tests.others import ATTENDING_OTHERWISE, other_lm

CONTEXTS = ["", "You and I. ", "Therefore a pianist. "]
SETTINGS = TargetSettings(steps=8, learning_rate=0.3, clamp=2.0, weight_decay=0.5, kl_weight=0.5, stop_loss=1.0)


def literal_targets(lm, request, contexts, layer, settings):
    """ROME's and MEMIT's optimisation as their papers describe it, for one request."""
    prompts = [in_context(request, context, request.target_new) for context in contexts] + [kl_prompt(request)]
    tokens = tokenize(lm.tokenizer, prompts)
    ids, mask = pad([t.ids[:-1] if t.target else t.ids for t in tokens], lm.pad_id, lm.device)
    rows, subject = torch.arange(len(tokens)), torch.tensor([t.subject_last for t in tokens])
    shift = torch.zeros(lm.config.hidden_size, requires_grad=True)
    state, reference = None, None
    optimizer = torch.optim.Adam([shift], lr=settings.learning_rate)

    def add_shift(_, __, output):
        nonlocal state
        hidden = output[0] if isinstance(output, tuple) else output
        state = hidden[0, subject[0]].detach() if state is None else state
        hidden = hidden.clone()
        hidden[rows, subject] = hidden[rows, subject] + shift
        return (hidden,) if isinstance(output, tuple) else hidden

    handle = lm.block(layer).register_forward_hook(add_shift)
    for step in range(settings.steps):
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        logits = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        logp = torch.log_softmax(logits.float(), -1)
        nll = torch.zeros(())
        for row, t in enumerate(tokens[:-1]):
            nll = nll - sum(logp[row, t.target_start - 1 + k, label] for k, label in enumerate(t.target)) / len(
                t.target
            )
        nll = nll / len(contexts)
        current = logp[-1, subject[-1]]
        reference = current.detach() if reference is None else reference
        divergence = (current.exp() * (current - reference)).sum()
        loss = nll + settings.kl_weight * divergence + settings.weight_decay * shift.norm() / state.norm() ** 2
        if loss < settings.stop_loss or step == settings.steps - 1:
            break
        shift.grad = torch.autograd.grad(loss, shift)[0]
        optimizer.step()
        with torch.no_grad():
            bound = settings.clamp * state.norm()
            if shift.norm() > bound:
                shift.mul_(bound / shift.norm())
    handle.remove()
    return state + shift.detach(), step, loss.detach(), torch.exp(-nll.detach())


@pytest.mark.parametrize("bos", [False, True])
def test_batched_targets_are_the_literal_ones_in_every_family(tiny_lm, family, requests, bos):
    lm = tiny_lm(family, bos=bos)
    found = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    for i, request in enumerate(requests):
        value, steps, loss, probability = literal_targets(lm, request, CONTEXTS, 1, SETTINGS)
        assert found.steps[i] == steps
        torch.testing.assert_close(found.values[i], value, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.loss[i], loss, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.probability[i], probability, rtol=1e-3, atol=1e-3)


def test_requests_that_converge_at_different_steps_do_not_disturb_each_other(tiny_lm, requests):
    lm = tiny_lm()
    settings = TargetSettings(steps=20, learning_rate=0.5, clamp=4.0, weight_decay=0.0, kl_weight=0.1, stop_loss=6.2)
    together = optimize_targets(lm, requests, CONTEXTS, 1, settings)
    assert len(set(together.steps.tolist())) > 1
    for i, request in enumerate(requests):
        alone = optimize_targets(lm, [request], CONTEXTS, 1, settings)
        assert alone.steps[0] == together.steps[i]
        torch.testing.assert_close(together.values[i], alone.values[0], rtol=1e-3, atol=1e-3)


def test_micro_batches_do_not_change_targets(tiny_lm, requests):
    lm = tiny_lm()
    whole = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    small = optimize_targets(lm, requests, CONTEXTS, 1, replace(SETTINGS, max_tokens=6))
    torch.testing.assert_close(whole.values, small.values, rtol=1e-3, atol=1e-3)


def test_the_shift_never_leaves_the_norm_bound(tiny_lm, requests):
    settings = TargetSettings(steps=6, learning_rate=5.0, clamp=0.25, stop_loss=0.0)
    lm = tiny_lm()
    found = optimize_targets(lm, requests, [""], 1, settings)
    base = optimize_targets(lm, requests, [""], 1, TargetSettings(steps=1, stop_loss=0.0)).values
    assert found.clamped.all()
    assert ((found.values - base).norm(dim=1) <= 0.2501 * base.norm(dim=1)).all()


def test_one_step_leaves_the_state_as_it_is(tiny_lm, requests):
    lm = tiny_lm()
    found = optimize_targets(lm, requests, [""], 1, TargetSettings(steps=1))
    from sphere_pl.editing.representations import SubjectStream

    stream = SubjectStream(lm, requests, [""], 0)
    torch.testing.assert_close(found.values, stream.values(1), rtol=1e-4, atol=1e-4)
    assert (found.steps == 0).all()


def test_targets_raise_the_probability_of_the_new_object(tiny_lm, family, requests):
    lm = tiny_lm(family)
    settings = TargetSettings(steps=15, learning_rate=0.5, clamp=4.0, kl_weight=0.0625, stop_loss=0.05)
    before = optimize_targets(lm, requests, CONTEXTS, 1, TargetSettings(steps=1)).probability
    after = optimize_targets(lm, requests, CONTEXTS, 1, settings).probability
    assert (after > 1.1 * before).all()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": -1.0}, {"clamp": 0.0}, {"kl_weight": -0.1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TargetSettings(**wrong)


def test_anchoring_keeps_the_direction_and_sets_the_norm(tiny_lm, requests):
    found = optimize_targets(tiny_lm(), requests, CONTEXTS, 1, SETTINGS)
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0])
    anchored = found.anchored(norms)
    torch.testing.assert_close(anchored.values.norm(dim=1), norms)
    torch.testing.assert_close(torch.cosine_similarity(anchored.values, found.values), torch.ones(4))
    assert anchored.probability is found.probability


@pytest.mark.parametrize("name", ["diffllama", pytest.param("doge", marks=ATTENDING_OTHERWISE)])
def test_targets_are_the_literal_ones_where_a_family_attends_otherwise_for_gradients(name, requests):
    lm = other_lm(name)
    check_parts(lm)
    found = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    for i, request in enumerate(requests):
        value, steps, _, _ = literal_targets(lm, request, CONTEXTS, 1, SETTINGS)
        assert found.steps[i] == steps
        torch.testing.assert_close(found.values[i], value, rtol=1e-3, atol=1e-3)


def test_targets_are_the_literal_ones_where_prompts_are_longer_than_a_sliding_window(tiny_lm, requests):
    lm = tiny_lm("mistral")
    lm.config.sliding_window = 10
    found = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    for i, request in enumerate(requests):
        value, *_ = literal_targets(lm, request, CONTEXTS, 1, SETTINGS)
        torch.testing.assert_close(found.values[i], value, rtol=1e-3, atol=1e-3)
