"""Facts in a list: found, confirmed and read in front of a question."""

import pytest
import torch

from sphere_pl.data.chat import ChatSettings
from sphere_pl.data.request import EditRequest, Form
from sphere_pl.errors import UserError
from sphere_pl.evaluation import fact_list
from sphere_pl.evaluation.fact_list import FactList, from_header, give_facts, to_header
from sphere_pl.evaluation.scoring import Answer, answer, answer_as_given
from sphere_pl.methods import SCR
from sphere_pl.methods.retrieval import Retrieval
from sphere_pl.model.generation import complete
from sphere_pl.model.tokens import Prompt

TAKEN = Retrieval(confirm=False)


@pytest.mark.parametrize("retriever", ["tfidf", "model"])
def test_the_nearest_fact_stands_in_front_of_a_question(tiny_lm, requests, retriever):
    read = FactList(tiny_lm(), requests, Retrieval(retriever, confirm=False, min_similarity=0.3))
    assert read(["The capital of France is", "Rome is a city in"]) == [
        "The capital of France is Berlin\nThe capital of France is",
        "Rome is a city in Norway\nRome is a city in",
    ]


def test_a_question_that_no_fact_is_near_is_read_as_it_is(tiny_lm, requests):
    assert FactList(tiny_lm(), requests, TAKEN)(["Why? 7 x 8 = ?"]) == ["Why? 7 x 8 = ?"]


def test_scripts_without_spaces_are_compared_too(tiny_lm):
    facts = [
        EditRequest("0", "{}的首都是", "法国", "柏林"),
        EditRequest("1", "{}はどこの都市ですか", "ローマ", "ノルウェー"),
    ]
    read = FactList(tiny_lm(), facts, Retrieval(confirm=False, min_similarity=0.2))
    assert read(["法国的首都在哪里"]) == ["法国的首都是柏林\n法国的首都在哪里"]
    assert read(["ローマはどこにある都市"]) == ["ローマはどこの都市ですかノルウェー\nローマはどこにある都市"]


def test_the_newest_answer_to_a_question_counts(tiny_lm, requests):
    again = requests[0]._replace(case_id="9", target_new="Rome")
    assert FactList(tiny_lm(), [*requests, again], TAKEN)(["The capital of France is"]) == [
        "The capital of France is Rome\nThe capital of France is"
    ]


def test_the_model_is_asked_and_measured_against_an_empty_fact(tiny_lm, requests, monkeypatch):
    """Yes is likelier throughout; it counts only where the fact makes it likelier than no fact does."""
    seen = []

    def said(lm, prompts):
        seen.extend(prompts)
        likelier = {"Yes": -1.0, "No": -3.0}
        return [
            Answer([0], [0], likelier[each.target] + ("Berlin" in each.text and each.target == "Yes"))
            for each in prompts
        ]

    monkeypatch.setattr(fact_list, "answer_as_given", said)
    read = FactList(tiny_lm(), requests, Retrieval(confirmation="{fact}|{question}?"))
    found = read(["The capital of France is", "Rome is a city in"])
    assert found == ["The capital of France is Berlin\nThe capital of France is", "Rome is a city in"]
    assert [each.text for each in seen[1:3]] == [
        "The capital of France is Berlin|The capital of France is?",
        "|The capital of France is?",
    ]


def test_the_next_candidate_is_asked_where_the_first_does_not_apply(tiny_lm, requests, monkeypatch):
    def said(lm, prompts):
        return [Answer([0], [0], float("Norway" in each.text and each.target == "Yes")) for each in prompts]

    monkeypatch.setattr(fact_list, "answer_as_given", said)
    settings = Retrieval(candidates=4, min_similarity=0.0, confirmation="{fact}|{question}")
    assert FactList(tiny_lm(), requests, settings)(["The capital of France is"]) == [
        "Rome is a city in Norway\nThe capital of France is"
    ]


def test_a_fact_goes_inside_a_chat_template(tiny_lm, requests):
    read = FactList(tiny_lm(), requests, TAKEN, [Form("<user>", "<answer>")])
    assert read(["<user>The capital of France is<answer>"]) == [
        "<user>The capital of France is Berlin\nThe capital of France is<answer>"
    ]


@torch.no_grad()
def test_what_is_read_is_what_is_answered(tiny_lm, requests):
    lm, asked = tiny_lm(), Prompt("The capital of France is", "Berlin")
    plain = answer(lm, [asked])
    (with_fact,) = answer_as_given(lm, [Prompt(f"The capital of France is Berlin\n{asked.text}", "Berlin")])
    written = complete(lm, [f"The capital of France is Berlin\n{asked.text}"], 4)
    give_facts(lm, requests, TAKEN, ChatSettings())
    assert answer(lm, [asked]) == [with_fact] != plain
    assert complete(lm, [asked.text], 4) == written
    give_facts(lm, requests, None)
    assert answer(lm, [asked]) == plain


def test_settings_survive_the_log_and_others_are_refused():
    settings = SCR(retriever="model", candidates=2).retrieval
    assert from_header(to_header(settings)) == settings
    assert from_header(to_header(None)) is None
    with pytest.raises(UserError, match="this version"):
        from_header({"retriever": "tfidf"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retriever": "bm25"}, "tfidf or model"),
        ({"candidates": 0}, "at least 1"),
        ({"min_similarity": 1.5}, "between 0 and 1"),
        ({"confirmation": "{fact}?"}, "must hold {question}"),
        ({"in_front": "So: "}, "must hold {fact}"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SCR(**arguments)
