"""From edit requests to tokens: context templates, subjects and targets found by character offsets.

Each text (context, prompt and target) is tokenised once and as a whole, as the model would read it. Which tokens
belong to the target and which is the subject's last one follows from the characters they cover, so byte-level and
SentencePiece tokenizers, with and without a beginning-of-sequence token, take the same path. What a tokenizer adds
after a text of its own accord is no part of it.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from sphere_pl.data.request import EditRequest, Form, shorten
from sphere_pl.errors import UserError
from sphere_pl.text.joining import asked, joined, opens_with_template, separator
from sphere_pl.text.scripts import is_later_jamo

CONTEXT_OPENERS = ("The", "Therefore", "Because", "I", "You")
_UNASSIGNED = ("\U0010fffe", "\ue123")  # no tokenizer has tokens for them, but of their bytes
_READ = ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "So", "Sc", "Sm")  # categories of letters, numbers and symbols
_MARKS = 2  # tokens that a tokenizer puts around a text
_TOGETHER = 256  # requests that are tokenised together
_ANCHORS = ("\n", ".", "a")  # texts that a continuation is tokenised after; it merges with one of them at most


class Prompt(NamedTuple):
    """A text to run: what stands before the target, and the target.

    Attributes:
        text: Everything before the target; see `sphere_pl.text.joining.asked`.
        target: The text to predict, without the space before it; may be empty.
        subject_end: Number of characters of `text` up to the subject's end; 0 if there is no subject.
        subject_start: Number of characters of `text` before the subject.
        joiner: What stands between text and target, where the record says so.
    """

    text: str
    target: str = ""
    subject_end: int = 0
    subject_start: int = 0
    joiner: str | None = None

    @property
    def whole(self) -> str:
        """The text with its target."""
        return joined(self.text, self.target, self.joiner)


class Encoded(NamedTuple):
    """A tokenised text.

    Attributes:
        ids: Its tokens, those that the tokenizer puts in front included.
        offsets: The characters that each token covers; `(0, 0)` for those in front.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokens(NamedTuple):
    """A tokenised prompt.

    Attributes:
        ids: Tokens of text and target.
        target_start: Index of the target's first token (`len(ids)` without a target).
        subject_last: Index of the subject's last token (-1 without a subject).
        subject_first: Index of the subject's first token (-1 without a subject).
    """

    ids: list[int]
    target_start: int
    subject_last: int
    subject_first: int = -1

    @property
    def target(self) -> list[int]:
        """The target's tokens."""
        return self.ids[self.target_start :]


def in_context(request: EditRequest, context: str = "", target: str = "") -> Prompt:
    """The request's question after a context text, in its form; nothing goes in front of a template in the question.

    Example:
        >>> in_context(EditRequest("0", "{} is in", "Rome", "Spain"), "So it is. ").text
        'So it is. Rome is in'
    """
    if opens_with_template(request.question):
        context = ""
    start, end = (len(context) + place if request.subject else 0 for place in request.subject_span)
    # The question alone says how the target follows, whatever script a context is in.
    joiner = separator(request.question, target) if target and request.joiner is None else request.joiner
    return in_form(Prompt(context + request.question, target, end, start, joiner), request.form)


def request_prompt(request: EditRequest, text: str, answer: str) -> Prompt:
    """A prompt of a request, such as a paraphrase, with an answer to it."""
    return Prompt(asked(text, request.joiner), answer.strip(), joiner=request.joiner)


def in_form(prompt: Prompt, form: Form) -> Prompt:
    """A prompt with what its form puts around it; the answer follows as the template has it.

    Example:
        >>> in_form(Prompt("Is it so?", "Yes", 2), Form("<user>", "<answer>"))
        Prompt(text='<user>Is it so?<answer>', target='Yes', subject_end=8, subject_start=6, joiner='')
    """
    if form == Form():
        return prompt
    moved = len(form.before) if prompt.subject_end else 0
    start, end = prompt.subject_start + moved, prompt.subject_end + moved
    return Prompt(form.around(prompt.text), prompt.target, end, start, form.joiner if form.after else prompt.joiner)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
    """Tokenise texts as the model reads them when it is to continue them.

    What the tokenizer adds at the end, such as an end-of-text token, is left out, and so is a beginning-of-text token
    in front of a text that begins with one itself.
    """
    if not texts:
        return []
    found = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_special_tokens_mask=True,
        verbose=False,
    )
    columns = (found["input_ids"], found["offset_mapping"], found["special_tokens_mask"])
    return [_own_tokens(*entry) for entry in zip(*columns, strict=True)]


