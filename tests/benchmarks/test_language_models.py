"""Costs on random weights in the shapes of a large model, made small."""

from dataclasses import replace

import pytest
import torch

from benchmarks import evaluation, language_models, moments, representations, targets, whole_run

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 14,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2000,
}  # fmt: skip
NAME = "llama3-8b"


@pytest.fixture(autouse=True)
def small(monkeypatch, tiny_lm):
    monkeypatch.setitem(language_models.SHAPES, NAME, SMALL)
    monkeypatch.setattr(whole_run, "SETTINGS", replace(whole_run.SETTINGS, steps=3))
    monkeypatch.setattr(language_models, "load_language_model", lambda dtype: tiny_lm("llama"))


def test_a_large_model_is_short_where_results_are_checked():
    whole, checked = (language_models.model_of(NAME, dtype) for dtype in ("bfloat16", "float32"))
    assert (whole.n_layers, checked.n_layers) == (14, language_models.BLOCKS)
    assert (whole.dtype, checked.dtype) == (torch.bfloat16, torch.float32)


def test_contexts_of_random_weights_are_pieces_of_text():
    first, *others = language_models.contexts_of(NAME, None, 5)
    assert first == ""
    assert len(set(others)) == 5
    assert all(context.endswith(". ") and "{" not in context for context in others)


@pytest.mark.parametrize(
    "measure",
    [
        lambda: targets.targets(batch=2, repeats=1, model=NAME),
        lambda: representations.keys_and_values(batch=5, repeats=1, model=NAME),
        lambda: moments.moments(tokens=64, repeats=1, model=NAME),
        lambda: evaluation.evaluation(records=3, repeats=1, model=NAME),
        lambda: whole_run.step(batch=2, repeats=1, model=NAME),
    ],
    ids=["z", "keys", "moments", "evaluation", "step"],
)
def test_a_cost_is_checked_and_measured_on_the_shapes_of_a_large_model(measure):
    found = measure()
    assert found.name.endswith(", llama3-8b shapes")
    assert found.seconds > 0


def test_editing_as_a_whole_equals_the_literal_pipeline_and_its_profile_names_operators():
    whole_run.whole_run(edits=2, batch=2, model=NAME)
    assert "aten::mm" in whole_run.profile_step(batch=2, model=NAME)
