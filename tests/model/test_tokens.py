import pytest

from sphere_pl.data.request import EditRequest, check_request
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import Prompt, check_probes, in_context, kl_prompt, tokenize
from tests.conftest import make_tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_target_and_subject_are_found_whatever_stands_before(requests, bos, tokenizer_kind):
    tokenizer = make_tokenizer(tokenizer_kind, bos)
    space = " " if tokenizer_kind == "byte_level" else ""  # SentencePiece leaves out the first when it decodes
    for context in ("", "You and I. "):
        for request, tokens in zip(
            requests, tokenize(tokenizer, [in_context(r, context, r.target_new) for r in requests]), strict=True
        ):
            assert tokenizer.decode(tokens.target) == f"{space}{request.target_new}"
            whole = tokenizer.decode(tokens.ids, skip_special_tokens=True)
            assert whole == f"{context}{request.question} {request.target_new}"
            up_to_subject = tokenizer.decode(tokens.ids[: tokens.subject_last + 1], skip_special_tokens=True)
            assert up_to_subject == context + request.prompt.split("{}")[0] + request.subject
            assert bos == (tokens.ids[0] == tokenizer.bos_token_id)


def test_a_subject_of_many_bytes_ends_at_its_last_token(tokenizer_kind):
    tokenizer = make_tokenizer(tokenizer_kind)
    request = EditRequest("0", "In {} people eat", "東京都🗼", "fruit")
    (tokens,) = tokenize(tokenizer, [in_context(request)])
    assert tokenizer.decode(tokens.ids[: tokens.subject_last + 1]) == "In 東京都🗼"


def test_a_prompt_without_target_has_none(tiny_lm):
    (tokens,) = tokenize(tiny_lm().tokenizer, [Prompt("Rome is a")])
    assert tokens.target == []
    assert tokens.target_start == len(tokens.ids)
    assert tokens.subject_last == -1


def test_the_essence_prompt_ends_its_subject_where_the_subject_ends():
    prompt = kl_prompt(EditRequest("0", "The capital of {} is", "France", "Rome"))
    assert prompt.text[: prompt.subject_end] == "France"


def test_a_prompt_longer_than_the_context_is_refused(tiny_lm):
    with pytest.raises(UserError, match="reads at most 8"):
        tokenize(tiny_lm().tokenizer, [Prompt("The capital of France is Paris " * 9)], max_length=8)


LONG = "The capital of France is Paris " * 9


@pytest.mark.parametrize(
    "probe",
    [
        {"paraphrases": ("Rome is", LONG)},
        {"paraphrases": ("The capital of France is",), "target_new": LONG},
        {"target_true": LONG},
        {"paraphrases": ("The capital of France is",), "target_true": "Paris " * 16},
        {"neighbors": ("Oslo is", LONG)},
        {"neighbors": ("Oslo is",), "neighbor_answers": (LONG,)},
        {"portability": (LONG,)},
        {"portability": ("So",), "portability_answers": ((LONG, "no"),)},
    ],
)
def test_a_probe_longer_than_the_context_is_refused_with_its_record(probe):
    tokenizer = make_tokenizer(bos=True)
    request = EditRequest("7", "{} is", "Rome", "Spain", source="facts.json, line 3")._replace(**probe)
    check_probes(tokenizer, request, 128)
    with pytest.raises(UserError, match=r"facts.json, line 3: a paraphrase, neighbour or other probe, .*at most 20\."):
        check_probes(tokenizer, request, 20)


def test_a_probe_that_fits_exactly_is_taken():
    tokenizer = make_tokenizer(bos=True)
    request = EditRequest("7", "{} is", "Rome", "Spain", paraphrases=("Zz qq xx ß",))
    length = len(tokenizer("Zz qq xx ß Spain")["input_ids"])
    check_probes(tokenizer, request, length)
    with pytest.raises(UserError, match=f"has {length} tokens"):
        check_probes(tokenizer, request, length - 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": " "}, "the subject is empty"),
        ({"target_new": ""}, "target_new is empty"),
        ({"prompt": "The capital is"}, "does not contain the subject"),
        ({"prompt": "{} and {} are"}, "exactly one"),
        ({"prompt": "The {capital} of {} is"}, "stray braces"),
        ({"prompt": "The capital} of {} is"}, "stray braces"),
    ],
)
def test_a_request_that_cannot_be_edited_is_refused_with_its_place(change, words):
    request = EditRequest("7", "The capital of {} is", "France", "Rome", source="facts.json, line 12")._replace(
        **change
    )
    with pytest.raises(UserError, match=rf"facts.json, line 12: .*{words}"):
        check_request(request)


def test_braces_in_a_subject_are_text():
    request = check_request(EditRequest("0", "The set {} is", "{1, 2}", "finite"))
    assert request.question == "The set {1, 2} is"
    assert request.question[: request.subject_end].endswith("{1, 2}")
