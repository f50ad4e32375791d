import json

import pytest

from sphere_pl.errors import UserError
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.metrics import Consistency, Fluency
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.evaluation.texts import read_references, text_scores
from sphere_pl.model.generation import free_texts

SNIPPETS = [
    {"relation_id": "P103", "target_id": "Q652", "samples": [{"name": "a", "text": "Italian is spoken in Rome"}]},
    {"relation_id": "P36", "target": "Berlin", "samples": [{"text": "Berlin is a city"}, {"text": "in Germany"}]},
]


@pytest.fixture
def snippets(tmp_path):
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(SNIPPETS))
    return str(path)


def test_references_are_read_by_relation_and_object(snippets):
    assert read_references(snippets) == {
        ("P103", "Q652"): ["Italian is spoken in Rome"],
        ("P36", "Berlin"): ["Berlin is a city", "in Germany"],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "could not be read.*attribute_snippets.json"),
        ("{", "not JSON"),
        ('[{"relation_id": "P1"}]', "entry 1: expected"),
        ('[{"relation_id": "P1", "target": "x", "samples": ["text"]}]', "entry 1: expected"),
        ("[7]", "entry 1: expected"),
        ("[]", "hold no text"),
    ],
)
def test_a_wrong_reference_file_is_refused_before_anything_runs(tmp_path, content, words):
    path = tmp_path / "refs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        Evaluator(EvaluationSettings(texts=3, references=str(path)))


def test_references_without_texts_are_refused():
    with pytest.raises(UserError, match="texts=0"):
        EvaluationSettings(references="x.json")


def test_fluency_and_consistency_are_those_of_the_texts_written(tiny_lm, requests, snippets):
    lm = tiny_lm()
    prompts = [("France is in", "The capital of France"), ("Rome is",), (), ("Oslo",)]
    asked = [r._replace(generation=g) for r, g in zip(requests, prompts, strict=True)]
    references = read_references(snippets)
    found = text_scores(lm, asked, references, seed=5)
    texts = free_texts(lm, [text for group in prompts for text in group], seed=5)
    import torch

    fluency, consistency = Fluency(), Consistency([text for group in references.values() for text in group])
    fluency.update(texts, torch.tensor([0, 0, 1, 3]))
    consistency.update([texts[:2]], [references["P36", "Berlin"]], torch.tensor([0]))  # the others have no reference
    assert found["fluency"].value == pytest.approx(fluency.compute().item())
    assert found["consistency"].value == pytest.approx(consistency.compute().item())


def test_requests_without_prompts_for_texts_have_no_fluency(tiny_lm, requests):
    assert text_scores(tiny_lm(), requests, None, seed=0) == {}
