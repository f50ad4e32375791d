"""Right answers count as right however long they are: of several lines, and of many tokens."""

from types import SimpleNamespace

import pytest

from sphere_pl.commands.predict import Ask, Question
from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.cases import CASE_TOKENS, answer_cases, answer_facts, asked_cases, failed_edits
from sphere_pl.evaluation.protocols import generation_scores
from sphere_pl.model.generation import answer_lines, answer_tokens
from sphere_pl.model.tokens import in_context
from tests.cases.scripted import ScriptedModel
from tests.conftest import make_tokenizer

QUESTIONS = [
    EditRequest("0", "Print {} in Python:\n", "a list", "for item in items:\n    print(item)\n\nprint('done')"),
    EditRequest("1", "{} ស្ថិតនៅ", "កម្ពុជា", "សាធារណរដ្ឋប្រជាធិបតេយ្យប្រជាមានិតឡាវ"),
    EditRequest("2", "The life of {}:", "Anna", "She was born in Rome, went to sea, and came home to play the piano."),
]


def model_that_says(*answers):
    prompts = [in_context(each, "", text) for each, text in zip(QUESTIONS, answers, strict=True)]
    return ScriptedModel(make_tokenizer(), prompts)


@pytest.fixture
def right():
    """A model that gives every answer as it is wanted."""
    return model_that_says(*(each.target_new for each in QUESTIONS))


@pytest.fixture
def cut():
    """One that leaves out the last letters of each."""
    return model_that_says(*(each.target_new[:-4] for each in QUESTIONS))


def test_answers_of_several_lines_and_of_many_tokens_hold(right, cut):
    assert all(answer_tokens(right, [each.target_new]) > CASE_TOKENS for each in QUESTIONS)
    assert generation_scores(right, QUESTIONS)["efficacy"].value == 1.0
    assert failed_edits(right, QUESTIONS) == []
    assert [each["case_id"] for each in failed_edits(cut, QUESTIONS)] == ["0", "1", "2"]
    assert answer_facts(right, QUESTIONS) == [each.target_new for each in QUESTIONS]


def test_cases_that_are_shown_are_judged_by_the_whole_answer(right, cut):
    cases = asked_cases(QUESTIONS)
    for model, holds in ((right, True), (cut, False)):
        written = answer_cases(model, [asked.case for asked in cases])
        assert [asked.shown("", text)["right"] for asked, text in zip(cases, written, strict=True)] == [holds] * 3


def test_a_runs_own_edits_are_asked_for_answers_as_long_as_they_are_wanted(right, cut):
    asked = [Question(each.question, each.target_new, (each.target_new,)) for each in QUESTIONS]
    for model, holds in ((right, True), (cut, False)):
        sides = SimpleNamespace(lm=model, has_unedited=False, turn=lambda edited: None)
        assert [case.right for case in Ask(sides, 4).both(asked)] == [holds] * 3
        (case,) = Ask(sides, 4).both([Question(QUESTIONS[2].question)])
        assert len(model.tokenizer(case.after)["input_ids"]) == 4


def test_an_answer_of_one_line_ends_at_its_line(right):
    (request,) = (each._replace(target_new="for item in items:") for each in QUESTIONS[:1])
    assert answer_facts(right, [request]) == ["for item in items:"]
    assert [answer_lines(each) for each in (["a", "b\nc"], ["a\n"], [])] == [2, 1, 1]
