"""Targets found with compiled blocks."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from sphere_pl.targets import TargetSettings, optimize_targets

CONTEXTS = ["", "You and I. "]
# PyTorch's compiler, once imported, finds fault with PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
SETTINGS = TargetSettings(steps=20, learning_rate=0.5, clamp=4.0, weight_decay=0.0, kl_weight=0.1, stop_loss=6.2)


@pytest.fixture(autouse=True)
def fresh():
    """No code compiled by an earlier test, in memory or on disk."""
    from torch._inductor.utils import fresh_cache  # slow to import, so only when these tests run

    torch.compiler.reset()
    counters.clear()
    with fresh_cache():
        yield
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_targets_are_the_same_and_nothing_is_compiled_anew_when_requests_leave(tiny_lm, requests):
    lm = tiny_lm()
    expected = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    assert len(set(expected.steps.tolist())) > 1  # requests leave at different steps
    found = optimize_targets(lm, requests, CONTEXTS, 1, replace(SETTINGS, compile=True))
    assert torch.equal(found.steps, expected.steps)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    optimize_targets(lm, requests[:3], CONTEXTS, 1, replace(SETTINGS, compile=True))
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_without_a_compiler_one_message_says_so_and_the_targets_are_found(tiny_lm, requests, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/g++",))
    lm = tiny_lm()
    expected = optimize_targets(lm, requests, CONTEXTS, 1, SETTINGS)
    with pytest.warns(UserWarning, match="targets.compile.*no effect.*C\\+\\+ compiler") as seen:
        found = optimize_targets(lm, requests, CONTEXTS, 1, replace(SETTINGS, compile=True))
    assert len(seen) == 1
    assert torch.equal(found.values, expected.values)


def test_a_model_with_attention_of_its_own_is_not_compiled(tiny_lm, requests):
    lm = tiny_lm("gptj")
    with pytest.warns(UserWarning, match="sdpa"):
        optimize_targets(lm, requests, CONTEXTS, 1, replace(SETTINGS, steps=2, compile=True))
    assert counters["stats"]["unique_graphs"] == 0
