"""lm-evaluation-harness on a model in memory, where it is installed."""

import importlib.util
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from sphere_pl.abilities.answering import choice_log_likelihoods
from sphere_pl.abilities.callback import GeneralAbilities
from sphere_pl.abilities.harness import evaluate, find_tasks
from sphere_pl.abilities.task import Item
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.errors import UserError

RECORDS = [
    {"question": "The capital of France is", "choices": ["Paris", "Berlin by the sea"], "label": 0},
    {"question": "Rome is a city in", "choices": ["Norway", "Italy"], "label": 1},
    {"question": "An apple is a fruit that is good to", "choices": ["run", "eat"], "label": 1},
]
TASK = """task: tiny_facts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def facts_task(tmp_path, monkeypatch):
    """A task of the harness in files of its own."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness, the extra lm-eval, is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    path = tmp_path / "tiny_facts.yaml"
    path.write_text(TASK.format(file=tmp_path / "facts.jsonl"))
    return str(path)


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"--abilities\.lm_eval_tasks=\['arc_easy'\] needs .*pip install 'sphere-pl\[lm-eval\]'"
    with pytest.raises(UserError, match=message):
        find_tasks(["arc_easy"])


def test_data_that_cannot_be_had_is_a_message_before_any_model_is_loaded(monkeypatch):
    class Manager:
        all_tasks = ("ifeval",)

        def __init__(self, include_defaults):
            assert include_defaults

        def load(self, names):
            raise ConnectionError(f"Couldn't reach 'google/IFEval' on the Hub\n(asked for {names})")

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "lm_eval" or real(name, *more))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=Manager))
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace())
    with pytest.raises(UserError, match=r"lm_eval_tasks=\['ifeval'\].*'google/IFEval' on the Hub\. .*HF_HOME"):
        find_tasks(["ifeval"])


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_refused(facts_task):
    with pytest.raises(UserError, match="no_such_task is neither a task"):
        find_tasks([facts_task, "no_such_task"])


@pytest.mark.filterwarnings("ignore")
def test_a_task_is_scored_as_by_our_own_likelihoods(facts_task, tiny_lm):
    lm = tiny_lm()
    (name, score), *more = evaluate(lm, [facts_task], find_tasks([facts_task]), limit=None).items()
    items = [Item(r["question"], r["label"], tuple(r["choices"])) for r in RECORDS]
    found = [each.index(max(each)) for each in choice_log_likelihoods(lm, items)]
    expected = sum(best == item.label for best, item in zip(found, items, strict=True)) / 3
    assert (name, more) == ("lm_eval_tiny_facts", [])
    assert score.metric == "acc"
    assert score.value == pytest.approx(expected)
    assert score.items == 3
    assert not math.isnan(score.standard_error)


@pytest.mark.filterwarnings("ignore")
def test_the_edited_model_is_scored_and_stays_as_it_is(facts_task, editor, requests, bare_trainer, logged):
    weights = []
    for callbacks in ([], [GeneralAbilities(lm_eval_tasks=[facts_task])]):
        built = editor()
        bare_trainer(max_epochs=1, callbacks=callbacks, logger=logged).fit(built, EditLoader(requests, 2))
        weights.append([weight.detach() for weight in built.weights])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert [edits for edits, _ in logged.series("abilities/lm_eval_tiny_facts")] == [0, 4]
    assert callbacks[0].summary()["lm_eval_tiny_facts"]["items"] == 3
