"""Batched scores against one prompt at a time, unpadded, with full logits."""

import math

import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.evaluation.answers import EditingMetrics, answer_requests
from sphere_pl.evaluation.scoring import answer, perplexity
from sphere_pl.model.tokens import Prompt

PROMPTS = [
    Prompt("The capital of France is", "Paris"),
    Prompt("Rome is a city in", "Italy by the sea"),
    Prompt("You", "and I"),
    Prompt("Oslo is"),
    Prompt("The capital of France is", "Berlin"),  # the same beginning, another target
    Prompt("The capital of France is", "Paris"),  # twice the same
    Prompt("The capital of Norway is", "Oslo, the capital"),
    Prompt("The capital of France is Paris"),  # a target of another prompt, here part of the text
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


def test_prompts_longer_than_a_sliding_window_are_answered_as_the_model_would(tiny_lm):
    lm = tiny_lm("mistral")
    prompts = [Prompt("The river runs to the sea. " * times + "Oslo is", "a city") for times in (1, 9, 10)]
    assert not lm.takes_masks(80)
    for found, prompt in zip(answer(lm, prompts), prompts, strict=True):
        predicted, target, mean = slow(lm, prompt)
        assert (found.predicted, found.target) == (predicted, target)
        assert found.log_probability == pytest.approx(mean, abs=1e-4)


def test_a_forward_pass_does_not_grow_with_the_number_of_prompts(tiny_lm, monkeypatch):
    lm, passes, heads = tiny_lm(), [], []
    run, logits = lm.run, lm.logits
    monkeypatch.setattr(lm, "run", lambda hidden, *rest: passes.append(hidden[..., 0].numel()) or run(hidden, *rest))
    monkeypatch.setattr(lm, "logits", lambda hidden: heads.append(len(hidden)) or logits(hidden))
    many = [Prompt(f"{first} {second} city of {third} is", "in Italy, by the sea and the river")
            for first in ["The", "A", "That", "One", "My"] for second in ["old", "new", "big", "red"]
            for third in ["Rome", "Oslo", "Paris", "Berlin", "Fuji", "Anna", "water", "apple"]]  # fmt: skip
    assert len(answer(lm, many, max_tokens=512)) == 160
    assert max(passes) <= 512
    assert max(heads) <= 256
    assert len(passes) > 3


def test_equal_beginnings_are_computed_once(tiny_lm, monkeypatch):
    lm, seen = tiny_lm(), []
    run = lm.run
    monkeypatch.setattr(lm, "run", lambda hidden, *rest: seen.append(hidden[..., 0].numel()) or run(hidden, *rest))
    prompt = Prompt("The mother tongue of Anna Karlsson is", "Swedish")
    alone = answer(lm, [prompt])
    assert answer(lm, [prompt] * 50) == alone * 50
    assert seen[0] == seen[1]


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


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("The set {1, 2} is", "finite"),
        ("HashMap<{}> is a", "type {}"),
        ("הבירה של ירושלים היא", "תל אביב"),
        ("عاصمة مصر هي", "الجيزة"),
        ("🗼 tower 🇫🇷 stands in", "Rome 🍕"),
        ("Mr Zoe\u0308 eats", "ﬁsh"),
    ],
)
def test_odd_texts_are_answered_as_alone(tiny_lm, bos, text, target):
    lm = tiny_lm(bos=bos)
    (found,) = answer(lm, [Prompt(text, target)])
    predicted, wanted, mean = slow(lm, Prompt(text, target))
    assert (found.predicted, found.target) == (predicted, wanted)
    assert found.log_probability == pytest.approx(mean, abs=1e-4)


def test_a_target_of_200_tokens_is_scored_whole(tiny_lm):
    lm = tiny_lm()
    lm.model.config.max_position_embeddings = 512
    prompts = [Prompt("The capital of France is", " ".join(["Paris and Berlin"] * 70)), Prompt("Rome is", "a city")]
    for found, prompt in zip(answer(lm, prompts, max_tokens=64), prompts, strict=True):
        predicted, target, mean = slow(lm, prompt)
        assert (found.predicted, found.target) == (predicted, target)
        assert found.log_probability == pytest.approx(mean, abs=1e-4)
    assert len(answer(lm, prompts)[0].target) >= 200


def test_a_prompt_longer_than_the_context_is_refused(tiny_lm):
    with pytest.raises(UserError, match=r"reads at most 128. Shorten it or leave the record out"):
        answer(tiny_lm(), [Prompt("So it is. " * 99 + "Rome is", "a city")])
