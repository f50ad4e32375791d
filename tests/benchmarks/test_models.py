"""The benchmark of real models: what it asks for, and how it reads a run."""

import json

from benchmarks import models


def run_of(**after):
    scores = {"efficacy": 0.97, "generalization": 0.6, "neighborhood_agreement": 0.8, "perplexity": 51.0, **after}
    return {"before": {"perplexity": 50.0}, "after": scores, "seconds": 100.0, "seconds_per_edit": 0.5}


def test_a_run_is_held_against_what_is_asked_of_its_model():
    asked = models.ASKED["SmolLM2-135M-Instruct"]
    assert all(models.holds(models.reached(run_of()), asked))
    assert models.holds(models.reached(run_of(perplexity=60.0)), asked) == [True, True, True, False, True, True]


def test_scores_with_a_standard_error_are_read_too():
    assert models.value_of({"value": 0.5, "standard_error": 0.1}) == models.value_of(0.5) == 0.5


def test_the_models_that_were_measured_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "RESULTS", tmp_path / "models.json")
    monkeypatch.setattr(models, "first_run", lambda *_: run_of())
    monkeypatch.setattr("sys.argv", ["models", "default", "mine=/some/path", "--data=x.json"])
    models.main()
    assert set(json.loads((tmp_path / "models.json").read_text())) == {"SmolLM2-135M-Instruct", "mine"}
    assert "0.97 (0.96)" in capsys.readouterr().out
