"""What the first batch did decides whether a run goes on."""

import logging

import pytest
import torch

from sphere_pl.data.builtin import heldout_text
from sphere_pl.data.request import EditBatch
from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.errors import UserError
from sphere_pl.evaluation import evaluator as module
from sphere_pl.evaluation import scoring
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.first_batch import FirstBatch, look
from sphere_pl.evaluation.scored import Scored
from sphere_pl.evaluation.settings import EvaluationSettings

WELL = FirstBatch(edits=10, held=9, unconverged=1, growth=1.01, perplexity=(20.0, 20.4))


def judge(seen, **settings):
    guard = Guard(GuardSettings(**settings))
    guard.judge(seen.line(), seen.fails, seen.wrecks(guard.settings))


def test_a_batch_that_went_well_is_not_spoken_of(caplog):
    judge(WELL)
    assert caplog.text == ""


def test_edits_that_do_not_hold_are_said_and_the_run_goes_on(caplog):
    caplog.set_level(logging.WARNING)
    judge(WELL._replace(held=2, unconverged=8))
    assert "2 of 10 edits hold, 8 target values did not converge, perplexity 20 -> 20.4" in caplog.text
    assert "tune" in caplog.text


@pytest.mark.parametrize(
    "wrecked",
    [
        WELL._replace(perplexity=(152.0, 60_136.0)),
        WELL._replace(perplexity=(20.0, float("nan"))),
        WELL._replace(perplexity=None, growth=206.0),
        WELL._replace(perplexity=None, growth=float("inf")),
    ],
)
def test_a_model_that_is_being_wrecked_stops_the_run_unless_it_shall_go_on(wrecked, caplog):
    with pytest.raises(UserError, match=r"guard\.first_batch=warn"):
        judge(wrecked)
    judge(wrecked, first_batch="warn")
    assert "After the first batch" in caplog.text


def test_limits_out_of_range_are_refused():
    with pytest.raises(UserError, match="first_batch"):
        GuardSettings(first_batch="maybe")
    with pytest.raises(UserError, match="max_perplexity_ratio"):
        GuardSettings(max_perplexity_ratio=1.0)


@pytest.fixture
def read(monkeypatch):
    """How many tokens of text are read at a time."""
    found, original = [], scoring.predicting_states
    counted = lambda lm, text: found.append(int(text.mask.sum())) or original(lm, text)  # noqa: E731
    monkeypatch.setattr(scoring, "predicting_states", counted)
    monkeypatch.setattr(module, "OPENING", 16)
    return found


def test_after_the_first_batch_the_opening_of_the_text_is_read_alone(tiny_lm, requests, read):
    lm, evaluator, norms = tiny_lm(), Evaluator(EvaluationSettings(perplexity_tokens=64)), [torch.ones(())]
    before = evaluator.opening(lm)
    assert before == scoring.perplexity(lm, heldout_text(), 16)
    read.clear()
    batch, targets = EditBatch(tuple(requests)), (None, TargetSettings())
    seen = look(lm, batch, targets, (norms, norms), evaluator, before)
    assert seen.perplexity == (before, before)
    assert read == [16]
    assert look(lm, batch, targets, (norms, norms), evaluator, None).perplexity is None


def test_a_text_that_is_no_longer_than_its_opening_is_not_read_twice(tiny_lm, read):
    short = Evaluator(EvaluationSettings(perplexity_tokens=16))
    assert short.opening(tiny_lm(), {"perplexity": Scored(3.0)}) == 3.0
    assert Evaluator(EvaluationSettings(perplexity_tokens=0)).opening(tiny_lm()) is None
    assert read == []
