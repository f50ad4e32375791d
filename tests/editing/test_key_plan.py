"""Requests that share a key, across and within batches; sinks at the first position; the last block."""

from functools import partial

import pytest
import torch

from sphere_pl.data.request import EditBatch, EditRequest, Form
from sphere_pl.editing.algorithm import make_room
from sphere_pl.editing.asked import Joint, ask_once
from sphere_pl.editing.distributed import Shares
from sphere_pl.editing.key_plan import (
    KeyPlan,
    at_sinks,
    check_last_block,
    look_at_keys,
    report_keys,
    sink_directions,
)
from sphere_pl.editing.problem import ModelBatch, Posing
from sphere_pl.editing.states import MethodStates
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.errors import UserError
from sphere_pl.evaluation.outcomes import Cause, known_causes
from sphere_pl.methods import MEMIT, AlphaEdit
from sphere_pl.model.tokens import in_context, tokenize
from tests.others import flatten_tokens

CURIE = [
    EditRequest("0", "{} was born in the city of", "Marie Curie", "Oslo"),
    EditRequest("1", "{} worked as a", "Marie Curie", "pianist"),
    EditRequest("2", "The capital of {} is", "France", "Rome"),
    EditRequest("3", "{} lived by the", "Marie Curie", "sea"),
]
CONTEXTS = ["", "You and I. "]
SETTINGS = TargetSettings(steps=30, learning_rate=0.5, clamp=8.0, weight_decay=0.0, kl_weight=0.0, stop_loss=1.0)


def plan_of(lm, requests, batch_size, **changes):
    plan = look_at_keys(lm, requests, lm.sites([1]), 4096, 0.999)
    return plan._replace(batch_size=batch_size, **changes)


def problem_of(lm, plan, requests, start=0):
    sites = lm.sites([1])
    posing = Posing(MEMIT(), sites, CONTEXTS, 4096, Shares(), plan.ask)
    weights = [site.read() for site in sites]
    return ModelBatch(lm, weights, EditBatch(tuple(requests), start), posing, lambda b: b.optimize_targets(SETTINGS))


def test_facts_of_one_subject_share_key_and_residual_and_others_do_not(tiny_lm):
    lm = tiny_lm()
    plan = plan_of(lm, CURIE, 4)
    assert plan.alike == ((), (0,), (), (0, 1))
    problem = problem_of(lm, plan, CURIE)
    layer = problem.at(0)
    for rows in (layer.keys, layer.residuals):
        assert torch.equal(rows[0], rows[1])
        assert torch.equal(rows[0], rows[3])
        assert not torch.allclose(rows[0], rows[2], rtol=1e-2)
    assert problem.targets.probability.unique().numel() == 4  # each request's own


def test_one_shift_for_several_facts_makes_each_of_them_likelier(tiny_lm):
    lm = tiny_lm()
    some = CURIE[:2]
    joint = Joint(torch.tensor([0, 1]), torch.tensor([0, 0]))
    found = optimize_targets(lm, some, CONTEXTS, 1, SETTINGS, joint)
    before = optimize_targets(lm, some, CONTEXTS, 1, TargetSettings(steps=1)).probability
    assert torch.equal(found.values[0], found.values[1])
    assert (found.probability > 1.2 * before).all()


def test_requests_of_their_own_keys_are_posed_to_the_bit_as_without_a_plan(requests):
    plan = KeyPlan(tuple(requests), ((),) * len(requests), len(requests))
    batch = EditBatch(tuple(requests))
    assert plan.ask(batch) == ask_once(batch)


