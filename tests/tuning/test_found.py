"""Settings found for a model that has none: tried out, kept, and the model left as it was."""

import json

import pytest
import torch

from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.prepared import StatePreparation
from sphere_pl.editing.problem import ModelBatch
from sphere_pl.editing.states import Offload
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.errors import UserError
from sphere_pl.methods import FT, MEMIT, AlphaEdit, UltraEdit
from sphere_pl.progress import untracked
from sphere_pl.tuning import found as module
from sphere_pl.tuning.found import AutoSettings, Found, find_settings, trial_facts
from sphere_pl.tuning.trial import Outcome


@pytest.fixture
def lm(tiny_lm):
    return tiny_lm("llama", tokenizer="byte_level")


@pytest.fixture
def find(lm, tmp_path):
    """Find settings with few tokens and steps."""
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea. " * 40)
    statistics = StatisticsSettings(corpus=str(tmp_path / "corpus.txt"), tokens=200, cache_dir=str(tmp_path / "cache"))

    def run(method=None, targets=TargetSettings(steps=2), **settings):
        auto = AutoSettings(**{"seconds": 1e-3, "facts": 2, "cache_dir": str(tmp_path / "cache"), **settings})
        return find_settings(lm, method or AlphaEdit(), targets, statistics, (0, 10), auto, untracked)

    run.statistics = statistics
    run.folder = tmp_path / "cache" / "settings"
    return run


def test_what_is_found_is_kept_and_the_model_is_as_it_was(lm, find, monkeypatch):
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    first = find()
    assert first.tried == 1  # the budget is over, but one candidate is always tried
    assert first.outcome is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())
    monkeypatch.setattr(module.Bench, "set_up", lambda *_: pytest.fail("tried again"))
    again = find()
    assert (again.layers, again.learning_rate) == (first.layers, first.learning_rate)
    assert "kept from an earlier run" in again.lines()


def test_another_model_of_the_same_name_has_settings_of_its_own(lm, find):
    find()
    with torch.no_grad():
        next(lm.model.parameters()).mul_(1.5)
    find()
    assert len(list(find.folder.iterdir())) == 2


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"layers": [1]}', '{"layers": [77], "learning_rate": 0.1, "outcome": %s}']
)
def test_kept_settings_that_cannot_be_used_are_said_and_found_again(find, content, caplog):
    find()
    (path,) = find.folder.iterdir()
    outcome = json.dumps(json.loads(path.read_text())["outcome"])
    path.write_text(content.replace("%s", outcome))
    assert find().tried == 1
    assert "found again" in caplog.text


def test_a_learning_rate_that_the_user_gives_stays(find):
    found = find(targets=TargetSettings(steps=2, learning_rate=0.3))
    assert found.learning_rate is None
    assert found.targets(TargetSettings(learning_rate=0.3)) == TargetSettings(learning_rate=0.3)


def test_targets_without_a_learning_rate_are_given_none(find):
    polyak = TargetSettings(steps=2, optimizer="polyak")
    found = find(targets=polyak)
    assert found.learning_rate is None
    assert found.targets(polyak) == polyak
    assert Found([1], 0.07).targets(polyak) == polyak


def test_methods_of_one_layer_and_without_targets_take_layers_by_depth(find):
    assert len(find(FT()).layers) == 1
    assert find(FT()).outcome is None
    assert "by its depth" in find(UltraEdit()).lines()


def test_candidates_are_tried_until_one_is_good(find, monkeypatch):
    outcomes = iter([Outcome(0.2, 0.1, 0.9, 1.0), Outcome(0.8, 0.1, 0.9, 1.0), Outcome(1.0, 0.6, 0.9, 1.0)])
    tried = []
    monkeypatch.setattr(module.Bench, "try_out", lambda _, *candidate: (tried.append(candidate), next(outcomes))[1])
    found = find(seconds=60)
    assert found.tried == len(tried) == 3
    assert found.outcome.efficacy == 1.0
    layers, targets, method = tried[-1]
    assert (found.layers, found.learning_rate) == (layers, targets.learning_rate)
    assert method.relative_ridge == found.method(AlphaEdit()).relative_ridge
    assert method.relative_ridge == pytest.approx(0.1 * found.regularizer, rel=0.01)


def test_a_regularizer_that_the_user_gives_stays_and_an_open_one_is_said(find, monkeypatch):
    outcomes = iter([Outcome(0.2, 0.1, 0.9, 1.0), Outcome(1.0, 0.6, 0.9, 1.0)] * 2)
    monkeypatch.setattr(module.Bench, "try_out", lambda *_: next(outcomes))
    found = find(MEMIT(), seconds=60)
    assert found.regularizer != 1
    assert found.method(MEMIT()).relative_weight == pytest.approx(found.regularizer)
    assert "the usual regularizer" in found.lines()
    fixed = find(MEMIT(relative_weight=2.0), seconds=60)
    assert fixed.regularizer == 1
    assert fixed.method(MEMIT(relative_weight=2.0)).relative_weight == 2.0
    assert fixed.weighed(MEMIT(relative_weight=2.0)) == {}


def test_another_regularizer_is_tried_with_the_same_targets(find, lm, monkeypatch):
    asked = []
    plain = module.Bench.try_out
    monkeypatch.setattr(module.Bench, "try_out", lambda *args: (plain(*args), Outcome(0.2, 0.1, 0.9, 1.0))[1])
    optimize = ModelBatch.optimize_targets
    monkeypatch.setattr(ModelBatch, "optimize_targets", lambda *args: (asked.append(1), optimize(*args))[1])
    found = find(seconds=1e6)
    assert found.tried - len(asked) == 2


def test_the_best_of_those_tried_is_taken_if_none_is_good(find, monkeypatch):
    outcomes = iter([Outcome(0.2, 0.1, 0.9, 1.0), Outcome(0.6, 0.3, 0.9, 1.0), *[Outcome(0.6, 0.3, 0.9, 4.0)] * 9])
    monkeypatch.setattr(module.Bench, "try_out", lambda *_: next(outcomes))
    assert find(seconds=60).outcome == Outcome(0.6, 0.3, 0.9, 1.0)


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}, {"facts": 0}])
def test_a_budget_of_nothing_is_refused(wrong):
    with pytest.raises(UserError, match="must be"):
        AutoSettings(**wrong)


def test_the_facts_of_a_trial_are_built_in_and_all_different():
    facts = trial_facts(10)
    assert len({fact.question for fact in facts}) == 10
    assert all(fact.paraphrases and fact.neighbors for fact in facts)


def test_the_run_takes_over_the_null_space_that_a_trial_has_found(find, lm, monkeypatch):
    found = find(seconds=1e6)
    method = found.method(AlphaEdit())
    sites = lm.sites(found.prepared.layers)
    weights = [site.read() for site in sites]
    preparation = StatePreparation(lm, sites, weights, method, find.statistics, Offload(None), untracked)
    plain, _ = preparation.find(keep=False)
    monkeypatch.setattr("sphere_pl.methods.alphaedit.null_space_of_share", lambda *_: pytest.fail("found again"))
    known, _ = preparation.find(found.prepared, keep=False)
    for one, other in zip(plain, known, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
