"""Updates that would break the model: caught before a weight, retried, skipped, or the end of the run."""

import math

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.guard import (
    Guard,
    GuardSettings,
    RefusedUpdateError,
)
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import FT, MEMIT, AlphaEdit, KnownProblem, Method

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")
WEIGHT = torch.eye(3)


class Broken(AlphaEdit):
    """Finds a wrong update in some batches, counted by the solves of one matrix."""

    def __init__(self, wrong, value):
        super().__init__(ridge=1.0, null_space_threshold=10.0)
        self.wrong, self.value, self.calls = wrong, value, 0

    def update(self, problem, state):
        self.calls += 1
        update = super().update(problem, state)
        return update * self.value if self.calls in self.wrong else update


@pytest.fixture
def edit(tiny_lm, tmp_path, requests, bare_trainer):
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")

    def edit(method, guard, layers=(1, 2), callbacks=()):
        editor = SequentialEditor(
            method,
            list(layers),
            name="tiny",
            targets=TargetSettings(steps=3, learning_rate=0.5, clamp=4.0, weight_decay=0.0),
            statistics=StatisticsSettings(str(tmp_path / "corpus.txt"), tokens=20, cache_dir=str(tmp_path)),
            evaluation=EvaluationSettings(perplexity_tokens=0, protocols=["teacher_forced"], cases=0, facts=0),
            guard=guard,
            contexts=1,
        )
        editor.lm = tiny_lm()
        bare_trainer(max_epochs=1, callbacks=list(callbacks)).fit(editor, EditLoader(requests, 1))
        return editor

    return edit


class Given(Method):
    """Returns what a function of the regulariser's strength says."""

    def __init__(self, solve):
        self.solve, self.strengths = solve, []

    def initial_state(self, weight, second_moment):
        return {}

    def update(self, problem, state):
        self.strengths.append(problem.strength)
        return self.solve(problem.strength)


def guarded(solve, settings):
    """The update of `w` that a guard finds, the strength that it took, and what the guard noted."""
    guard, method = Guard(settings), Given(solve)
    problem = KnownProblem(torch.eye(3), torch.eye(3), WEIGHT, "w")
    return guard.solve(method, problem, {}), problem.strength, guard.retried


def test_a_good_update_passes_untouched():
    update = torch.randn(3, 3)
    found, strength, retried = guarded(lambda s: update / s, GuardSettings())
    assert found.equal(update)
    assert (strength, retried) == (1.0, [])


@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "not finite"), (math.inf, "not finite"), (1e6, "times as large")]
)
def test_a_bad_update_is_retried_with_a_stronger_regulariser(value, words):
    found, strength, retried = guarded(lambda s: WEIGHT if s >= 100 else WEIGHT * value, GuardSettings())
    assert found.equal(WEIGHT)
    assert strength == 100
    assert words in retried[0]["reason"]


def test_a_singular_system_is_refused_like_any_other():
    def solve(strength):
        return torch.linalg.solve(torch.zeros(3, 3), WEIGHT)

    with pytest.raises(RefusedUpdateError, match="the update of w could not be solved for"):
        guarded(solve, GuardSettings())


@pytest.mark.parametrize("settings", [GuardSettings("skip"), GuardSettings("stop"), GuardSettings(retries=0)])
def test_without_retries_it_is_solved_once(settings):
    calls = []
    with pytest.raises(RefusedUpdateError):
        guarded(lambda s: calls.append(s) or WEIGHT * math.nan, settings)
    assert calls == [1.0]


@pytest.mark.parametrize("method", [AlphaEdit(ridge=2.0, null_space_threshold=100.0), MEMIT(2.0)])
def test_scaled_keys_and_residuals_are_a_stronger_regulariser(method):
    torch.manual_seed(0)
    keys, residuals = torch.randn(4, 6), torch.randn(4, 5)
    problem, moment = KnownProblem(keys, residuals), torch.eye(6) + 0.1
    problem.strength = 10.0
    state = method.initial_state(torch.zeros(5, 6), moment)
    found = method.update(problem, state)
    regulariser = 20 * (torch.eye(6) if isinstance(method, AlphaEdit) else moment)
    expected = torch.linalg.solve((keys.T @ keys + regulariser).double(), (keys.T @ residuals).double()).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_retried_batch_is_recorded_and_the_run_goes_on(edit, caplog):
    editor = edit(Broken({3}, math.nan), GuardSettings())  # the first matrix of the second batch
    assert editor.edits_seen == 4
    assert editor.guard.skipped == []
    (entry,) = editor.guard.retried
    assert entry == {"start": 1, "matrix": editor.sites[0].name, "reason": "is not finite", "strength": 10.0}
    assert "10 times as strong" in caplog.text
    assert all(torch.isfinite(weight).all() for weight in editor.weights)


def test_a_skipped_batch_leaves_weights_and_memory_as_they_were(edit, requests):
    import lightning as L

    class Watch(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            tensors = [*pl_module.weights, *(t for state in pl_module.states for t in state.values())]
            self.seen.append([t.detach().clone() for t in tensors])

    watch = Watch()
    editor = edit(Broken({4}, 1e9), GuardSettings("skip"), callbacks=[watch])  # the second matrix: the first had moved
    assert editor.edits_seen == 4
    (entry,) = editor.guard.skipped
    assert (entry["start"], entry["cases"], entry["matrix"]) == (1, ["1"], editor.sites[1].name)
    assert "times as large" in entry["reason"]
    first, second, third, _ = watch.seen
    assert all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(second[0], third[0])
    for site, weight in zip(editor.sites, editor.weights, strict=True):
        assert torch.equal(site.read(), weight)  # the language model went back as well


def test_the_run_stops_where_it_is_told_to(edit):
    with pytest.raises(UserError, match=r"After 1 edit .* is not finite .*larger ridge"):
        edit(Broken({3}, math.nan), GuardSettings("stop"))


def test_a_collapsed_model_is_not_edited_to_the_end(edit):
    with pytest.raises(UserError, match="2 batches in a row"):
        edit(Broken(range(100), math.nan), GuardSettings(max_skipped=2))


def test_methods_without_keys_are_guarded_too(edit):
    editor = edit(FT(learning_rate=1e6, epochs=3), GuardSettings(max_skipped=9), layers=[2])
    assert len(editor.guard.skipped) == 4
    assert editor.guard.retried == []


@pytest.mark.parametrize(
    "wrong", [{"action": "pray"}, {"max_norm_ratio": 0}, {"strengthen": 1}, {"retries": -1}, {"max_skipped": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        GuardSettings(**wrong)