def _own_tokens(ids: list[int], offsets: list[tuple[int, int]], added: list[int]) -> Encoded:
    own = [place for place, mark in enumerate(added) if not mark]
    start, stop = 0, own[-1] + 1 if own else min(len(ids), 1)
    if own and own[0] > 0 and ids[own[0] - 1] == ids[own[0]]:
        start = own[0]
    covered = [(0, 0) if mark else place for place, mark in zip(offsets, added, strict=True)]
    return Encoded(list(ids[start:stop]), covered[start:stop])


def kl_prompt(request: EditRequest) -> Prompt:
    """The prompt on which the model's idea of the subject must stay as it is: "{subject} is a" (MEMIT, ROME)."""
    return Prompt(f"{request.subject} is a", "", len(request.subject))


def tokenize(tokenizer: Any, prompts: Sequence[Prompt], max_length: int | None = None) -> list[Tokens]:
    """Tokenise prompts with their targets.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompts: At least one prompt.
        max_length: The model's context length.

    Raises:
        UserError: If a prompt with its target is longer than the model's context.
    """
    whole = encode(tokenizer, [prompt.whole for prompt in prompts])
    merging = [row for row, prompt in enumerate(prompts) if prompt.target and _may_merge(whole[row], prompt)]
    alone = dict(zip(merging, encode(tokenizer, [prompts[row].text for row in merging]), strict=True))
    tokens = [_locate(entry, prompt) for entry, prompt in zip(whole, prompts, strict=True)]
    for row, entry in alone.items():
        if entry.ids != tokens[row].ids[: tokens[row].target_start]:
            tokens[row] = _apart(tokenizer, entry, prompts[row])
    if max_length is not None:
        for found, prompt in zip(tokens, prompts, strict=True):
            if len(found.ids) > max_length:
                raise UserError(
                    f"The prompt {prompt.text[:60]!r}... has {len(found.ids)} tokens with its target, but the model "
                    f"reads at most {max_length}. Shorten it or leave the record out."
                )
    return tokens


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


def _may_merge(whole: Encoded, prompt: Prompt) -> bool:
    """Whether the prompt's last token may be another one where the target follows it."""
    border = len(prompt.text)
    if len(prompt.whole) == border + len(prompt.target):
        return True
    return any(start < border < end for start, end in whole.offsets)


def _apart(tokenizer: Any, alone: Encoded, prompt: Prompt) -> Tokens:
    """Prompt and target tokenised each for itself, as they are when the model is asked and then answers."""
    found = _locate(alone, prompt)
    follow = _continuation(tokenizer, prompt.whole[len(prompt.text) :])
    return found._replace(ids=[*alone.ids, *follow], target_start=len(alone.ids))


def _continuation(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that follows another one: SentencePiece would put a space in front of one that does not."""
    ids: list[int] = []
    for anchor in _ANCHORS:
        found = tokenizer(anchor + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = found["offset_mapping"]
        ids = [token for token, (start, _) in zip(found["input_ids"], offsets, strict=True) if start >= len(anchor)]
        if ids and not any(start < len(anchor) < end for start, end in offsets):
            break
    return ids


def _locate(entry: Encoded, prompt: Prompt) -> Tokens:
    """Find the target and the subject's first and last token by the characters that each token covers."""
    target_start = len(entry.ids)
    subject_first = subject_last = -1
    for index, (start, end) in enumerate(entry.offsets):
        if end == 0:  # put in front by the tokenizer
            continue
        if end > len(prompt.text):
            target_start = min(target_start, index)
        if start < prompt.subject_end:
            subject_last = index
            # A token that holds the space before the subject and its first letters is the subject's.
            if subject_first < 0 and end > prompt.subject_start:
                subject_first = index
    return Tokens(entry.ids, target_start, subject_last, subject_first)


def truncate_left(ids: list[int], longest: int, bos_id: int | None) -> list[int]:
    """Drop tokens at the beginning, but not the token that marks it.

    Example:
        >>> truncate_left([1, 5, 6, 7], 3, bos_id=1)
        [1, 6, 7]
    """
    excess = len(ids) - longest
    if excess <= 0:
        return ids
    first = 1 if ids[0] == bos_id else 0
    return ids[:first] + ids[first + excess :]
