"""What the unedited model says is asked once for the same model, facts and settings."""

import json

import pytest
import torch

from sphere_pl.data.chat import ChatSettings
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.kept_unedited import unedited_file
from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.progress import untracked

SETTINGS = EvaluationSettings(perplexity_tokens=32, sample=2, keep_unedited=True)


@pytest.fixture
def path_of(tiny_lm, requests, tmp_path):
    def of(lm=None, model_hash="hash", asked=None, inherited=0, settings=SETTINGS, chat=ChatSettings()):  # noqa: B008
        return unedited_file(lm or tiny_lm(), model_hash, asked or requests, inherited, settings, chat, str(tmp_path))

    return of


def measured(lm, requests, path):
    scores = RunScores(Evaluator(SETTINGS))
    scores.measure_unedited(lm, requests, untracked, path=path)
    return scores


def test_a_second_run_reads_what_the_first_has_asked(tiny_lm, requests, path_of, monkeypatch):
    lm, asked = tiny_lm(), [request._replace(neighbors=(), neighbor_answers=()) for request in requests]
    first = measured(lm, asked, path_of(lm, asked=asked))
    assert first.evaluator.made
    monkeypatch.setattr(Evaluator, "measure_unedited", lambda *_: pytest.fail("asked again"))
    again = measured(lm, asked, path_of(lm, asked=asked))
    assert json.dumps(again.state_dict()) == json.dumps(first.state_dict())
    assert again.evaluator.requests == asked


def test_a_process_asks_where_the_first_one_does_whatever_it_has_kept_itself(tiny_lm, requests, path_of, monkeypatch):
    measured(tiny_lm(), requests, path_of())
    asked, measure = [], Evaluator.measure_unedited
    monkeypatch.setattr(Evaluator, "measure_unedited", lambda *args: (asked.append(1), measure(*args))[1])
    scores = RunScores(Evaluator(SETTINGS))
    scores.measure_unedited(tiny_lm(), requests, untracked, path=path_of(), agree=lambda _: None)
    assert asked == [1]


def test_another_model_tokenizer_fact_setting_or_form_is_another_file(tiny_lm, requests, path_of):
    other_config, other_tokens = tiny_lm(), tiny_lm()
    other_config.model.config.rope_theta = 7.0
    other_tokens.tokenizer.add_tokens(["unheard"])
    files = [
        path_of(), path_of(model_hash="another"), path_of(inherited=1), path_of(other_config), path_of(other_tokens),
        path_of(asked=requests[:1]), path_of(asked=[requests[0]._replace(target_new="else"), *requests[1:]]),
        path_of(settings=EvaluationSettings(perplexity_tokens=33)), path_of(chat=ChatSettings("chat")),
    ]  # fmt: skip
    assert len(set(files)) == len(files)
    assert path_of(asked=[each._replace(source="line 7") for each in requests]) == files[0]


def test_a_text_that_changes_under_its_name_is_another_file(path_of, tmp_path):
    text = tmp_path / "text.txt"
    files = set()
    for content in ("one", "two"):
        text.write_text(content)
        files.add(path_of(settings=EvaluationSettings(text=str(text))))
    assert len(files) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"scores": {}}'])
def test_a_file_that_holds_something_else_is_said_and_asked_again(tiny_lm, requests, path_of, caplog, content):
    path = path_of()
    path.parent.mkdir()
    path.write_text(content)
    assert measured(tiny_lm(), requests, path).before
    assert "asked again" in caplog.text
    assert path.read_text() != content


def test_a_folder_that_cannot_be_written_is_said_and_changes_nothing(tiny_lm, requests, path_of, caplog):
    path = path_of()
    path.parent.write_text("a file")
    with torch.no_grad():
        assert measured(tiny_lm(), requests, path).before
    assert "could not be kept" in caplog.text
