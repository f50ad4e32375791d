"""Each protocol against one prompt at a time, without padding and without a cache."""

import itertools
import math
import re

import pytest

from sphere_pl.evaluation.evaluator import score_requests
from sphere_pl.evaluation.protocols import (
    PREFIX_TOKENS,
    generation_scores,
    long_prefix_scores,
    long_prefixes,
    probability_scores,
)
from sphere_pl.evaluation.scoring import answer
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.model.generation import answer_tokens, complete, free_texts
from sphere_pl.model.tokens import Prompt, encode


def macro(rows):
    """Mean over records of the mean over a record's rows, and its standard error."""
    records = {}
    for record, value in rows:
        records.setdefault(record, []).append(float(value))
    means = [sum(values) / len(values) for values in records.values()]
    mean, n = sum(means) / len(means), len(means)
    error = math.sqrt(sum((value - mean) ** 2 for value in means) / (n - 1) / n) if n > 1 else math.nan
    return mean, error


def compare(found, name, rows):
    mean, error = macro(rows)
    assert found[name].value == pytest.approx(mean, abs=1e-5), name
    assert found[name].error == pytest.approx(error, abs=1e-5, nan_ok=True), name


def knowing(lm, slow, request):
    """The request with a prompt whose likeliest next word, by the slow way, is its target."""
    for words in itertools.product(("So", "And", "The", "My", "Of", "Old", "Red", "Rome", "Oslo", "Paris"), repeat=3):
        asked = request._replace(prompt=f"{' '.join(words)} {request.prompt}")
        if not (slow.write(lm, asked.question, 1) or "?")[0].isalpha():
            continue
        target = (re.findall(r"^\w+(?=\W)", slow.write(lm, asked.question, 4)) or ["?"])[0]
        predicted, wanted, _ = slow.answer(lm, asked.question, target)
        if predicted == wanted and target != "?":
            return asked._replace(target_new=target)
    raise AssertionError("the tiny model says no word at all")


def new_prompts(requests, kind):
    for record, r in enumerate(requests):
        for text in [r.question] if kind == "efficacy" else r.paraphrases:
            yield record, r, text


def neighbors(requests):
    for record, r in enumerate(requests):
        for text, right in zip(r.neighbors, r.neighbor_answers, strict=True):
            if right:
                yield record, r, text, right


@pytest.mark.parametrize("bos", [False, True])
def test_teacher_forced_scores_are_those_of_one_prompt_at_a_time(tiny_lm, reference_family, bos, slow, rich):
    lm = tiny_lm(reference_family, bos=bos)
    rich[2] = knowing(lm, slow, rich[2])  # so that not every score is 0
    found = score_requests(
        lm, rich, EvaluationSettings(protocols=["teacher_forced"], perplexity_tokens=0, batch_size=3)
    )

    def hit(text, target):
        predicted, wanted, _ = slow.answer(lm, text, target)
        return predicted == wanted

    for kind in ("efficacy", "generalization"):
        compare(found, kind, [(i, hit(text, r.target_new)) for i, r, text in new_prompts(rich, kind)])
    compare(found, "specificity", [(i, hit(text, right)) for i, _, text, right in neighbors(rich)])
    follow = [
        (i, hit(text, right[0]))
        for i, r in enumerate(rich)
        for text, right in zip(r.portability, r.portability_answers, strict=True)
    ]
    compare(found, "portability", follow)
    assert found["efficacy"].value > 0


@pytest.mark.parametrize("bos", [False, True])
def test_probabilities_are_compared_as_one_prompt_at_a_time(tiny_lm, reference_family, bos, slow, rich):
    lm = tiny_lm(reference_family, bos=bos)
    found = probability_scores(lm, rich)

    def logs(text, wanted, other):
        return slow.answer(lm, text, wanted)[2], slow.answer(lm, text, other)[2]

    pairs = {
        kind: [(i, *logs(text, r.target_new, r.target_true)) for i, r, text in new_prompts(rich, kind) if r.target_true]
        for kind in ("efficacy", "generalization")
    }
    pairs["specificity"] = [(i, *logs(text, right, r.target_new)) for i, r, text, right in neighbors(rich)]
    for name, rows in pairs.items():
        compare(found, name, [(i, wanted > other) for i, wanted, other in rows])
        compare(found, f"{name}_magnitude", [(i, math.exp(wanted) - math.exp(other)) for i, wanted, other in rows])


