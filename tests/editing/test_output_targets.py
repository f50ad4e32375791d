"""Targets in front of an output norm: against the literal procedure, one request at a time with full forwards."""

from dataclasses import replace

import pytest
import torch

from sphere_pl.editing.output_targets import optimize_outputs
from sphere_pl.editing.representations import SubjectStream, capture_output
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.model.batching import pad
from sphere_pl.model.tokens import in_context, kl_prompt, tokenize

CONTEXTS = ["", "You and I. ", "Therefore a pianist. "]
SETTINGS = TargetSettings(steps=6, learning_rate=0.3, clamp=2.0, weight_decay=0.5, kl_weight=0.5, stop_loss=1.0)
NORMED = ["gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4", "glm4"]


def literal_outputs(lm, request, sites, settings):
    """Shifts of the matrices' outputs, by Adam: the last block's state, each matrix's output, and the loss."""
    prompts = [in_context(request, context, request.target_new) for context in CONTEXTS] + [kl_prompt(request)]
    tokens = tokenize(lm.tokenizer, prompts)
    ids, mask = pad([t.ids[:-1] if t.target else t.ids for t in tokens], lm.pad_id, lm.device)
    rows, subject = torch.arange(len(tokens)), torch.tensor([t.subject_last for t in tokens])
    shift = torch.zeros(len(sites), lm.config.hidden_size, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=settings.learning_rate)
    scales, outputs, state, reference = {}, {}, {}, None

    def add_shift(place):
        def hook(_, __, output):
            scales.setdefault(place, output[0, subject[0]].detach().square().mean().sqrt())
            output = output.clone()
            output[rows, subject] = output[rows, subject] + shift[place] * scales[place]
            outputs[place] = output[0, subject[0]].detach()
            return output

        return hook

    def keep_state(_, __, output):
        state["z"] = (output[0] if isinstance(output, tuple) else output)[0, subject[0]].detach()

    handles = [site.module.register_forward_hook(add_shift(place)) for place, site in enumerate(sites)]
    handles.append(lm.block(sites[-1].layer).register_forward_hook(keep_state))
    width = (len(sites) * lm.config.hidden_size) ** 0.5  # the norm of outputs in units of their rms
    for step in range(settings.steps):
        logp = torch.log_softmax(lm.model(input_ids=ids, attention_mask=mask).logits.float(), -1)
        nll = torch.stack(
            [
                -sum(logp[row, t.target_start - 1 + k, label] for k, label in enumerate(t.target)) / len(t.target)
                for row, t in enumerate(tokens[:-1])
            ]
        ).mean()
        current = logp[-1, subject[-1]]
        reference = current.detach() if reference is None else reference
        divergence = (current.exp() * (current - reference)).sum()
        loss = nll + settings.kl_weight * divergence + settings.weight_decay * shift.norm() / width**2
        if loss < settings.stop_loss or step == settings.steps - 1:
            break
        shift.grad = torch.autograd.grad(loss, shift)[0]
        optimizer.step()
        with torch.no_grad():
            shift.mul_((settings.clamp * width / shift.norm()).clamp_max(1.0))
    for handle in handles:
        handle.remove()
    return state["z"], torch.stack([outputs[place] for place in range(len(sites))]), loss.detach(), step


@pytest.mark.parametrize("family", NORMED)
def test_batched_outputs_are_the_literal_ones(tiny_lm, requests, family):
    lm = tiny_lm(family)
    sites = lm.sites([1, 2])
    found = optimize_outputs(lm, requests, CONTEXTS, sites, SETTINGS)
    for place, request in enumerate(requests):
        values, outputs, loss, steps = literal_outputs(lm, request, sites, SETTINGS)
        assert found.steps[place] == steps
        torch.testing.assert_close(found.values[place], values, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(found.outputs[place], outputs, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(found.loss[place], loss, rtol=1e-3, atol=1e-3)


def test_a_batch_in_small_passes_gives_the_same_outputs(tiny_lm, requests):
    lm = tiny_lm("gemma3_text")
    sites = lm.sites([1, 2])
    whole = optimize_outputs(lm, requests, CONTEXTS, sites, SETTINGS)
    small = optimize_outputs(lm, requests, CONTEXTS, sites, replace(SETTINGS, max_tokens=6))
    torch.testing.assert_close(small.outputs, whole.outputs, rtol=1e-3, atol=1e-3)


def test_without_a_step_the_outputs_are_the_models_own(tiny_lm, requests):
    lm = tiny_lm("olmo2")
    sites = lm.sites([0, 3])
    found = optimize_outputs(lm, requests, CONTEXTS, sites, TargetSettings(steps=1))
    for place, site in enumerate(sites):
        state, output = SubjectStream(lm, requests, [""], 0).outputs(site)
        torch.testing.assert_close(found.outputs[:, place], output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values, state, rtol=1e-4, atol=1e-4)


def test_outputs_are_copies_where_a_block_adds_to_them_in_place(tiny_lm):
    lm = tiny_lm("falcon")
    ids = torch.tensor([[5, 6, 7]])
    calls = lm.block_calls(ids, torch.ones_like(ids), torch.arange(3)[None])
    (site,) = lm.sites([0])
    with torch.no_grad(), capture_output(site.module) as seen:
        lm.run(calls.hidden, calls, 0, 1)
        keys = torch.linalg.lstsq(site.read(), seen[0][0].T)  # the output lies in what the matrix can write
    torch.testing.assert_close(site.read() @ keys.solution, seen[0][0].T, rtol=1e-3, atol=1e-3)
