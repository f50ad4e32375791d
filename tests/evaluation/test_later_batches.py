"""A model that later batches break is spoken of, once, and where it happens."""

import logging
import math

import pytest

from sphere_pl.data.request import EditBatch
from sphere_pl.editing.guard import GuardSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.later_batches import Look, alarm


def test_a_model_that_changes_little_is_not_spoken_of():
    assert alarm(50.0, Look(600, 60.0), Look(700, 99.0), limit=2.0) == ""


@pytest.mark.parametrize("perplexity", [310_000.0, math.inf, math.nan])
def test_a_jump_is_said_with_the_edits_that_made_it(perplexity):
    said = alarm(57.0, Look(600, 58.9), Look(700, perplexity), limit=2.0)
    assert f"After 700 edits perplexity is {perplexity:.4g}, 58.9 after 600" in said
    assert "--data.limit 600" in said
    first = alarm(57.0, Look(0, 57.0), Look(100, perplexity), limit=2.0)
    assert "57 before the first" in first
    assert "--data.limit" not in first


def test_a_model_that_wears_out_slowly_is_said_when_it_comes_to_the_limit_and_not_again():
    said = alarm(57.0, Look(800, 110.0), Look(900, 120.0), limit=2.0)
    assert "57 unedited: the model wears out" in said
    assert alarm(57.0, Look(900, 120.0), Look(1000, 150.0), limit=2.0) == ""
    assert alarm(57.0, Look(1000, math.nan), Look(1100, math.nan), limit=2.0) == ""


def test_what_a_run_was_continued_with_is_counted_without_what_it_continues():
    said = alarm(57.0, Look(600, 58.0), Look(700, 900.0), limit=2.0, inherited=500)
    assert "58 after 600" in said
    assert "--data.limit 100" in said
    assert "--data.limit" not in alarm(57.0, Look(500, 58.0), Look(600, 900.0), limit=2.0, inherited=500)


@pytest.fixture
def looked_at(tiny_lm, requests, monkeypatch, caplog):
    """An editor that has had batches of so many edits, each of which left a perplexity; and what was said."""

    def run(sizes, perplexities, unedited=57.0, again=(), **guard):
        caplog.set_level(logging.WARNING)
        editor = SequentialEditor(guard=GuardSettings(**guard))
        editor.scores.unedited_opening, left = unedited, iter(perplexities)
        monkeypatch.setattr(editor, "refresh_model", lambda: None)
        monkeypatch.setattr(editor, "_look_at_first", lambda batch: None)
        monkeypatch.setattr(type(editor), "language_model", property(lambda editor: tiny_lm()))
        monkeypatch.setattr(editor.evaluator, "opening", lambda lm: next(left))
        start = 0
        for size in sizes:
            editor.on_train_batch_end(None, EditBatch(tuple(requests[:1] * size), start), 0)
            start += size
        if again:
            editor.on_train_batch_end(None, EditBatch(tuple(requests[:1] * len(again)), start, again), 0)
        return list(left), [record.getMessage() for record in caplog.records]

    return run


def test_the_model_is_looked_at_whenever_a_hundred_edits_are_complete(looked_at):
    left, said = looked_at([60, 30, 30, 70, 10, 5], [58.0, 59.0, 60.0])
    assert (left, said) == ([60.0], [])  # at 120 and at 200


def test_facts_that_are_edited_again_are_not_counted_as_further_ones(looked_at):
    assert looked_at([100, 100], [58.0, 59.0], again=(0,) * 100) == ([59.0], [])  # the last scores follow


def test_a_run_says_between_which_edits_the_model_broke(looked_at):
    _, said = looked_at([100, 100, 100, 100], [58.0, 9000.0, 9100.0])
    (line,) = said
    assert "After 300 edits perplexity is 9000, 58 after 200" in line


def test_without_a_measured_perplexity_or_with_looking_off_nothing_is_said(looked_at):
    assert looked_at([100, 100], [9000.0], unedited=None)[1] == []
    assert looked_at([100, 100], [9000.0], first_batch="off") == ([9000.0], [])
