"""What became of each fact."""

import pytest

from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.answers import Answers
from sphere_pl.evaluation.scoring import Answer
from study import outcomes as module
from study.outcomes import outcomes


def answer(predicted, target):
    return Answer(predicted=predicted, target=target, log_probability=-1.0)


@pytest.fixture
def asked(monkeypatch):
    """Two facts; the model holds the first one's prompt and the second one's neighbour."""
    first = EditRequest(0, "{} is in", "Rome", "Norway", paraphrases=("Where is Rome? In",), aliases=("Norge",))
    second = EditRequest(0, "{} is in", "Oslo", "Spain")
    answers = [
        Answers([answer([1], [1])], [answer([2], [1])], [answer([5], [6])], []),
        Answers([answer([3], [4])], [], [answer([7], [8])], []),
    ]
    said = {"Rome is in": "Norge, up north", "Oslo is in": "Norway", "Where is Rome? In": "Italy"}
    monkeypatch.setattr(module, "answer_requests", lambda lm, requests: answers)
    monkeypatch.setattr(module, "answer_tokens", lambda lm, accepted: 4)
    monkeypatch.setattr(module, "complete", lambda lm, texts, room, joiners: [said[each] for each in texts])
    return outcomes(None, [first, second], {0: [[9]], 1: [[7]]})


def test_a_free_answer_counts_if_it_begins_with_the_object_or_an_alias(asked):
    assert asked["written"] == "+-"
    assert asked["written_paraphrase"] == "- "  # the second fact has no paraphrase


def test_teacher_forced_answers_count_by_every_token_and_neighbours_by_the_unedited_model(asked):
    assert (asked["own"], asked["paraphrase"], asked["neighbor"]) == ("+-", "- ", "-+")


def test_neighbours_that_the_unedited_model_was_not_asked_are_left_out(monkeypatch):
    request = EditRequest(0, "{} is in", "Rome", "Norway")
    found = [Answers([answer([1], [1])], [], [answer([5], [6])], [])]
    monkeypatch.setattr(module, "answer_requests", lambda lm, requests: found)
    monkeypatch.setattr(module, "answer_tokens", lambda lm, accepted: 4)
    monkeypatch.setattr(module, "complete", lambda lm, texts, room, joiners: ["Norway"] * len(texts))
    assert outcomes(None, [request], {})["neighbor"] == " "
