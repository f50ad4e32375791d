"""What the first batch did decides whether a run goes on."""

import logging

import pytest

from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.errors import UserError
from sphere_pl.evaluation.first_batch import FirstBatch

WELL = FirstBatch(edits=10, held=9, unconverged=1, growth=1.01, perplexity=(20.0, 20.4))


def judge(seen, **settings):
    guard = Guard(GuardSettings(**settings))
    guard.judge(
        seen.line(), seen.fails, seen.wrecks(guard.settings.max_perplexity_ratio, guard.settings.max_norm_ratio)
    )


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
