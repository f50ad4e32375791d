"""Retrieval alone: what is read with a fact in front."""

import json

import pytest

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.methods.retrieval import Retrieval
from study import confirmation
from study.confirmation import confirmation_table, measure, read_results, readings

REQUESTS = [
    EditRequest(0, "{} is in", "Rome", "Norway", paraphrases=("Where is Rome? In",), neighbors=("Pisa is in",)),
    EditRequest(1, "{} is in", "Oslo", "Spain"),
]


class Reading:
    """Reads the prompts of the first fact, and neighbours unless the model is asked."""

    def __init__(self, lm, requests, settings):
        self.found = {"Rome is in": "Rome is in Norway\nRome is in", "Where is Rome? In": "Oslo is in Spain\nWhere"}
        if not settings.confirm:
            self.found["Pisa is in"] = "Rome is in Norway\nPisa is in"

    def __call__(self, texts):
        return [self.found.get(text, text) for text in texts]


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(confirmation, "FactList", Reading)
    monkeypatch.setattr(confirmation, "fingerprint", lambda lm: "a")


def test_a_question_counts_as_read_if_a_fact_stands_in_front():
    found = readings(None, REQUESTS, Retrieval(confirm=False))
    assert found == {"own": "+-", "paraphrase": "+ ", "neighbor": "+ ", "right": "--"}
    assert readings(None, REQUESTS, Retrieval(confirm=True))["neighbor"] == "- "


def test_a_result_of_other_facts_settings_or_version_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(confirmation, "FACTS", 2)
    path = tmp_path / "gemma3_270m.json"
    for other in ({}, {"facts": 3}, {"retrieval": {}}, {"sphere_pl": "0"}):
        path.write_text(json.dumps(measure(None, REQUESTS) | other))
        if other:
            with pytest.raises(UserError, match=rf"gemma3_270m\.json has another {next(iter(other))}"):
                read_results(tmp_path)
        else:
            assert "| Gemma-3-270M | yes | 0.50 ± 0.35 | 1.00 ± 0.00 | 0.00 ± 0.00 |" in confirmation_table(
                read_results(tmp_path)
            )
    assert confirmation_table({}) == ""