def test_a_later_batch_takes_the_earlier_facts_of_its_key_into_its_target(tiny_lm, caplog):
    lm = tiny_lm()
    plan = plan_of(lm, CURIE, 2)
    asked = plan.ask(EditBatch(tuple(CURIE[2:]), 2))
    assert {each.case_id for each in asked.every_phrasing} == {"0", "1", "2", "3"}
    assert [each.case_id for each in asked.of_the_batch] == ["2", "3"]
    assert plan.overwritten(3) == [0, 1]
    assert plan.sharing(0) == [1]
    assert len(problem_of(lm, plan, CURIE[2:], 2).at(0).keys) == 2
    report_keys(plan)
    assert "overwrites edit 2" in caplog.text
    assert "its target serves both" in caplog.text


def test_an_earlier_fact_that_is_contradicted_is_named_and_no_longer_served(tiny_lm, caplog):
    requests = [CURIE[0], CURIE[0]._replace(case_id="9", target_new="Rome")]
    plan = plan_of(tiny_lm(), requests, 1)
    assert [each.target_new for each in plan.ask(EditBatch((requests[1],), 1)).every_phrasing] == ["Rome"]
    report_keys(plan)
    assert "they contradict each other" in caplog.text
    both = plan._replace(batch_size=2).ask(EditBatch(tuple(requests)))
    assert [each.target_new for each in both.every_phrasing] == ["Rome", "Rome"]


def test_a_fact_whose_key_an_earlier_batch_has_taken_gets_all_of_its_residual(tiny_lm):
    lm = tiny_lm()
    method = AlphaEdit(ridge=1e-3, null_space_threshold=1e9)
    reached = {}
    for room in (True, False):
        weights = [site.read().requires_grad_(False) for site in lm.sites([1])]
        moment = torch.eye(weights[0].shape[1])
        states = MethodStates([method.initial_state(weights[0], moment)], weights)
        plan = plan_of(lm, CURIE, 1)
        for start in (0, 1):
            problem = problem_of(lm, plan, CURIE[start : start + 1], start).at(0)
            with states.lent(0) as state:
                problem.row_weights = make_room(method, problem, state) if room else None
                update = method.update(problem, state)
            problem.row_weights = None
            states.update(0, partial(method.remember, problem))
        reached[room] = float((problem.keys @ update.T - problem.residuals).norm() / problem.residuals.norm())
    assert reached[True] < 0.05
    assert reached[False] > 0.4


def test_a_contradicted_fact_is_in_the_way_though_it_is_asked_no_more(tiny_lm):
    requests = [CURIE[0], CURIE[0]._replace(case_id="9", target_new="Rome")]
    plan = plan_of(tiny_lm(), requests, 1)
    keys, way = plan.ask(EditBatch((requests[1],), 1)).taken(torch.arange(3.0)[None])
    assert keys.tolist() == [[0.0, 1.0, 2.0]]
    assert way.tolist() == [[True]]
    assert plan.ask(EditBatch((requests[0],), 0)).taken(torch.arange(3.0)[None]) is None


def test_all_wordings_and_forms_share_one_target(tiny_lm):
    lm = tiny_lm()
    request = CURIE[2]._replace(wordings=("In {} the capital is",))
    plan = plan_of(lm, [request, CURIE[0]], 2, forms=(Form(), Form("You and I. ", " is it? ")))
    asked = plan.ask(EditBatch((request, CURIE[0])))
    assert [len(each) for each in asked.phrasings] == [4, 2]
    problem = problem_of(lm, plan, [request, CURIE[0]])
    assert problem.at(0).keys.shape[0] == problem.targets.values.shape[0] == 2


@pytest.mark.parametrize("forms", [(Form("<ask>", "<say>"),), (Form(), Form("<ask>", "<say>"))])
def test_a_question_typed_in_a_template_is_not_put_into_another_one(tiny_lm, forms):
    typed = CURIE[0]._replace(prompt="<|user|>Where was {} born?<|end|>")
    plan = plan_of(tiny_lm(), [typed, CURIE[0]], 2, forms=forms)
    assert [each.form for each in plan.phrasings(0)] == [Form()]
    assert [each.form for each in plan.phrasings(1)] == list(forms)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_whole_shifts(tiny_lm, processes):
    asked = plan_of(tiny_lm(), CURIE, 4).ask(EditBatch(tuple(CURIE)))
    parts = [asked.share(Shares(rank, processes)) for rank in range(processes)]
    assert [each.case_id for part in parts[:2] for each in part.every_phrasing] == ["0", "1", "3", "2"]
    assert all(part.shift[0] == 0 for part in parts)


