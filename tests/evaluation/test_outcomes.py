import math

import pytest
import torch

from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.cases import asked_fact, failed_facts, look_at_failures
from sphere_pl.evaluation.outcomes import Cause, Outcome, ask_targets, cause_of, counted


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (Outcome(learned=False, converged=False), Cause.NOT_CONVERGED),
        (Outcome(learned=False, converged=True), Cause.REGULARIZER),
        (Outcome(learned=False, converged=True, found=Cause.SHARED_KEY), Cause.SHARED_KEY),
        (Outcome(learned=False, converged=False, found=Cause.SINK), Cause.SINK),
        (Outcome(learned=True, converged=True), Cause.OVERWRITTEN),
        (Outcome(learned=True, converged=True, found=Cause.SHARED_KEY), Cause.OVERWRITTEN),
        (Outcome(learned=True, converged=True, followed=False), Cause.REGULARIZER),
        (Outcome(learned=None, converged=None), Cause.NOT_LEARNED),
        (Outcome(likeliest=True, learned=True, converged=True), Cause.RUNS_ON),
    ],
)
def test_a_failed_edit_has_the_cause_that_what_is_known_of_it_says(outcome, cause):
    assert cause_of(outcome) is cause


def test_causes_are_counted_with_the_most_frequent_first():
    assert counted({}) == {}
    causes = {0: Cause.SINK, 1: Cause.OVERWRITTEN, 2: Cause.OVERWRITTEN}
    assert list(counted(causes).items()) == [("overwritten", 2), ("attention sink", 1)]


@torch.no_grad()
def test_a_targets_probability_is_the_geometric_mean_of_its_tokens(tiny_lm, requests):
    lm = tiny_lm()
    for request, learned in zip(requests, ask_targets(lm, requests), strict=True):
        before = lm.tokenizer(request.question)["input_ids"]
        whole = torch.tensor([lm.tokenizer(f"{request.question} {request.target_new}")["input_ids"]])
        scores = lm.model(whole).logits[0].log_softmax(-1)
        at = range(len(before) - 1, whole.shape[1] - 1)
        mean = sum(float(scores[place, whole[0, place + 1]]) for place in at) / len(at)
        assert learned.probability == pytest.approx(math.exp(mean), rel=1e-4)
        assert learned.right == all(int(scores[place].argmax()) == int(whole[0, place + 1]) for place in at)


def test_facts_that_were_all_asked_fail_by_what_the_model_writes():
    requests = [EditRequest(str(n), "{} is", "It", "red", aliases=("scarlet",)) for n in range(3)]
    answers = ["red, and", "Scarlet.", "redder"]
    facts = [asked_fact(request).shown("blue", said) for request, said in zip(requests, answers, strict=True)]
    assert [fact["right"] for fact in facts] == [True, True, False]
    failures = failed_facts(requests, facts)
    assert failures.places == {2}
    assert failures.listed[2]["given"] == "redder"


def test_beyond_those_listed_every_missed_edit_counts_as_failed(tiny_lm, requests):
    many = {place + 7: requests[1]._replace(case_id=str(place)) for place in range(60)}
    failures = look_at_failures(tiny_lm(), many)
    assert list(failures.listed) == list(range(7, 57))
    assert failures.places == set(many)
