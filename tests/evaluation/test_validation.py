"""What a module measures can be said before the fit, and its last batch is always validated."""

from types import SimpleNamespace

import pytest

from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.evaluation.validation import ScoredModule

SETTINGS = EvaluationSettings(perplexity_tokens=0)


def test_scores_come_from_what_was_said_last_to_be_measured():
    module = ScoredModule(SETTINGS)
    module.measure(EvaluationSettings(perplexity_tokens=32))
    assert module.evaluation.perplexity_tokens == module.evaluator.settings.perplexity_tokens == 32
    assert module.scores.evaluator is module.evaluator


@pytest.mark.parametrize(
    ("step", "is_last_batch", "interval", "expected"),
    [
        (0, False, 100, 100),
        (0, True, 100, 8),  # the data end
        (4, False, 100, 8),  # the steps end
        (4, False, 3.5, 3.5),  # by the clock
    ],
)
def test_the_last_batch_is_followed_by_a_validation(step, is_last_batch, interval, expected):
    module = ScoredModule(SETTINGS)
    module.trainer = SimpleNamespace(
        max_steps=5, global_step=step, is_last_batch=is_last_batch, val_check_batch=interval
    )
    module.on_train_batch_start(None, 7)
    assert module.trainer.val_check_batch == expected


def test_failed_edits_are_looked_for_among_those_so_far(tiny_lm, monkeypatch):
    module = ScoredModule(SETTINGS)
    module.lm, module.edits_seen = tiny_lm(), 3
    monkeypatch.setattr(RunScores, "failing", lambda scores, lm, edits: [edits - 1] if lm is module.lm else [])
    assert module.failing() == [2]
