"""Odd but possible records, from the file to the tokens: a correct result or a clear error."""

import json

import pytest

from sphere_pl.errors import UserError
from sphere_pl.model.tokens import in_context, tokenize
from sphere_pl.text.joining import separator


def record(**fields):
    return {"prompt": "The capital of {} is", "subject": "France", "target": "Berlin"} | fields


def check_tokens(tokenizer, request):
    """The target's tokens are the target, and the subject's last token ends the subject."""
    (tokens,) = tokenize(tokenizer, [in_context(request, "So. ", request.target_new)])
    assert tokenizer.decode(tokens.target) == separator(request.question, request.target_new) + request.target_new
    head = request.prompt.partition("{}")[0]
    assert tokenizer.decode(tokens.ids[: tokens.subject_last + 1]).startswith(f"So. {head}{request.subject}".rstrip())
    return tokens


@pytest.mark.parametrize(
    ("subject", "prompt", "target"),
    [
        ("{1, 2}", "The set {} is", "finite"),
        ("{1, 2}", "The set {1, 2} is", "finite"),
        ("HashMap<{}>", "HashMap<{}> is a", "type"),
        ("{}", "The braces {} mean", "empty"),
        ("ירושלים", "הבירה של {} היא", "תל אביב"),
        ("مصر", "عاصمة مصر هي", "الجيزة"),
        ("東京都", "東京都は{}にある".replace("{}", ""), "日本"),
        ("🗼 tower 🇫🇷", "{} stands in", "Rome 🍕"),
        ("Zoë\u0308", "Mr {} eats", "ﬁsh"),
    ],
)
def test_odd_texts_reach_the_tokens_whole(load, tiny_lm, subject, prompt, target):
    (request,) = load("jsonl", [record(subject=subject, prompt=prompt, target=target)])
    assert request.question == (prompt if subject in prompt else prompt.replace("{}", subject))
    check_tokens(tiny_lm().tokenizer, request)


def test_a_target_of_200_tokens_is_kept_whole(load, tiny_lm):
    target = " ".join(["Paris and Berlin"] * 70)
    (request,) = load("jsonl", [record(target=target)])
    assert len(check_tokens(tiny_lm().tokenizer, request).target) >= 200


def test_a_prompt_longer_than_the_context_is_refused_where_it_is_read(load, tiny_lm):
    (request,) = load("jsonl", [record(prompt="So it is. " * 99 + "The capital of {} is")])
    with pytest.raises(UserError, match=r"reads at most 128. Shorten it or leave the record out"):
        tokenize(tiny_lm().tokenizer, [in_context(request)], max_length=128)


def test_a_line_of_ten_megabytes_is_read(load):
    (request,) = load("jsonl", [record(prompt="a" * 10_000_000 + " {} is")])
    assert request.question.endswith("a France is")


@pytest.mark.parametrize("fields", [{"subject": "Spain"}, {"subject": ["x"]}, {"prompt": "}"}, {"target": {}}])
def test_an_error_about_ten_megabytes_fits_the_screen(load, fields):
    fields = {name: value if value != "}" else "}" * 10_000_000 for name, value in fields.items()}
    with pytest.raises(UserError, match=r"edits.jsonl, line 1: ") as error:
        load("jsonl", [record(prompt="a" * 10_000_000) | fields])
    assert len(str(error.value)) < 1000


def test_half_a_character_is_refused(tmp_path):
    from sphere_pl.data.datamodule import EditDataModule

    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps(record(paraphrases=["Emoji \ud83d in France is"])))  # escaped: \ud83d
    with pytest.raises(UserError, match=r"line 1: 'Emoji .*' holds half a character .* at place 6"):
        EditDataModule("jsonl", str(path)).setup("fit")


@pytest.mark.parametrize("fields", [{"target": "M\ufffdnchen"}, {"subject": "Fran\ufffde"}])
def test_what_an_earlier_program_could_not_read_is_refused(load, fields):
    with pytest.raises(UserError, match=r"line 1: the record holds U\+FFFD, .* as UTF-8 again"):
        load("jsonl", [record() | {"prompt": "The capital of {} is"} | fields])
