"""Batched likelihoods against one item at a time: unpadded, no cache, no shared prefix, full logits."""

import pytest
import torch

from sphere_pl.abilities.answering import choice_log_likelihoods
from sphere_pl.abilities.task import Item

SHOTS = "Question: Where is Rome?\nAnswer: Italy\n\nQuestion: Where is Oslo?\nAnswer: Norway\n\n"
CHOICES = [
    Item("The capital of France is", 0, choices=("Paris", "Berlin", "a city by the sea")),
    Item("Question: Where is Berlin?\nAnswer:", 0, choices=("Germany", "Japan"), shots=SHOTS),
    Item("You", 0, choices=("and I", "and")),
    Item("Question: Where is Mount Fuji?\nAnswer:", 1, choices=("in the water", "Japan"), shots=SHOTS),
    Item("Question: Where is Mount Fuji?\nAnswer:", 1, choices=("Norway", "Japan"), shots=SHOTS),
    Item("An apple is a fruit that is good to", 0, choices=("eat", "eat")),
]
MODELS = ["llama", "qwen2", "gpt2"]


def logits(lm, ids):
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0].float()


def slow_likelihood(lm, item, choice, longest=10_000):
    """The log-probability of a continuation, token by token, the context shortened at its beginning."""
    context = lm.tokenizer(item.shots + item.prompt)["input_ids"]
    whole = lm.tokenizer(f"{item.shots}{item.prompt} {choice}")["input_ids"]
    assert whole[: len(context)] == context
    total = 0.0
    has_bos = context[0] == lm.tokenizer.bos_token_id
    read = whole[:-1]
    if len(read) > longest:
        read = ([read[0]] if has_bos else []) + read[len(read) - longest + has_bos :]
    logp = logits(lm, read).log_softmax(-1)
    for back, token in enumerate(reversed(whole[len(context) :]), start=1):
        total += logp[-back, token].item()
    return total


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_tokens", [40, 10_000])
@pytest.mark.parametrize("model_type", MODELS)
def test_likelihoods_are_those_of_one_choice_at_a_time(tiny_lm, model_type, bos, max_tokens):
    lm = tiny_lm(model_type, bos=bos)
    found = choice_log_likelihoods(lm, CHOICES, max_tokens)
    for item, each in zip(CHOICES, found, strict=True):
        expected = [slow_likelihood(lm, item, choice) for choice in item.choices]
        assert each == pytest.approx(expected, abs=2e-4)
        assert each.index(max(each)) == expected.index(max(expected))


@pytest.mark.parametrize("bos", [False, True])
def test_an_item_longer_than_the_context_loses_its_beginning(tiny_lm, bos):
    lm = tiny_lm(bos=bos)
    long = "The river runs to the sea by the water. " * 20
    items = [CHOICES[1], CHOICES[1]._replace(shots=long + SHOTS), CHOICES[3]]
    assert len(lm.tokenizer(long)["input_ids"]) > 128
    found = choice_log_likelihoods(lm, items)
    for item, each in zip(items, found, strict=True):
        expected = [slow_likelihood(lm, item, choice, longest=128) for choice in item.choices]
        assert each == pytest.approx(expected, abs=2e-4)


def test_choices_of_one_token_share_a_row_and_worked_examples_run_once(tiny_lm, monkeypatch):
    lm = tiny_lm()
    rows = []
    run = lm.run
    monkeypatch.setattr(lm, "run", lambda hidden, *args: rows.append(tuple(hidden.shape[:2])) or run(hidden, *args))
    items = [CHOICES[1]._replace(choices=("a", "b", "c")), CHOICES[3]._replace(choices=("a", "b", "c"))]
    choice_log_likelihoods(lm, items)
    shots = len(lm.tokenizer(SHOTS)["input_ids"])
    assert rows[0][0] == 1
    assert rows[0][1] >= shots
    assert sum(n for n, _ in rows[1:]) == 2
    assert all(columns < 20 for _, columns in rows[1:])


def test_nothing_to_answer_has_no_answers(tiny_lm):
    assert choice_log_likelihoods(tiny_lm(), []) == []