@pytest.mark.parametrize("flat", [False, True])
def test_a_first_position_where_every_token_has_one_key_is_a_sink(tiny_lm, flat):
    lm = flatten_tokens(tiny_lm()) if flat else tiny_lm()
    sites = lm.sites([1])
    texts = ["The capital of France is", "You and I speak because of it", "Rome is a city in Italy"]
    requests = [EditRequest(str(i), "{} is", text, "Rome") for i, text in enumerate(texts)]
    assert not sink_directions(lm, requests, sites)
    embed = lm.model.get_input_embeddings().weight.data
    embed[:] = embed[:1] + 0.01 * embed
    (direction,) = sink_directions(lm, requests, sites).values()
    assert float(direction.norm()) == pytest.approx(1, abs=1e-4)


def sink_at(lm, positions):
    """Let every token but those of other positions than some have one key at the edited matrix."""

    def answer(_, args, output):
        length = output.shape[1]
        for position in positions:
            if position < length:
                output[:, position] = 20.0
        return output

    lm.block(1).mlp.up_proj.register_forward_hook(answer)
    lm.block(1).mlp.gate_proj.register_forward_hook(answer)
    return lm


def test_a_subject_whose_later_token_is_a_sink_is_asked_after_an_opening_as_one_at_the_first_is(tiny_lm):
    lm = sink_at(tiny_lm(tokenizer="byte_level"), (0, 1))
    requests = [EditRequest("0", "{} is", "Rome", "old"), EditRequest("1", "{} is", "old and new", "the")]
    ends = [entry.subject_last for entry in tokenize(lm.tokenizer, [in_context(each) for each in requests])]
    assert ends[0] == 1 != ends[1]
    plan = plan_of(lm, requests, 2)
    assert [bool(each.form.before) for each in plan.requests] == [True, False]
    typed = requests[0]._replace(prompt="<|im_start|>{} is")
    assert not at_sinks(lm, [typed, requests[0]._replace(form=Form("", "!"))], lm.sites([1]), 4096)


def test_a_subject_at_a_sink_is_asked_after_a_context_and_said_to_be(tiny_lm, monkeypatch, caplog):
    requests = [EditRequest("0", "{} is a city in", "Rome", "France"), CURIE[2]]
    monkeypatch.setattr("sphere_pl.editing.key_plan.at_sinks", lambda *_: [0])
    plan = plan_of(tiny_lm(), requests, 2)
    assert [each.asked for each in plan.requests] == [
        "This is well known. Rome is a city in",
        "The capital of France is",
    ]
    report_keys(plan)
    assert "attention sink" in caplog.text
    assert known_causes(plan) == {0: Cause.SINK}


def test_edits_that_share_a_key_with_another_target_are_known_to_be_in_danger(tiny_lm):
    plan = plan_of(tiny_lm(), CURIE, 4)
    assert known_causes(plan) == dict.fromkeys((0, 1, 3), Cause.SHARED_KEY)
    same = [CURIE[0], CURIE[0]._replace(case_id="9")]
    assert known_causes(plan_of(tiny_lm(), same, 2)) == {}


def test_the_last_block_is_refused_unless_the_subject_ends_the_prompt(tiny_lm):
    lm = tiny_lm()
    last = lm.n_layers - 1
    check_last_block(lm, CURIE, [last - 1])
    check_last_block(lm, [EditRequest("0", "Say who it is: {}", "Marie Curie", "Oslo")], [last])
    with pytest.raises(UserError, match="last block"):
        check_last_block(lm, CURIE, [last - 1, last])
