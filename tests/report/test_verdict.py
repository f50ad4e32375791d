import pytest

from sphere_pl.evaluation.outcomes import Cause
from sphere_pl.report.verdict import MEANINGS, closing_lines, summary

FAILED = {"subject": "Oslo", "prompt": "Oslo is", "wanted": "Norway", "given": "in\nSpain \x07", "cause": "overwritten"}


def results(edits=4, held=3, **more):
    failed = [FAILED] * min(edits - held, 50)
    return {"edits": edits, "held": held, "failed": failed, "advice": ["--retry 1"], "weights_moved": 0.0123} | more


def test_every_cause_is_explained():
    assert set(MEANINGS) == {str(cause) for cause in Cause}


def test_a_run_whose_facts_hold_says_so_in_one_line():
    assert closing_lines(results(held=4)) == ["✓ All 4 facts hold."]


@pytest.mark.parametrize(("held", "at_sink", "who"), [(4, 1, "One fact has its"), (3, 2, "2 facts have their")])
def test_facts_that_hold_after_an_opening_alone_are_counted(held, at_sink, who):
    assert closing_lines(results(held=held, at_sink=at_sink))[-1].startswith(f"{who} subject at the beginning, ")


CHAT = {"held": 4, "edited_as": "plain"}
IN_CHAT = "of them hold: they were edited as plain text. --data.chat both edits each fact in both forms."


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"after": {"chat/efficacy": 0.25}}, f"Asked in the model's chat template 25 % {IN_CHAT}"),
        ({"facts": [{"chat_right": False}] * 4}, f"chat template none {IN_CHAT.replace('hold', 'holds', 1)}"),
        ({"facts": [{"chat_right": each < 1} for each in range(4)], "after": {"chat/efficacy": 1.0}}, "25 %"),
    ],
)
def test_facts_that_do_not_hold_in_a_chat_are_said_not_to_with_what_edits_them_there(found, said):
    assert said in closing_lines(results(**CHAT, **found))[-1]


@pytest.mark.parametrize(
    "found",
    [
        {"after": {"chat/efficacy": 0.5}},
        {"facts": [{"chat_right": True}] * 4, "after": {"chat/efficacy": 0.0}},
        {"facts": [{"right": True}] * 4},
        {"after": {"chat/efficacy": 0.0}, "edited_as": "both"},
        {"after": {"chat/efficacy": 0.0}, "held": 0},
    ],
)
def test_nothing_is_said_of_a_chat_that_was_not_asked_or_that_editing_both_forms_would_not_help(found):
    assert "chat" not in closing_lines(results(**CHAT | found))[-1]


def test_the_one_that_failed_is_named_with_what_the_model_says_and_what_to_turn():
    first, second = closing_lines(results())
    assert first == '✗ 3 of 4 facts hold; failed: Oslo: wanted "Norway", says "in Spain �" (overwritten)'
    assert second == "What to turn: --retry 1"


def test_a_run_in_which_all_failed_says_how_far_the_weights_moved():
    lines = closing_lines(results(edits=90, held=0))
    assert lines[0] == "✗ None of 90 facts holds, the weights moved by 1.2 % of their norm; failed:"
    assert lines[-2:] == ["  and 87 more", "What to turn: --retry 1"]


@pytest.mark.parametrize("unknown", [{}, {"edits": 4, "held": None}, {"edits": 0, "held": 0}])
def test_nothing_is_said_where_nothing_was_scored(unknown):
    assert closing_lines(unknown) == []
    assert summary(unknown) == ""


def test_the_first_sentence_tells_of_edits_neighbours_and_other_text():
    after = {"neighborhood_agreement": 0.875, "perplexity": 50.0}
    said = summary(results(after=after, before={"perplexity": 40.0}))
    assert said == (
        "3 of 4 facts hold, 12 % of neighbouring answers changed and other text is less likely (perplexity +25 %)."
    )
    assert "(made ones)" in summary(results(after=after, made_neighbors={"records": 3}))
