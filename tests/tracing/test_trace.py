"""Batched causal tracing against the literal procedure: one restoration at a time, full forwards, hooks."""

import itertools
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import tokenize
from sphere_pl.tracing.facts import true_answer
from sphere_pl.tracing.functional import KINDS, subject_noise
from sphere_pl.tracing.trace import TraceSettings, check_traceable, trace_fact
from tests.others import other_lm

SETTINGS = TraceSettings(samples=2, window=3, noise=3.0)
FACT = EditRequest("2", "The mother tongue of {} is", "Anna Karlsson", "x", "Swedish")
# Of the families that keep other names than most.
MODULES = {
    "gpt2": ("mlp", "attn"),
    "gpt_neox": ("mlp", "attention"),
    "gptj": ("mlp", "attn"),
    "falcon": ("mlp", "self_attention"),
    "opt": ("fc2", "self_attn"),
    "llama4_text": ("feed_forward", "self_attn"),
}


@contextmanager
def hooked(module, change):
    """Pass the tensor that a module returns, alone or first in a tuple, through `change`."""

    def hook(_, __, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


def of_the_row(output):
    """The tokens of the only row, where a module hands rows and columns on as one as well."""
    return output if output.ndim == 2 else output[0]


def put(column, value):
    """Replace one column of a module's output."""

    def change(output):
        output = output.clone()
        of_the_row(output)[column] = value
        return output

    return change


def corrupt(tokens, noise):
    """Add noise to the subject's columns."""

    def change(output):
        output = output.clone()
        output[0, tokens.subject_first : tokens.subject_last + 1] += noise
        return output

    return change


def probability(lm, tokens, *hooks):
    """Probability of the answer in one forward of one row, with modules' outputs changed."""
    with ExitStack() as stack, torch.no_grad():
        for module, change in hooks:
            stack.enter_context(hooked(module, change))
        logits = lm.model(input_ids=torch.tensor([tokens.ids[:-1]])).logits[0]
    logp = torch.log_softmax(logits.float(), -1)
    places = range(tokens.target_start - 1, len(tokens.ids) - 1)
    return float(sum(logp[place, label] for place, label in zip(places, tokens.target, strict=True)).exp())


def literal_effects(lm, family, fact, noise, window):
    """Clean and corrupted probability and the effect of every restoration, each by a full forward of one row."""
    (tokens,) = tokenize(lm.tokenizer, [true_answer(fact)])
    layers, columns = range(lm.n_layers), range(tokens.subject_first, tokens.target_start)
    blocks = [lm.block(layer) for layer in layers]
    modules = {"state": blocks}
    for kind, path in zip(("mlp", "attention"), MODULES.get(family, ("mlp", "self_attn")), strict=True):
        modules[kind] = [block.get_submodule(path) for block in blocks]
    clean = {}

    def keep(module):
        return module, lambda output: clean.__setitem__(module, of_the_row(output).clone()) or output

    p_clean = probability(lm, tokens, *(keep(module) for each in modules.values() for module in each))
    embedding = lm.model.get_input_embeddings()
    corrupted = [(embedding, corrupt(tokens, sample)) for sample in noise]
    p_corrupted = sum(probability(lm, tokens, each) for each in corrupted) / len(noise)
    effects = torch.zeros(len(KINDS), len(columns), lm.n_layers)
    for k, t, layer in itertools.product(range(len(KINDS)), range(len(columns)), layers):
        reach = range(max(0, layer - window // 2), min(lm.n_layers, layer - (-window // 2)))
        restored = [modules[KINDS[k]][each] for each in ([layer] if KINDS[k] == "state" else reach)]
        puts = [(module, put(columns[t], clean[module][columns[t]])) for module in restored]
        found = [probability(lm, tokens, each, *puts) for each in corrupted]
        effects[k, t, layer] = sum(found) / len(found) - p_corrupted
    return p_clean, p_corrupted, effects


def same_noise(lm, fact):
    """The noise that `traced` draws, for two samples."""
    (tokens,) = tokenize(lm.tokenizer, [true_answer(fact)])
    subject = tokens.subject_last + 1 - tokens.subject_first
    return subject_noise(2, subject, lm.config.hidden_size, 3 * 0.3, torch.Generator().manual_seed(0))


def traced(lm, fact, settings, deviation=0.3, seed=0):
    return trace_fact(lm, true_answer(fact), settings, deviation, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bos", [False, True])
def test_tracing_is_the_literal_procedure_in_every_family(tiny_lm, family, bos):
    lm = tiny_lm(family, bos=bos)
    if lm.recurrent:
        with pytest.raises(UserError, match="keep a state in the place of keys and values"):
            check_traceable(lm)
        return
    check_traceable(lm)
    found = traced(lm, FACT, SETTINGS)
    clean, corrupted, effects = literal_effects(lm, family, FACT, same_noise(lm, FACT), window=3)
    assert "".join(found.tokens).strip() == "Anna Karlsson is"
    assert found.clean == pytest.approx(clean, rel=1e-3)
    assert found.corrupted == pytest.approx(corrupted, rel=1e-3)
    scale = float(effects.abs().max())
    assert scale > 1e-2 * clean  # something is restored at all
    torch.testing.assert_close(found.effects, effects, rtol=0, atol=2e-3 * scale)


@pytest.mark.parametrize("name", ["opt", "llama4_text"])
def test_tracing_is_the_literal_procedure_where_an_mlp_hands_rows_and_columns_on_as_one(name):
    lm = other_lm(name)
    _, _, effects = literal_effects(lm, name, FACT, same_noise(lm, FACT), window=3)
    scale = float(effects.abs().max())
    torch.testing.assert_close(traced(lm, FACT, SETTINGS).effects, effects, rtol=0, atol=2e-3 * scale)


@pytest.mark.parametrize(
    "fact",
    [
        EditRequest("0", "{} is a city in", "Rome", "x", "Italy"),  # nothing stands before the subject
        EditRequest("1", "The river runs to the {}", "sea", "x", ". An apple"),  # nothing behind it; several tokens
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_subjects_at_the_ends_of_a_prompt_are_traced(tiny_lm, fact, model_type):
    lm = tiny_lm(model_type)
    found = traced(lm, fact, SETTINGS)
    _, _, effects = literal_effects(lm, model_type, fact, same_noise(lm, fact), window=3)
    torch.testing.assert_close(found.effects, effects, rtol=0, atol=2e-3 * float(effects.abs().max()))


def test_restoring_the_last_tokens_last_state_restores_the_answer(tiny_lm):
    found = traced(tiny_lm(), FACT._replace(target_true="is"), SETTINGS)  # one token
    whole = found.clean - found.corrupted
    assert float(found.effects[0, -1, -1]) == pytest.approx(whole, rel=1e-3)
    assert found.effects[0, :-1, -1].abs().max() < 1e-3 * abs(whole)  # nobody reads the others after the last block


def test_without_noise_there_is_nothing_to_restore(tiny_lm):
    found = traced(tiny_lm(), FACT, SETTINGS, deviation=0.0)
    assert found.corrupted == pytest.approx(found.clean, rel=1e-5)
    assert found.effects.abs().max() < 1e-5


def test_smaller_passes_give_the_same_effects(tiny_lm):
    lm = tiny_lm()
    whole = traced(lm, FACT, SETTINGS)
    small = traced(lm, FACT, replace(SETTINGS, max_tokens=7))
    torch.testing.assert_close(whole.effects, small.effects, rtol=1e-4, atol=1e-8)


def test_one_seed_gives_one_trace_and_another_seed_another(tiny_lm):
    lm = tiny_lm()
    first, again, other = (traced(lm, FACT, SETTINGS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.effects, again.effects)
    assert not torch.equal(first.effects, other.effects)


def test_tracing_leaves_the_model_without_hooks(tiny_lm):
    lm = tiny_lm()
    traced(lm, FACT, SETTINGS)
    assert not any(module._forward_hooks for module in lm.modules())
    assert all("forward" not in vars(lm.block(layer)) for layer in range(lm.n_layers))


@pytest.mark.parametrize("wrong", [{"facts": 0}, {"samples": 0}, {"noise": 0.0}, {"window": 0}, {"max_tokens": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"--trace.{next(iter(wrong))}=0"):
        TraceSettings(**wrong)
