"""What is odd about a stream of edits is found and said."""

import logging

import pytest

from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.data.review import refuse_contradictions, report_edited_neighbors, report_repeated_ids, settle_conflicts
from sphere_pl.errors import UserError


def edit(case_id, subject, target, prompt="The capital of {} is", relation="P36", **fields):
    return EditRequest(
        str(case_id), prompt, subject, target, relation_id=relation, source=f"f, line {case_id}", **fields
    )


CLASH = [
    edit(1, "France", "Rome"),
    edit(2, "Spain", "Oslo"),
    edit(3, "france", "Bonn", prompt="{}'s capital is"),
    edit(4, "Spain", "oslo"),
    edit(5, "Italy", "Bern", relation=None),
    edit(6, "Italy", "Lima", relation=None),
]


def test_conflicts_are_reported_once_with_a_count_and_an_example(caplog):
    with caplog.at_level(logging.WARNING):
        assert settle_conflicts(CLASH) == CLASH
    (record,) = caplog.records
    assert "2 of 6 edits are contradicted by a later one" in record.message
    assert "f, line 1 says 'The capital of France is' -> 'Rome'" in record.message
    assert "f, line 3 says \"france's capital is\" -> 'Bonn'" in record.message


def test_the_last_of_conflicting_edits_can_be_kept():
    assert [request.case_id for request in settle_conflicts(CLASH, "keep_last")] == ["2", "3", "4", "6"]


def test_conflicts_can_be_refused():
    with pytest.raises(UserError, match=r"2 of 6 edits .*--data.conflicts=keep_last"):
        settle_conflicts(CLASH, "refuse")


def test_edits_that_agree_are_no_conflict(caplog):
    agreeing = [edit(1, "France", "Rome"), edit(2, "France", "Rome"), edit(3, "France", "euro", "{} pays in", "P38")]
    assert settle_conflicts(agreeing, "refuse") == agreeing
    assert not caplog.records


def test_a_target_that_comes_back_overrides_what_stood_between():
    edits = [edit(1, "France", "Rome"), edit(2, "France", "Bonn"), edit(3, "France", "Rome")]
    assert [request.case_id for request in settle_conflicts(edits, "keep_last")] == ["1", "3"]


def test_repeated_case_ids_are_counted(caplog):
    assert report_repeated_ids([edit(1, "A", "x"), edit(2, "B", "x")]) == 0
    assert not caplog.records
    assert report_repeated_ids([edit(1, "A", "x"), edit(1, "B", "x"), edit(2, "C", "x"), edit(1, "D", "x")]) == 1
    assert "1 case id occurs more than once, the first is '1' (3 times)" in caplog.text


def test_neighbors_that_are_edited_themselves_are_counted(caplog):
    neighbors = ("The capital of Spain is", "The capital of Spaniola is", "New 'Zealand's sights: a, b")
    requests = [
        edit(1, "France", "Rome", neighbors=(*neighbors, "The capital of France is", "France speaks")),
        edit(2, "Spain", "Oslo"),
        edit(3, "'Zealand", "Oslo"),
    ]
    assert report_edited_neighbors(requests) == 3
    assert "3 of 5 neighbour prompts" in caplog.text
    assert report_edited_neighbors(requests[1:]) == 0


def test_neighbors_in_a_script_without_spaces_are_searched_by_character():
    template = "{}的首都是"
    requests = [
        edit(1, "挪威", "柏林", template, neighbors=("埃及的首都是", "日本的首都是")),
        edit(2, "埃及", "罗马", template),
    ]
    assert report_edited_neighbors(requests) == 1


def test_two_edits_of_one_batch_that_contradict_each_other_are_refused_by_name():
    with pytest.raises(UserError, match=r"f, line 1 says .*Rome.*f, line 3 says .*Bonn"):
        refuse_contradictions([EditBatch(tuple(CLASH[:3]))])
    refuse_contradictions([EditBatch(tuple(CLASH[:2])), EditBatch(tuple(CLASH[2:3]), 2)])
    bare = [edit(1, "", "green", "The sky is"), edit(2, "", "round", "The earth is")]
    refuse_contradictions([EditBatch(tuple(bare))])
