"""Continuations with a guess are those without one."""

import pytest

from sphere_pl.model import guesses
from sphere_pl.model.generation import continue_texts, likeliest
from sphere_pl.model.guesses import confirmed, continue_guessed
from sphere_pl.model.tokens import encode

PROMPTS = ["The capital of France is", "Rome is a city in Italy by the", "The"]


@pytest.fixture
def lm(tiny_lm):
    return tiny_lm("gpt2")


@pytest.fixture
def expected(lm):
    return continue_texts(lm, PROMPTS, 6, likeliest)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen3_5_text"])
@pytest.mark.parametrize("wrong", [[], [1], [0, 1, 2]], ids=str)
def test_a_guess_right_wrong_too_short_or_too_long_changes_no_token(tiny_lm, model_type, wrong):
    lm = tiny_lm(model_type)
    expected = continue_texts(lm, PROMPTS, 6, likeliest)
    right = [lm.tokenizer.decode(each) for each in expected]
    told = [" Paris by the sea" if place in wrong else text for place, text in enumerate(right)]
    for guessed in (told, [text[: len(text) // 2] for text in told], ["", *told[1:]], [f"{text} and" for text in told]):
        assert continue_guessed(lm, PROMPTS, guessed, 6) == expected


def test_what_is_guessed_right_is_not_decoded(lm, expected, monkeypatch):
    rows = [each.ids for each in encode(lm.tokenizer, PROMPTS)]
    assert confirmed(lm, rows, expected) == expected
    monkeypatch.setattr(guesses, "confirmed", lambda *_: expected)
    monkeypatch.setattr(guesses, "decode", None)
    assert continue_guessed(lm, PROMPTS, [""] * 3, 6) == expected


def test_what_is_confirmed_ends_with_the_first_token_that_is_another(lm, expected):
    (row,) = (each.ids for each in encode(lm.tokenizer, PROMPTS[:1]))
    right = expected[0]
    wrong = [right[0], right[1] + 1, *right[2:]]
    assert confirmed(lm, [row, row, row], [right, wrong, []]) == [right, right[:2], []]
