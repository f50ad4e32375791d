"""What is settled before the first batch is found once by all runs that share what they find."""

import re

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing import preparation as module
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.preparation import Preparation
from sphere_pl.editing.prepared import Prepared
from sphere_pl.editing.states import Offload
from sphere_pl.errors import UserError
from sphere_pl.methods import AlphaEdit, UltraEdit
from sphere_pl.progress import untracked

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")


@pytest.fixture
def prepare(tiny_lm):
    lm = tiny_lm("llama")

    def prepare(method=None, prepared=None, model_hash="model"):
        method = method or AlphaEdit(ridge=1.0, null_space_threshold=10.0)
        return Preparation(lm, lm.sites([1, 2]), method, 2, 4, 64, Offload(None), model_hash, prepared)

    return prepare


@pytest.fixture
def sampled(monkeypatch):
    """How often contexts are sampled."""
    found = []
    monkeypatch.setattr(module, "sample_contexts", lambda *_, count, **__: found.append(count) or ["", *"ab"[:count]])
    return found


def test_contexts_are_sampled_once_on_one_model_by_runs_that_share_them(prepare, sampled):
    shared = Prepared()
    assert [prepare(prepared=shared).sample_contexts() for _ in range(2)] == [["", "a", "b"]] * 2
    prepare(prepared=shared, model_hash="another").sample_contexts()
    assert sampled == [2, 2]
    for _ in range(2):
        prepare().sample_contexts()
    assert sampled == [2, 2, 2, 2]


def test_a_method_without_targets_has_the_plain_prompt_alone(prepare, sampled):
    assert prepare(UltraEdit(learning_rate=0.003)).sample_contexts() == [""]
    assert sampled == [0]


def test_keys_are_looked_at_once_by_runs_that_share_them(prepare, requests, monkeypatch):
    asked, look, shared = [], module.look_at_keys, Prepared()
    monkeypatch.setattr(module, "look_at_keys", lambda *args: asked.append(args[-1]) or look(*args))
    loader = EditLoader(requests, 2)
    plans = [prepare(prepared=each).look_at_keys(loader, requests, [""], 64, 0.999) for each in (None, shared, shared)]
    assert plans[0] == plans[1] == plans[2]
    assert asked[0] is None
    find = pytest.fail  # all of them are known by now
    assert asked[1](requests, find).shape == asked[2](requests, find).shape


@pytest.mark.parametrize("method", [None, UltraEdit(learning_rate=0.003)])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"paraphrases": ("The river runs to the sea. " * 40,)}, "a paraphrase, neighbour or other probe, .*has"),
        ({"prompt": "The river runs to the sea. " * 40 + "{} is"}, "prompt, target and a context template have"),
        ({"target_new": "<|end|>"}, "the target '<|end|>' is nothing but special tokens"),
    ],
)
def test_a_request_that_cannot_be_asked_or_written_is_refused_before_the_first_batch(
    prepare, requests, method, change, words
):
    requests[2] = requests[2]._replace(source="facts.json, line 3", **change)
    with pytest.raises(UserError, match=rf"facts.json, line 3: {re.escape(words) if '<' in words else words}"):
        prepare(method).look_at_keys(EditLoader(requests, 2), requests, [""], 64, 0.999)


def test_states_that_editing_cannot_rest_on_are_found_and_said(prepare, tmp_path, caplog):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")
    statistics = StatisticsSettings(corpus=str(corpus), tokens=20, cache_dir=str(tmp_path / "cache"))
    preparation = prepare()
    weights = [site.read() for site in preparation.sites]
    states, diagnosis = preparation.find_states(weights, statistics, None, untracked)
    assert list(diagnosis) == [site.name for site in preparation.sites]
    assert all(torch.is_tensor(state["basis"]) for state in states)
    assert "fewer tokens than keys have dimensions" in caplog.text


def test_a_first_batch_is_phrased_in_every_form(prepare, requests):
    loader = EditLoader(requests, 3)
    assert prepare().first_phrasings(loader) == loader.requests[:3]
