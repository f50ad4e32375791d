"""What an evaluator measures outlives an interruption."""

from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.progress import untracked


def test_a_checkpoint_gives_it_back_and_one_of_an_earlier_version_lacks_the_texts_opening_alone(tiny_lm, requests):
    evaluator = Evaluator(EvaluationSettings(perplexity_tokens=64))
    scores = RunScores(evaluator)
    scores.measure_unedited(tiny_lm(), requests, untracked, 0, None, lambda value: value)
    state = scores.state_dict()
    found = RunScores(evaluator)
    found.load_state_dict(state)
    assert found.unedited_opening == scores.unedited_opening is not None
    assert found.before == scores.before
    del state["unedited_opening"]
    found.load_state_dict(state)
    assert found.unedited_opening is None
    assert found.unedited_answers == scores.unedited_answers
