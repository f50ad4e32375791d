"""Requests that a tokenizer would make others of, or that do not fit into a model's context."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import Encoded, Prompt, Tokens, encode, in_context, request_prompt, tokenize
from sphere_pl.text.scripts import is_later_jamo

_UNASSIGNED = ("\U0010fffe", "\ue123")  # no tokenizer has tokens for them, but of their bytes
_READ = ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "So", "Sc", "Sm")  # categories of letters, numbers and symbols
_MARKS = 2  # tokens that a tokenizer puts around a text
_TOGETHER = 256  # requests that are tokenised together


def check_length(tokenizer: Any, request: EditRequest, context: str, max_length: int) -> None:
    """Refuse a request that does not fit into the model's context after its longest context template.

    Raises:
        UserError: Naming the record's source.
    """
    (tokens,) = tokenize(tokenizer, [in_context(request, context, request.target_new)])
    if len(tokens.ids) > max_length:
        form = " in chat form" if request.form.after else ""
        raise UserError(
            f"{request.source or f'case {request.case_id}'}: prompt, target and a context template have{form} "
            f"{len(tokens.ids)} tokens, but the model reads at most {max_length}. Shorten the record or leave it out."
        )


def check_probes(tokenizer: Any, request: EditRequest, max_length: int) -> None:
    """Refuse a request with a paraphrase, neighbour or question that does not fit into the model's context.

    Raises:
        UserError: Naming the record's source and the probe.
    """
    for text, answer in _probes(request):
        whole = request_prompt(request, text, answer).whole
        # No tokenizer makes more tokens of a text than it has bytes, but for those that mark its ends.
        length = len(encode(tokenizer, [whole])[0].ids) if len(whole.encode()) + _MARKS > max_length else 0
        if length > max_length:
            raise UserError(
                f"{request.source or f'case {request.case_id}'}: a paraphrase, neighbour or other probe, "
                f"{shorten(text, 60)}, has {length} tokens with its answer, but the model reads at most {max_length}. "
                "Shorten it or leave it out."
            )


def _probes(request: EditRequest) -> Iterator[tuple[str, str]]:
    """What is asked beside the edit itself, with the answers whose probabilities are asked for."""
    new, true = request.target_new, request.target_true or ""
    yield request.asked, true
    for text in request.paraphrases:
        yield from ((text, new), (text, true))
    for text, right in zip_longest(request.neighbors, request.neighbor_answers, fillvalue=""):
        yield from ((text, new), (text, right))
    for text, right in zip_longest(request.portability, (answers[0] for answers in request.portability_answers)):
        yield text, right or ""


def check_target(tokenizer: Any, request: EditRequest) -> None:
    """Refuse one request whose target or subject the tokenizer cannot write; see `check_written`."""
    check_written(tokenizer, [request])


def check_written(tokenizer: Any, requests: Sequence[EditRequest]) -> None:
    """Refuse requests that the tokenizer would make others of.

    Raises:
        UserError: Naming the record's source and what becomes of its subject or target.
    """
    unknown = unknown_token(tokenizer)
    for start in range(0, len(requests), _TOGETHER):
        some = requests[start : start + _TOGETHER]
        prompts = [in_context(request, "", request.target_new) for request in some]
        whole = encode(tokenizer, [prompt.whole for prompt in prompts])
        for request, prompt, tokens, entry in zip(some, prompts, tokenize(tokenizer, prompts), whole, strict=True):
            trouble = _subject_trouble(tokenizer, prompt, tokens, entry, unknown)
            trouble = trouble or _target_trouble(tokenizer, prompt, tokens, entry, unknown)
            if trouble:
                raise UserError(f"{request.source or f'case {request.case_id}'}: {trouble}")


def _subject_trouble(tokenizer: Any, prompt: Prompt, tokens: Tokens, entry: Encoded, unknown: int | None) -> str | None:
    """What is wrong with a subject that the model would not read."""
    subject = prompt.text[prompt.subject_start : prompt.subject_end]
    found = tokens.ids[max(tokens.subject_first, 0) : tokens.subject_last + 1]
    if lost := _left_out(entry, prompt.whole, prompt.subject_start, prompt.subject_end):
        return (
            f"the tokenizer leaves {lost!r} out of the subject {subject!r}, so that the model would learn the fact "
            "about another name. Choose a model whose tokenizer knows its script."
        )
    nothing = bool(subject) and unknown is not None and set(found) == {unknown}
    if nothing and (sign := tokenizer.convert_ids_to_tokens(unknown)) not in subject:
        return (
            f"the tokenizer has no token for the subject {subject!r} and puts {sign} in its place, as for every "
            "unknown name: all of them would learn the fact. Choose a model whose tokenizer knows its script."
        )
    return None


def _target_trouble(tokenizer: Any, prompt: Prompt, tokens: Tokens, entry: Encoded, unknown: int | None) -> str | None:
    """What is wrong with a target that is not what the model would learn to say."""
    if not tokens.target:
        return (
            f"the target {prompt.target!r} has no token of its own, the tokenizer leaves it out. Write a target of "
            "characters that the tokenizer keeps."
        )
    if unknown not in tokens.target and not tokenizer.decode(tokens.target, skip_special_tokens=True).strip():
        return (
            f"the target {prompt.target!r} is nothing but special tokens, which no reader gets to see. Write the text "
            "that the model shall say."
        )
    if unknown in tokens.target and (sign := tokenizer.convert_ids_to_tokens(unknown)) not in prompt.target:
        return (
            f"the tokenizer has no token for part of the target {prompt.target!r} and puts {sign} in its place, which "
            "says nothing. Choose a model whose tokenizer knows its script."
        )
    if lost := _left_out(entry, prompt.whole, len(prompt.whole) - len(prompt.target), len(prompt.whole)):
        return (
            f"the tokenizer leaves {lost!r} out of the target {prompt.target!r}, so that another one would be learnt. "
            "Choose a model whose tokenizer knows its script."
        )
    return None


def unknown_token(tokenizer: Any) -> int | None:
    """The token that stands for what a tokenizer does not know; one that does not name it shows it."""
    if tokenizer.unk_token_id is not None:
        return int(tokenizer.unk_token_id)
    first, second = tokenizer(list(_UNASSIGNED), add_special_tokens=False, verbose=False)["input_ids"]
    both = [token for token in first if token in second and tokenizer.convert_ids_to_tokens(token) not in ("▁", "Ġ")]
    return both[-1] if both else None


def _left_out(entry: Encoded, text: str, start: int, stop: int) -> str:
    """The letters, numbers and symbols of part of a text that none of its tokens covers."""
    read = {place for begin, end in entry.offsets for place in range(begin, end)}
    return "".join(text[place] for place in range(start, stop) if place not in read and _must_be_read(text[place]))


def _must_be_read(character: str) -> bool:
    """Whether a character is one of its own in every normal form; of a composed one tokens cover the first part."""
    return unicodedata.category(character) in _READ and not is_later_jamo(character)
