"""Batched scores against one prompt at a time, unpadded, with full logits."""

import math

import pytest
import torch

from sphere_pl.evaluation.editing import EditingMetrics, answer_requests
from sphere_pl.evaluation.scoring import answer, perplexity
from sphere_pl.prompts import Prompt

PROMPTS = [
    Prompt("The capital of France is", "Paris"),
    Prompt("Rome is a city in", "Italy by the sea"),
    Prompt("You", "and I"),
    Prompt("Oslo is"),
]


def slow(lm, prompt):
    with torch.no_grad():
        ids = lm.tokenizer(prompt.text)["input_ids"]
        whole = lm.tokenizer(f"{prompt.text} {prompt.target}")["input_ids"] if prompt.target else ids
        target = whole[len(ids) :]
        logp = lm.model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
    n = max(1, len(target))
    at = logp[len(ids) - 1 : len(ids) - 1 + n]
    mean = sum(at[k, t].item() for k, t in enumerate(target)) / n if target else math.nan
    return at.argmax(-1).tolist(), target, mean


@pytest.mark.parametrize("bos", [False, True])
def test_answers_are_those_of_one_prompt_at_a_time(tiny_lm, family, bos):
    lm = tiny_lm(family, bos=bos)
    for found, prompt in zip(answer(lm, PROMPTS, max_tokens=16), PROMPTS, strict=True):
        predicted, target, mean = slow(lm, prompt)
        assert found.predicted == predicted
        assert found.target == target
        assert found.log_probability == pytest.approx(mean, abs=1e-4, nan_ok=True)


def test_no_prompts_have_no_answers(tiny_lm):
    assert answer(tiny_lm(), []) == []


def test_perplexity_is_that_of_each_piece_alone(tiny_lm):
    lm = tiny_lm()
    text = "The capital of France is Paris. Rome is a city in Italy. You and I speak."
    ids = lm.tokenizer(text)["input_ids"]
    total, count = 0.0, 0
    for start in range(0, len(ids), 10):
        piece = torch.tensor([ids[start : start + 10]])
        if piece.shape[1] > 1:
            with torch.no_grad():
                loss = lm.model(input_ids=piece, labels=piece).loss.item()
            total, count = total + loss * (piece.shape[1] - 1), count + piece.shape[1] - 1
    assert perplexity(lm, text, length=10) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_metrics_count_each_kind_of_prompt_against_its_own_answer(tiny_lm, requests):
    lm = tiny_lm()
    rich = [
        r._replace(
            paraphrases=(f"So {r.question}", f"And {r.question}"),
            neighbors=("Berlin is", "Oslo is"),
            neighbor_answers=("a city", ""),
        )
        for r in requests
    ]
    answers = answer_requests(lm, rich)
    before = {10 + i: [n.predicted for n in a.neighbors] for i, a in enumerate(answers)}
    before[10] = [[-1] * len(p) for p in before[10]]  # this record's neighbours have changed
    metrics = EditingMetrics()
    metrics.update(range(10, 14), answers, before)
    found = metrics.compute()
    assert found["neighborhood_agreement"].item() == pytest.approx(0.75)
    hits = [
        slow(lm, Prompt(r.question, r.target_new))[0] == slow(lm, Prompt(r.question, r.target_new))[1] for r in requests
    ]
    assert found["efficacy"].item() == pytest.approx(sum(hits) / 4)
    assert metrics.generalization.count.item() == 4
    assert metrics.specificity.count.item() == 4  # the neighbour without a true answer counts for agreement only


def test_requests_without_neighbours_leave_their_metrics_undefined(tiny_lm, requests):
    metrics = EditingMetrics()
    metrics.update(range(4), answer_requests(tiny_lm(), requests), {i: [] for i in range(4)})
    found = metrics.compute()
    assert math.isnan(found["specificity"].item())
    assert not math.isnan(found["efficacy"].item())
