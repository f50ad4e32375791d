"""From edit requests to tokens: context templates, subjects and targets found by character offsets.

Each text (context, prompt and target) is tokenised once and as a whole, as the model would read it. Which tokens
belong to the target and which is the subject's last one follows from the characters they cover, so byte-level and
SentencePiece tokenizers, with and without a beginning-of-sequence token, take the same path. What a tokenizer adds
after a text of its own accord is no part of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sphere_pl.data.request import EditRequest, Form
from sphere_pl.errors import UserError
from sphere_pl.text.joining import asked, joined, opens_with_template, separator

CONTEXT_OPENERS = ("The", "Therefore", "Because", "I", "You")
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