@pytest.mark.parametrize("bos", [False, True])
def test_free_answers_are_those_of_one_prompt_at_a_time(tiny_lm, reference_family, bos, slow, rich):
    lm = tiny_lm(reference_family, bos=bos)
    rich[2] = knowing(lm, slow, rich[2])
    alias = knowing(lm, slow, rich[0])
    rich[0] = alias._replace(target_new="Berlin", aliases=("Bärlin", alias.target_new))
    found = generation_scores(lm, rich)

    def hit(text, accepted):
        said = slow.write(lm, text, answer_tokens(lm, accepted))
        return any(re.match(rf"\W*{re.escape(answer)}(?!\w)", said, re.IGNORECASE) for answer in accepted)

    for kind in ("efficacy", "generalization"):
        rows = [(i, hit(text, (r.target_new, *r.aliases))) for i, r, text in new_prompts(rich, kind)]
        compare(found, kind, rows)
    compare(found, "specificity", [(i, hit(text, (right,))) for i, _, text, right in neighbors(rich)])
    assert found["efficacy"].value >= 0.5


def test_free_answers_do_not_depend_on_the_batch(tiny_lm, reference_family, slow):
    lm = tiny_lm(reference_family)
    texts = ["Rome is", "The mother tongue of Anna Karlsson is", "You", "Rome is ", "The capital of Norway lies by the"]
    assert complete(lm, texts, 7, max_tokens=24) == [slow.write(lm, text.rstrip(), 7) for text in texts]
    assert complete(lm, [], 7) == []


def test_room_for_an_answer_is_more_than_its_tokens(tiny_lm):
    lm = tiny_lm(bos=True)
    for answers in (["a"], ["Paris", "the city of Paris by the sea"], ["x" * 300]):
        longest = max(len(lm.tokenizer(f" {a}", add_special_tokens=False)["input_ids"]) for a in answers)
        assert longest + 3 <= answer_tokens(lm, answers) <= longest + 6


@pytest.mark.parametrize("tokenizer", ["byte_level", "bpe"])
def test_long_prefixes_are_pieces_of_prose_of_so_many_tokens(tiny_lm, tokenizer):
    lm = tiny_lm(tokenizer=tokenizer)
    found = long_prefixes(lm, 3)
    assert len(set(found)) == 3
    counts = [len(encode(lm.tokenizer, [text.strip()])[0].ids) for text in found]
    assert all(abs(count - PREFIX_TOKENS) <= 4 for count in counts)  # white space is made one, a word may be cut


def test_answers_after_a_long_text_are_those_of_one_prompt_at_a_time(tiny_lm, requests):
    lm = tiny_lm()
    asked = [r._replace(paraphrases=(f"So {r.question}",)) for r in requests]
    rows = {"efficacy": [], "generalization": []}
    for record, (request, prefix) in enumerate(zip(asked, long_prefixes(lm, 4), strict=True)):
        for name, text in (("efficacy", request.question), ("generalization", request.paraphrases[0])):
            (found,) = answer(lm, [Prompt(prefix + text, request.target_new)])
            hits = [a == b for a, b in zip(found.predicted, found.target, strict=True)]
            rows[name].append((record, sum(hits) == len(hits)))
    found = long_prefix_scores(lm, [*asked, asked[0]._replace(prompt="<|im_start|>user {}")])  # none before a template
    for name, expected in rows.items():
        compare(found, name, expected)


def test_requests_without_a_true_answer_have_no_probability_to_compare(tiny_lm, requests):
    bare = [r._replace(target_true=None) for r in requests]
    assert probability_scores(tiny_lm(), bare) == {}


def test_free_texts_are_of_the_asked_length_and_repeatable(tiny_lm, reference_family):
    lm = tiny_lm(reference_family, bos=True)
    prompts = ["Rome is", "The mother tongue of Anna Karlsson", "You"] * 12  # more than one batch
    texts = free_texts(lm, prompts, seed=3, length=20)
    assert texts == free_texts(lm, prompts, seed=3, length=20)
    assert texts != free_texts(lm, prompts, seed=4, length=20)
    assert len(set(texts)) > 20
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.startswith(prompt)
