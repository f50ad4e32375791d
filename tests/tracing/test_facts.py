"""Which facts a model knows, and how far their subjects' embeddings spread."""

import pytest
import torch

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.tracing.facts import embedding_deviation, known_facts, true_answer

FACT = EditRequest("2", "The mother tongue of {} is", "Anna Karlsson", "x", "Swedish")


def test_a_fact_is_known_if_every_token_of_its_answer_is_the_likeliest(tiny_lm, monkeypatch):
    lm = tiny_lm()
    (said,) = lm.tokenizer(" is", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(lm, "logits", lambda hidden: torch.eye(len(lm.tokenizer))[said].repeat(len(hidden), 1))
    facts = [true_answer(FACT._replace(target_true=answer)) for answer in ("is", "is is", "is Italy", "Italy is")]
    assert [fact.target for fact in known_facts(lm, facts)] == ["is", "is is"]


def test_the_deviation_is_that_of_the_subjects_embeddings(tiny_lm, requests):
    lm = tiny_lm("gpt2", bos=True)
    prompts = [true_answer(request) for request in requests]
    words = [" France", "Rome", " Anna Karlsson", "Oslo"]  # the tokenizer cuts the space before Oslo off
    ids = [token for word in words for token in lm.tokenizer(word, add_special_tokens=False)["input_ids"]]
    values = lm.model.transformer.wte.weight[ids].flatten().tolist()
    mean = sum(values) / len(values)
    expected = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    assert embedding_deviation(lm, prompts) == pytest.approx(expected, rel=1e-5)


def test_a_fact_without_a_true_answer_is_refused():
    with pytest.raises(UserError, match=r"facts.jsonl, line 3: .*nothing to trace.*--data.name=known"):
        true_answer(EditRequest("0", "{} is", "Rome", "x", source="facts.jsonl, line 3"))


def test_a_fact_without_a_subject_is_refused():
    with pytest.raises(UserError, match=r"case 7: the record has no subject.*Add a field `subject`"):
        true_answer(EditRequest("7", "Water boils at", "", "90 degrees", "100 degrees"))
