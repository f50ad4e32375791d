"""What a checkpoint holds puts a run back to where it was; nothing else of it changes."""

import pytest
import torch

from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.states import MethodStates
from sphere_pl.errors import UserError
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.evaluation.scored import Scored
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.history.continuation import Earlier
from sphere_pl.history.run_state import RunState, taken_from
from sphere_pl.methods import MEMIT


@pytest.fixture
def state():
    matrices, method = {"a": torch.zeros(2, 3), "b": torch.ones(2, 3)}, MEMIT(5.0, remember_past=True)
    memories = [{**dict.fromkeys(method.saved, torch.zeros(1)), "fixed": torch.ones(1)} for _ in matrices]
    states = MethodStates(memories, list(matrices.values()))
    scores = RunScores(Evaluator(EvaluationSettings(perplexity_tokens=0)))
    return RunState(matrices, method, states, Guard(GuardSettings()), scores)


def edit(state):
    """Change all that a run changes."""
    for layer, matrix in enumerate(state.matrices.values()):
        matrix.add_(1)
        state.states.update(layer, lambda old: {**old, **{name: old[name] + 1 for name in state.method.saved}})
    state.guard.skipped.append({"start": len(state.guard.skipped)})
    state.scores.after = {"efficacy": Scored(state.scores.after.get("efficacy", Scored(0.0)).value + 1)}
    return torch.rand(2).tolist()


def copied(state, requests, **settled):
    """A checkpoint as it comes from a file."""
    saved = state.saved({"model_hash": "model", **settled}, requests)
    skipped = list(saved["sphere_pl"]["guard"]["skipped"])
    saved["sphere_pl"]["guard"] = {**saved["sphere_pl"]["guard"], "skipped": skipped}
    return {**saved, "state_dict": {name: matrix.clone() for name, matrix in saved["state_dict"].items()}, "epoch": 0}


def test_a_restored_run_goes_on_as_it_would_have(state, requests):
    edit(state)
    checkpoint = copied(state, requests)
    drawn = edit(state)
    after = {name: matrix.clone() for name, matrix in state.matrices.items()}
    memory = state.states.saved(state.method.saved)
    state.restore(taken_from(checkpoint, "model", "tiny"))
    assert state.matrices["a"].tolist() == [[1] * 3] * 2
    assert state.states[1]["fixed"].tolist() == [1]
    assert state.guard.skipped == [{"start": 0}]
    assert state.scores.after == {"efficacy": Scored(1.0)}
    assert edit(state) == drawn
    assert all(torch.equal(matrix, after[name]) for name, matrix in state.matrices.items())
    assert state.states.saved(state.method.saved) == memory


def test_a_checkpoint_holds_what_was_settled_and_which_requests_it_is_of(state, requests):
    saved = state.saved({"max_tokens": 7}, requests)
    assert saved["state_dict"] is state.matrices
    assert saved["sphere_pl"]["max_tokens"] == 7
    assert saved["sphere_pl"]["requests"].shape == (len(requests),)


def test_matrices_that_are_taken_out_are_no_state_dict_for_lightning(state, requests):
    checkpoint = copied(state, requests)
    kept = taken_from(checkpoint, "model", "tiny")
    assert kept["weights"].keys() == state.matrices.keys()
    assert checkpoint["state_dict"] == {}
    assert checkpoint["epoch"] == 0


def test_a_checkpoint_of_something_else_is_refused(state, requests):
    with pytest.raises(UserError, match="not written by an editing run"):
        taken_from({"state_dict": {}}, "model", "tiny")
    with pytest.raises(UserError, match="another model"):
        taken_from(copied(state, requests), "another", "tiny")


def test_an_earlier_runs_weights_memory_and_random_states_are_taken_over(state, requests):
    left = copied(state, requests)["sphere_pl"]
    drawn = edit(state)
    kept = {"random": left["random"], "memory": {"method": state.method.name, "states": left["states"]}}
    weights = {name: torch.full((2, 3), 7.0) for name in state.matrices}
    state.take_over(Earlier("before", requests, weights=weights, kept=kept))
    assert all(matrix.eq(7).all() for matrix in state.matrices.values())
    assert all(state.states[0][name].eq(0).all() for name in state.method.saved)
    assert torch.rand(2).tolist() == drawn


def test_an_earlier_run_without_random_states_leaves_the_generators_alone(state, requests):
    torch.manual_seed(3)
    drawn = torch.rand(1).tolist()
    torch.manual_seed(3)
    memory = {"method": state.method.name, "states": state.states.saved(state.method.saved)}
    state.take_over(Earlier("before", requests, kept={"memory": memory}))
    assert torch.rand(1).tolist() == drawn
    assert state.matrices["b"].eq(1).all()
