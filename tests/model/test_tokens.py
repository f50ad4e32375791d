import pytest

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import Prompt, in_context, kl_prompt, tokenize
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
