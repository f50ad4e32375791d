"""What runs on one model find out once."""

from types import SimpleNamespace

import torch

from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.prepared import Prepared, states_rest_on
from sphere_pl.methods import AlphaEdit


def prepared(prepare, rests_on, known):
    return known.states(rests_on, {"memory"}, prepare, lambda states: states)[0]


def test_states_are_prepared_once_and_what_changes_is_not_shared():
    known, calls = Prepared(), []

    def prepare():
        calls.append(1)
        return [{"basis": torch.eye(2), "memory": torch.zeros(2)}], {}

    first = prepared(prepare, ["model"], known)
    first[0]["memory"].add_(1)
    second = prepared(prepare, ["model"], known)
    second[0]["memory"].add_(1)
    third = prepared(prepare, ["model"], known)
    assert len(calls) == 1
    assert third[0]["basis"] is first[0]["basis"]
    assert third[0]["memory"].tolist() == [0, 0]
    prepared(prepare, ["another"], known)
    assert len(calls) == 2


def test_contexts_are_sampled_again_for_another_seed():
    known, seeds = Prepared(), []
    for seed in (0, 0, 1):
        known.contexts([seed], lambda seed=seed: seeds.append(seed) or [""])
    assert seeds == [0, 1]


def test_states_rest_on_the_methods_arguments_and_what_cannot_be_compared_is_like_nothing_else():
    def rests_on(method, model="model", **settings):
        return states_rest_on(model, method, StatisticsSettings(**settings), sites)

    sites = [SimpleNamespace(name="matrix", stored=torch.zeros(1))]
    first = rests_on(AlphaEdit(ridge=2.0))
    assert first == rests_on(AlphaEdit(ridge=2.0))
    for other in (
        rests_on(AlphaEdit(ridge=3.0)), rests_on(AlphaEdit(ridge=2.0), "another"),
        rests_on(AlphaEdit(ridge=2.0), tokens=9),
    ):  # fmt: skip
        assert first != other
    odd = AlphaEdit()
    odd.mask = torch.ones(2)
    assert rests_on(odd) != rests_on(odd)


def test_directions_are_found_for_requests_that_are_not_known_and_forgotten_with_them(requests):
    prepared, asked = Prepared(), []

    def find(some):
        asked.append([each.case_id for each in some])
        return torch.tensor([[float(len(each.question))] for each in some])

    first, second, third = requests[:3]
    assert prepared.directions(["model"], [first, second], find).shape == (2, 1)
    found = prepared.directions(["model"], [first, second, third], find)
    assert found.flatten().tolist() == [len(each.question) for each in (first, second, third)]
    assert asked == [[first.case_id, second.case_id], [third.case_id]]
    prepared.directions(["model"], [second], find)
    prepared.directions(["model"], [first, second], find)
    prepared.directions(["another"], [second], find)
    assert asked[2:] == [[first.case_id], [second.case_id]]
